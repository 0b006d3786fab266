"""From files to a trained and evaluated localizer: code of the examples and the command line."""

from tmapdiff.evaluation import Protocol
from tmapdiff.recipes.answers import answer_videos, pair
from tmapdiff.recipes.data import LocalizationData, open_features
from tmapdiff.recipes.evaluation import (
    Control,
    Results,
    SamplingOptions,
    evaluate_control,
    evaluate_localizer,
    evaluate_trained,
    make_pipeline_test_set,
)
from tmapdiff.recipes.frame_encoder import EncoderMatch, find_frame_encoder
from tmapdiff.recipes.training import (
    RUN_FILES,
    SYNTHETIC_EPOCHS,
    ModelKind,
    Recipe,
    TrainedLocalizer,
    check_run_folder,
    is_main_process,
)

__all__ = [  # noqa: RUF022  in the order the data flows
    "Protocol",
    "open_features",
    "LocalizationData",
    "SYNTHETIC_EPOCHS",
    "ModelKind",
    "Recipe",
    "TrainedLocalizer",
    "RUN_FILES",
    "check_run_folder",
    "is_main_process",
    "Control",
    "SamplingOptions",
    "Results",
    "evaluate_localizer",
    "evaluate_trained",
    "evaluate_control",
    "make_pipeline_test_set",
    "EncoderMatch",
    "find_frame_encoder",
    "pair",
    "answer_videos",
]
