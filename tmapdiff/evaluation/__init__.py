"""Evaluation on data sets: metrics, predictions, presence, and the best constant answer."""

from tmapdiff.evaluation.controls import (
    Protocol,
    evaluate_didemo_prior,
    evaluate_oracle,
    evaluate_predictions,
    evaluate_prior,
    evaluate_sets,
    fit_moment_prior,
)
from tmapdiff.evaluation.drawing import draw_queries
from tmapdiff.evaluation.presence import auroc, fit_presence, presence_metrics
from tmapdiff.evaluation.runner import Evaluation, evaluate

__all__ = [  # noqa: RUF022  in the order the data flows
    "evaluate",
    "Evaluation",
    "Protocol",
    "evaluate_didemo_prior",
    "evaluate_predictions",
    "evaluate_sets",
    "fit_moment_prior",
    "evaluate_prior",
    "evaluate_oracle",
    "fit_presence",
    "presence_metrics",
    "auroc",
    "draw_queries",
]
