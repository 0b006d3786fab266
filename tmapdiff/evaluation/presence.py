"""Whether a localizer knows when a video does not hold what a sentence describes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tmapdiff._core.checks import check_floating, check_shape, message
from tmapdiff.calibration import PlattCalibrator, reliability_bins, risk_coverage_curve
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation._answers import localize_all
from tmapdiff.models import MapLocalizer
from tmapdiff.models.presence import presence_features


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Share of pairs of a positive and a negative in which the positive scores higher, in [0, 1].

    A tie counts half. It is the area under the curve of true over false positives; by ranks, so
    that time grows with N log N.

    Args:
        scores: More is surer to be positive; in any unit, may be infinite.
        positive: Which are.

    Shape:
        - scores: (N,)
        - positive: (N,), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If there is no positive or no negative, a score is NaN, `scores` are not of a
            floating dtype, or `positive` not bool.

    Source: Mann and Whitney, doi 10.1214/aoms/1177730491.
    """
    who = "auroc"
    sizes = check_shape(who, "scores", scores, "N")
    check_floating(who, "scores", scores)
    check_shape(who, "positive", positive, "N", sizes)
    if positive.dtype != torch.bool:
        raise ArgumentError(message(who, "bool positive", positive.dtype))
    if bool(scores.isnan().any()):
        raise ArgumentError(message(who, "scores that can be ordered", "NaN"))
    counts = [int(positive.sum()), int((~positive).sum())]
    if not all(counts):
        got = f"{counts[0]} positives and {counts[1]} negatives"
        raise ArgumentError(message(who, "at least one of each", got))
    _, value, size = torch.unique(scores, return_inverse=True, return_counts=True)
    found = torch.zeros_like(size).index_add_(0, value, positive.to(size.device).long()).double()
    others = size - found
    below = others.cumsum(0) - others / 2
    return float((found * below).sum() / (counts[0] * counts[1]))


def presence_metrics(presence: Tensor, present: Tensor) -> dict[str, float]:
    """Compute how well a probability tells which videos hold an answer, in percent.

    `Presence-AUROC`: how often a query with an answer has a higher one than a query without.
    `Presence-Accuracy`: how often it is on the right side of 0.5. `Presence-Brier`: its mean
    squared error. `Presence-ECE`: its expected calibration error, with bins of equal mass.
    `Presence-AURC`: where the queries of least presence are rejected, the share of those left that
    have no answer, as the mean over all numbers of rejected ones. Of the last three less is better.

    Args:
        presence: How likely a query has an answer, such as `Evaluation.presence`.
        present: Whether it has.

    Shape:
        - presence: (Q,)
        - present: (Q,), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: As `auroc`, or if a probability is outside [0, 1].
    """
    error = reliability_bins(presence, present).calibration_error
    wide, present = presence.detach().double(), present.to(presence.device)
    return {
        "Presence-AUROC": 100 * auroc(wide, present),
        "Presence-Accuracy": 100 * float(((wide > 0.5) == present).double().mean()),
        "Presence-Brier": 100 * float((wide - present.double()).square().mean()),
        "Presence-ECE": 100 * error,
        "Presence-AURC": 100 * risk_coverage_curve(wide, present).area,
    }


def fit_presence(
    model: MapLocalizer,
    dataset: Dataset[Any],
    *,
    batch_size: int = 64,
    seed: int = 0,
    **options: Any,
) -> MapLocalizer:
    """Fit how likely a query has an answer in its video at all; return the model itself.

    A logistic regression (`PlattCalibrator`) on a handful of numbers of each query
    (`tmapdiff.models.presence.presence_features`). What it finds goes into the configuration, and
    is saved with the model; its answers then have `Localization.presence`.

    The map alone tells little unless the model was trained on queries without an answer
    (`TrainingConfig.negatives`). Where clips and words share a space, their similarity does.

    Args:
        model: The localizer, in any mode.
        dataset: Queries that it was not trained on, with and without a moment, such as a
            `MomentDataset` of what `add_negatives` gives. The probability is right where as many
            queries have an answer as in these; half, after `add_negatives`.
        batch_size: Queries localized at once.
        seed: Seed of the noise, as for `evaluate`.
        **options: How samples are drawn, as for `evaluate`.

    Raises:
        ArgumentError: If not both kinds of queries are there, or as `evaluate`.
    """
    rows, present = [], []
    sampling: Any = {"batch_size": batch_size, "seed": seed, "accelerator": None, **options}
    for batch, found in localize_all(model, dataset, **sampling):
        query = batch.features, batch.words, batch.num_words
        rows.append(presence_features(model, *query, found.maps, batch.num_clips).cpu())
        present.append(batch.num_moments.cpu() > 0)
    every = torch.cat(present)
    if every.all() or not every.any():
        expected, got = "queries with and without a moment", "only one kind"
        hint = "add_negatives makes queries without one."
        raise ArgumentError(message("fit_presence", expected, got, hint))
    reader = PlattCalibrator(rows[0].shape[1]).fit(torch.cat(rows), every)
    model.register_to_config(presence_weights=[*reader.weight.tolist(), float(reader.bias)])
    return model
