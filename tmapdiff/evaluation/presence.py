"""Presence: the probability that a video contains what a sentence describes."""

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
    """Compute the area under the ROC curve, in [0, 1].

    It is the share of pairs of a positive and a negative in which the positive scores higher, where
    ties count half.

    Args:
        scores: Scores in any unit, higher for positives; may be infinite.
        positive: Which ones are positive.

    Shape:
        - scores: (N,)
        - positive: (N,), bool

    Raises:
        ShapeError: If a shape does not fit.
        ArgumentError: If there is no positive or no negative, a score is NaN, `scores` do not have
            a floating dtype, or `positive` is not bool.

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
        raise ArgumentError(message(who, "at least one positive and one negative", got))
    _, value, size = torch.unique(scores, return_inverse=True, return_counts=True)
    found = torch.zeros_like(size).index_add_(0, value, positive.to(size.device).long()).double()
    others = size - found
    below = others.cumsum(0) - others / 2
    return float((found * below).sum() / (counts[0] * counts[1]))


def presence_metrics(presence: Tensor, present: Tensor) -> dict[str, float]:
    """Compute metrics of a predicted probability that a query has an answer, in percent.

    - `Presence-AUROC`: how often a query with an answer has a higher probability than one without
    - `Presence-Accuracy`: how often the probability is on the right side of 0.5
    - `Presence-Brier`: its mean squared error (lower is better, as for the next two)
    - `Presence-ECE`: its expected calibration error, with bins of equal mass
    - `Presence-AURC`: the share of queries without an answer among those left after rejecting the
      ones of lowest presence, averaged over the number rejected

    Args:
        presence: Predicted probability that each query has an answer, as `Evaluation.presence`.
        present: Truth: whether each query has one, as `Evaluation.present`.

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
    """Fit the probability that a query has an answer in its video; return the model itself.

    This is a logistic regression (`PlattCalibrator`) on two or three numbers per query
    (`tmapdiff.models.presence.presence_features`). Its weights become part of the model's
    configuration, are saved with it, and give its answers `Localization.presence`.

    The map alone predicts little unless the model was trained with `TrainingConfig.negatives`. If
    clips and words share a space, their similarity predicts more.

    Args:
        model: The localizer, in any mode.
        dataset: Held-out queries with and without a moment, for example a `MomentDataset` of the
            annotations that `add_negatives` returns. The probability is calibrated for their share
            of queries with an answer, which is half after `add_negatives`.
        batch_size: Queries per batch.
        seed: Seed of the noise, as for `evaluate`.
        **options: Sampling options, as for `evaluate`.

    Raises:
        ArgumentError: If there are not both kinds of queries, or as `evaluate`.
    """
    rows, present = [], []
    for batch, found in localize_all(model, dataset, batch_size=batch_size, seed=seed, **options):
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
