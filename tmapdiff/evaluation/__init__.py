"""Running a localizer over a data set: metrics, predictions, and the best constant answer."""

from tmapdiff.evaluation.controls import evaluate_oracle, evaluate_prior, fit_moment_prior
from tmapdiff.evaluation.didemo import evaluate_didemo, evaluate_didemo_prior
from tmapdiff.evaluation.drawing import draw_queries
from tmapdiff.evaluation.predictions import evaluate_predictions
from tmapdiff.evaluation.results import Evaluation
from tmapdiff.evaluation.runner import evaluate

__all__ = [  # noqa: RUF022  in the order the data flows
    "evaluate",
    "Evaluation",
    "evaluate_didemo",
    "evaluate_didemo_prior",
    "evaluate_predictions",
    "fit_moment_prior",
    "evaluate_prior",
    "evaluate_oracle",
    "draw_queries",
]
