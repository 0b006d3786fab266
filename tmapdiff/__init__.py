"""Diffusion over 2D temporal maps: find the moment of a video that a sentence describes.

Names load when they are first used, so that `import tmapdiff` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tmapdiff._version import __version__
from tmapdiff.errors import TmapdiffError

if TYPE_CHECKING:
    from tmapdiff.data import (
        ActionTimelineFeatures,
        MomentDataset,
        Vocabulary,
        load_charades_sta,
        open_feature_store,
    )
    from tmapdiff.layers import GatedConv2d, GatedConv2dStack, StylizationBlock, TimestepEmbedder
    from tmapdiff.losses import get_objective
    from tmapdiff.maps import (
        IoUMapBuilder,
        MapGrid,
        MultiScaleMapSampler,
        RankedMoments,
        plot_comparison,
        plot_denoising,
        plot_map,
        rank_moments,
        temporal_iou,
        temporal_nms,
    )
    from tmapdiff.metrics import LocalizationMetrics
    from tmapdiff.models import MapDiffusionDecoder, MomentLocalizer, MultimodalEncoder
    from tmapdiff.presets import PRESETS
    from tmapdiff.schedulers import MapScheduler
    from tmapdiff.training import Trainer, TrainingConfig

# Where each public name lives, in the order the data flows.
_HOMES = {
    "MapGrid": "maps",
    "IoUMapBuilder": "maps",
    "MultiScaleMapSampler": "maps",
    "rank_moments": "maps",
    "RankedMoments": "maps",
    "temporal_nms": "maps",
    "temporal_iou": "maps",
    "plot_map": "maps",
    "plot_comparison": "maps",
    "plot_denoising": "maps",
    "MapScheduler": "schedulers",
    "TimestepEmbedder": "layers",
    "StylizationBlock": "layers",
    "GatedConv2d": "layers",
    "GatedConv2dStack": "layers",
    "MultimodalEncoder": "models",
    "MapDiffusionDecoder": "models",
    "MomentLocalizer": "models",
    "get_objective": "losses",
    "LocalizationMetrics": "metrics",
    "load_charades_sta": "data",
    "ActionTimelineFeatures": "data",
    "open_feature_store": "data",
    "Vocabulary": "data",
    "MomentDataset": "data",
    "PRESETS": "presets",
    "Trainer": "training",
    "TrainingConfig": "training",
}

__all__ = ["TmapdiffError", "__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
