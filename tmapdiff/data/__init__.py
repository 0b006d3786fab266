"""Annotations, features and words, from files to training batches.

Names that need torch load on first use, as annotations are read without it.
"""

from typing import TYPE_CHECKING

from tmapdiff._core.lazy import loaded_when_used
from tmapdiff.data.activitynet import load_activitynet_captions, load_tacos
from tmapdiff.data.annotations import Annotation, AnnotationReport, AnnotationSet
from tmapdiff.data.charades import CharadesVideo, load_charades_actions, load_charades_sta
from tmapdiff.data.didemo import SEGMENT_SECONDS, keep_consensus, load_didemo
from tmapdiff.data.formats import (
    AnnotationFile,
    AnnotationFormat,
    Split,
    find_annotations,
    find_split,
    load_annotations,
    load_vslnet,
)
from tmapdiff.data.moment_jsonl import load_moment_jsonl
from tmapdiff.data.submissions import Prediction, read_submission, write_submission
from tmapdiff.data.text_tracks import Cue, load_text_track
from tmapdiff.data.words import GloveVectors, Vocabulary, load_glove, tokenize

if TYPE_CHECKING:
    from tmapdiff.data.clips import pool_features
    from tmapdiff.data.dataset import MomentBatch, MomentDataset, MomentSample, collate_moments
    from tmapdiff.data.features import (
        ConcatFeatureStore,
        FeatureStore,
        HDF5FeatureStore,
        NormalizedFeatureStore,
        NpyFeatureStore,
        NpzFeatureStore,
        PtFeatureStore,
        open_feature_store,
    )
    from tmapdiff.data.negatives import add_negatives
    from tmapdiff.data.synthetic import SyntheticActivities, SyntheticDiDeMo
    from tmapdiff.data.synthetic_videos import ShapeAction, ShapeVideo, SyntheticVideos
    from tmapdiff.data.timeline import ActionTimelineFeatures
    from tmapdiff.data.track_features import TextTrackFeatures, encode_text_track

# In the order the data flows.
__all__ = [  # noqa: RUF022
    "Annotation",
    "AnnotationReport",
    "AnnotationSet",
    "load_charades_sta",
    "load_didemo",
    "SEGMENT_SECONDS",
    "keep_consensus",
    "load_activitynet_captions",
    "load_tacos",
    "load_moment_jsonl",
    "load_vslnet",
    "AnnotationFormat",
    "Split",
    "AnnotationFile",
    "find_annotations",
    "find_split",
    "load_annotations",
    "add_negatives",
    "SyntheticActivities",
    "SyntheticDiDeMo",
    "SyntheticVideos",
    "ShapeVideo",
    "ShapeAction",
    "CharadesVideo",
    "load_charades_actions",
    "FeatureStore",
    "HDF5FeatureStore",
    "NpyFeatureStore",
    "NpzFeatureStore",
    "PtFeatureStore",
    "NormalizedFeatureStore",
    "ConcatFeatureStore",
    "open_feature_store",
    "ActionTimelineFeatures",
    "load_text_track",
    "Cue",
    "encode_text_track",
    "TextTrackFeatures",
    "pool_features",
    "tokenize",
    "Vocabulary",
    "GloveVectors",
    "load_glove",
    "MomentDataset",
    "MomentSample",
    "collate_moments",
    "MomentBatch",
    "Prediction",
    "write_submission",
    "read_submission",
]

# Names that need torch, by module.
_LAZY = {
    "clips": ("pool_features",),
    "dataset": ("MomentBatch", "MomentDataset", "MomentSample", "collate_moments"),
    "features": (
        *("ConcatFeatureStore", "FeatureStore", "HDF5FeatureStore", "NormalizedFeatureStore"),
        *("NpyFeatureStore", "NpzFeatureStore", "PtFeatureStore", "open_feature_store"),
    ),
    "negatives": ("add_negatives",),
    "synthetic": ("SyntheticActivities", "SyntheticDiDeMo"),
    "synthetic_videos": ("ShapeAction", "ShapeVideo", "SyntheticVideos"),
    "timeline": ("ActionTimelineFeatures",),
    "track_features": ("TextTrackFeatures", "encode_text_track"),
}
_HOMES = {name: home for home, names in _LAZY.items() for name in names}

if not TYPE_CHECKING:  # type checkers see only the imports above
    __getattr__ = loaded_when_used(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
