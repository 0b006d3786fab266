"""Metrics of predictions, whoever made them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from tmapdiff._core.checks import check_int, message
from tmapdiff.data import (
    AnnotationSet,
    Prediction,
)
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import (
    RankedMoments,
)
from tmapdiff.metrics import LocalizationMetrics

if TYPE_CHECKING:
    pass


def evaluate_predictions(
    predictions: Iterable[Prediction],
    annotations: AnnotationSet,
    *,
    ranks: Sequence[int] = (1, 5),
    thresholds: Sequence[float] = (0.5, 0.7),
    strict: bool = True,
) -> dict[str, float]:
    """Compute the metrics of predictions, one's own or another program's, in percent.

    Args:
        predictions: One a query, such as `read_submission` gives; the order does not matter, that
            of the moments of each does.
        annotations: The queries.
        ranks: As for `LocalizationMetrics`.
        thresholds: As for `LocalizationMetrics`.
        strict: Count IoU above a threshold; at or above it, if False, as moment_detr, lighthouse
            and VSLNet do.

    Raises:
        ArgumentError: If a query has no prediction or two, a prediction is of none of the queries,
            there are no queries, or a rank or threshold is out of range.
    """
    who = "evaluate_predictions"
    metrics = LocalizationMetrics(ranks, thresholds, strict=strict)
    check_int(who, "queries", len(annotations), at_least=1)
    given = list(predictions)
    windows = {one.qid: one.windows for one in given}
    wanted = [item.qid for item in annotations]
    for name, qids in (
        ("a prediction of each query", [qid for qid in wanted if qid not in windows]),
        ("predictions of the annotated queries alone", windows.keys() - set(wanted)),
    ):
        if qids:
            got = f"{len(qids)} queries otherwise, such as {min(map(repr, qids))}"
            raise ArgumentError(message(who, f"{name}, by qid", got))
    if len(windows) != len(given):
        got = f"{len(given)} of {len(windows)} queries"
        raise ArgumentError(message(who, "one prediction a query", got))
    ranked = [
        torch.tensor(windows[qid][: max(ranks)], dtype=torch.float64).reshape(-1, 3)
        for qid in wanted
    ]
    counts = torch.tensor([len(one) for one in ranked])
    padded = pad_sequence(ranked, batch_first=True)
    truths = [torch.tensor(item.moments, dtype=torch.float64) for item in annotations]
    metrics.update(
        RankedMoments(
            moments=padded[..., :2],
            scores=padded[..., 2],
            valid=torch.arange(padded.shape[1]) < counts[:, None],
        ),
        pad_sequence(truths, batch_first=True),
        torch.tensor([len(one) for one in truths]),
    )
    return metrics.compute()
