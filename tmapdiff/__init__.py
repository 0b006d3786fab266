"""Diffusion over 2D temporal maps: find the moment of a video that a sentence describes.

Names load when they are first used, so that `import tmapdiff` stays light.
"""

from typing import TYPE_CHECKING

from tmapdiff._core.lazy import loaded_when_used
from tmapdiff._version import __version__

if TYPE_CHECKING:
    from tmapdiff.calibration import CalibrationMetrics as CalibrationMetrics
    from tmapdiff.calibration import PlattCalibrator as PlattCalibrator
    from tmapdiff.calibration import ReliabilityBins as ReliabilityBins
    from tmapdiff.calibration import RiskCoverageCurve as RiskCoverageCurve
    from tmapdiff.calibration import reliability_bins as reliability_bins
    from tmapdiff.calibration import risk_coverage_curve as risk_coverage_curve
    from tmapdiff.data import ActionTimelineFeatures as ActionTimelineFeatures
    from tmapdiff.data import ConcatFeatureStore as ConcatFeatureStore
    from tmapdiff.data import MomentDataset as MomentDataset
    from tmapdiff.data import NormalizedFeatureStore as NormalizedFeatureStore
    from tmapdiff.data import Vocabulary as Vocabulary
    from tmapdiff.data import collate_moments as collate_moments
    from tmapdiff.data import load_activitynet_captions as load_activitynet_captions
    from tmapdiff.data import load_annotations as load_annotations
    from tmapdiff.data import load_charades_sta as load_charades_sta
    from tmapdiff.data import load_didemo as load_didemo
    from tmapdiff.data import load_moment_jsonl as load_moment_jsonl
    from tmapdiff.data import load_tacos as load_tacos
    from tmapdiff.data import load_vslnet as load_vslnet
    from tmapdiff.data import open_feature_store as open_feature_store
    from tmapdiff.data import read_submission as read_submission
    from tmapdiff.data import write_submission as write_submission
    from tmapdiff.errors import AnnotationError as AnnotationError
    from tmapdiff.errors import ArgumentError as ArgumentError
    from tmapdiff.errors import CheckpointError as CheckpointError
    from tmapdiff.errors import ConfigError as ConfigError
    from tmapdiff.errors import FeatureError as FeatureError
    from tmapdiff.errors import FileError as FileError
    from tmapdiff.errors import MissingDependencyError as MissingDependencyError
    from tmapdiff.errors import MissingFeatureError as MissingFeatureError
    from tmapdiff.errors import NoVideoStreamError as NoVideoStreamError
    from tmapdiff.errors import ShapeError as ShapeError
    from tmapdiff.errors import SizeLimitError as SizeLimitError
    from tmapdiff.errors import TmapdiffError as TmapdiffError
    from tmapdiff.errors import UnknownNameError as UnknownNameError
    from tmapdiff.errors import UnknownWordsWarning as UnknownWordsWarning
    from tmapdiff.errors import VideoError as VideoError
    from tmapdiff.evaluation import evaluate as evaluate
    from tmapdiff.layers import ConcatConditioning as ConcatConditioning
    from tmapdiff.layers import GatedConv2d as GatedConv2d
    from tmapdiff.layers import GatedConv2dStack as GatedConv2dStack
    from tmapdiff.layers import MapTransformerLayer as MapTransformerLayer
    from tmapdiff.layers import MultiplyConditioning as MultiplyConditioning
    from tmapdiff.layers import StylizationBlock as StylizationBlock
    from tmapdiff.layers import TimestepEmbedder as TimestepEmbedder
    from tmapdiff.losses import get_objective as get_objective
    from tmapdiff.maps import IoUMapBuilder as IoUMapBuilder
    from tmapdiff.maps import MapGrid as MapGrid
    from tmapdiff.maps import MultiScaleMapSampler as MultiScaleMapSampler
    from tmapdiff.maps import RankedMoments as RankedMoments
    from tmapdiff.maps import deconvolve_map as deconvolve_map
    from tmapdiff.maps import rank_by_expected_hits as rank_by_expected_hits
    from tmapdiff.maps import rank_candidates as rank_candidates
    from tmapdiff.maps import rank_candidates_by_expected_hits as rank_candidates_by_expected_hits
    from tmapdiff.maps import rank_moments as rank_moments
    from tmapdiff.maps import soft_hits as soft_hits
    from tmapdiff.maps import temporal_iou as temporal_iou
    from tmapdiff.maps import temporal_nms as temporal_nms
    from tmapdiff.metrics import DiDeMoMetrics as DiDeMoMetrics
    from tmapdiff.metrics import LocalizationMetrics as LocalizationMetrics
    from tmapdiff.migration import load_ms2dtan as load_ms2dtan
    from tmapdiff.migration import ms2dtan_config as ms2dtan_config
    from tmapdiff.models import MS2DTAN as MS2DTAN
    from tmapdiff.models import Localization as Localization
    from tmapdiff.models import MapDiffusionDecoder as MapDiffusionDecoder
    from tmapdiff.models import MapFeatureBuilder as MapFeatureBuilder
    from tmapdiff.models import MapLocalizer as MapLocalizer
    from tmapdiff.models import MomentLocalizer as MomentLocalizer
    from tmapdiff.models import MultimodalEncoder as MultimodalEncoder
    from tmapdiff.models import SimilarityLocalizer as SimilarityLocalizer
    from tmapdiff.models import TransformersTextEncoder as TransformersTextEncoder
    from tmapdiff.pipelines import LocalizedMoment as LocalizedMoment
    from tmapdiff.pipelines import MomentLocalizationOutput as MomentLocalizationOutput
    from tmapdiff.pipelines import MomentLocalizationPipeline as MomentLocalizationPipeline
    from tmapdiff.plots import animate_denoising as animate_denoising
    from tmapdiff.plots import plot_calibration as plot_calibration
    from tmapdiff.plots import plot_comparison as plot_comparison
    from tmapdiff.plots import plot_denoising as plot_denoising
    from tmapdiff.plots import plot_map as plot_map
    from tmapdiff.plots import plot_video_strip as plot_video_strip
    from tmapdiff.plots import save_animation as save_animation
    from tmapdiff.presets import DECODERS as DECODERS
    from tmapdiff.presets import PRESETS as PRESETS
    from tmapdiff.presets import create_model as create_model
    from tmapdiff.presets import list_models as list_models
    from tmapdiff.schedulers import MapScheduler as MapScheduler
    from tmapdiff.spinning import spin_briefly as spin_briefly
    from tmapdiff.training import Trainer as Trainer
    from tmapdiff.training import TrainingConfig as TrainingConfig
    from tmapdiff.video import FrameEncoder as FrameEncoder
    from tmapdiff.video import TransformersFrameEncoder as TransformersFrameEncoder
    from tmapdiff.video import encode_video as encode_video
    from tmapdiff.video import extract_features as extract_features
    from tmapdiff.video import open_video as open_video
    from tmapdiff.video import probe_video as probe_video

