"""From files to a trained and evaluated localizer: what the examples and the command line share."""

from tmapdiff.recipes.data import HOLDOUT_SEED, LocalizationData, Protocol, open_features
from tmapdiff.recipes.evaluation import (
    Control,
    Reading,
    Results,
    evaluate_control,
    evaluate_localizer,
    evaluate_trained,
)
from tmapdiff.recipes.training import (
    SYNTHETIC_EPOCHS,
    ModelKind,
    Recipe,
    TrainedLocalizer,
    make_datasets,
)

__all__ = [  # noqa: RUF022  in the order the data flows
    "Protocol",
    "open_features",
    "LocalizationData",
    "HOLDOUT_SEED",
    "SYNTHETIC_EPOCHS",
    "ModelKind",
    "make_datasets",
    "Recipe",
    "TrainedLocalizer",
    "Control",
    "Reading",
    "Results",
    "evaluate_localizer",
    "evaluate_trained",
    "evaluate_control",
]
