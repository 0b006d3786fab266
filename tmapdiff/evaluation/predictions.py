"""Metrics of predictions, whoever made them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tmapdiff._core.checks import check_int, message
from tmapdiff.data import AnnotationSet, Prediction
from tmapdiff.errors import ArgumentError
from tmapdiff.maps import RankedMoments
from tmapdiff.metrics import LocalizationMetrics


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
        predictions: One per query, in any order, such as `read_submission` returns; the moments of
            each, best first.
        annotations: The queries.
        ranks: As for `LocalizationMetrics`.
        thresholds: As for `LocalizationMetrics`.
        strict: Count an IoU above a threshold; if False, at the threshold too, as moment_detr,
            lighthouse and VSLNet do.

    Raises:
        ArgumentError: If a query has no prediction or two, a prediction is of none of the queries,
            there are no queries, or a rank or threshold is out of range.
    """
    who = "evaluate_predictions"
    metrics = LocalizationMetrics(ranks, thresholds, strict=strict)
    check_int(who, "queries", len(annotations), at_least=1)
    given = list(predictions)
    windows = {prediction.qid: prediction.windows for prediction in given}
    wanted = [item.qid for item in annotations]
    for name, qids in (
        ("a prediction of each query", set(wanted) - windows.keys()),
        ("predictions of the annotated queries alone", windows.keys() - set(wanted)),
    ):
        if qids:
            got = f"{len(qids)} queries otherwise, such as {min(map(repr, qids))}"
            raise ArgumentError(message(who, f"{name}, by qid", got))
    if len(windows) != len(given):
        got = f"{len(given)} of {len(windows)} queries"
        raise ArgumentError(message(who, "one prediction a query", got))
    rows, counts = _padded([windows[qid][: max(ranks)] for qid in wanted], 3)
    valid = torch.arange(rows.shape[1]) < counts[:, None]
    ranked = RankedMoments(moments=rows[..., :2], scores=rows[..., 2], valid=valid)
    metrics.update(ranked, *_padded([item.moments for item in annotations], 2))
    return metrics.compute()


def _padded(tables: Sequence[Sequence[Sequence[float]]], columns: int) -> tuple[Tensor, Tensor]:
    """Stack tables, padded to the longest, and count the rows of each."""
    each = [torch.tensor(rows, dtype=torch.float64).reshape(-1, columns) for rows in tables]
    return pad_sequence(each, batch_first=True), torch.tensor([len(rows) for rows in each])