# Home module of each public name, in the order the data flows.
_NAMES = {
    "maps": """
        MapGrid IoUMapBuilder MultiScaleMapSampler rank_moments rank_by_expected_hits
        rank_candidates rank_candidates_by_expected_hits deconvolve_map soft_hits RankedMoments
        temporal_nms temporal_iou
    """,
    "schedulers": "MapScheduler",
    "layers": """
        TimestepEmbedder StylizationBlock ConcatConditioning MultiplyConditioning
        MapTransformerLayer GatedConv2d GatedConv2dStack
    """,
    "models": """
        MapFeatureBuilder TransformersTextEncoder MultimodalEncoder MapDiffusionDecoder
        MomentLocalizer SimilarityLocalizer MS2DTAN MapLocalizer Localization
    """,
    "losses": "get_objective",
    "metrics": "LocalizationMetrics DiDeMoMetrics",
    "calibration": """
        risk_coverage_curve RiskCoverageCurve reliability_bins ReliabilityBins
        CalibrationMetrics PlattCalibrator
    """,
    "plots": """
        plot_map plot_comparison plot_denoising animate_denoising save_animation
        plot_video_strip plot_calibration
    """,
    "data": """
        load_charades_sta load_didemo load_activitynet_captions load_tacos load_moment_jsonl
        load_vslnet ActionTimelineFeatures open_feature_store NormalizedFeatureStore
        ConcatFeatureStore Vocabulary MomentDataset write_submission read_submission
        collate_moments load_annotations
    """,
    "video": """
        probe_video open_video FrameEncoder TransformersFrameEncoder encode_video extract_features
    """,
    "presets": "PRESETS DECODERS create_model list_models",
    "training": "Trainer TrainingConfig",
    "evaluation": "evaluate",
    "pipelines": "MomentLocalizationPipeline MomentLocalizationOutput LocalizedMoment",
    "migration": "ms2dtan_config load_ms2dtan",
    "spinning": "spin_briefly",
    "errors": """
        AnnotationError ArgumentError CheckpointError ConfigError FeatureError FileError
        MissingDependencyError MissingFeatureError NoVideoStreamError ShapeError SizeLimitError
        TmapdiffError UnknownNameError UnknownWordsWarning VideoError
    """,
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOMES]

__getattr__ = loaded_when_used(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
