"""Annotations, features and words, from files to training batches.

Names load when they are first used, as annotations are read without torch.
"""

from typing import TYPE_CHECKING

from tmapdiff._core.lazy import loaded_when_used

if TYPE_CHECKING:
    from tmapdiff.data.activitynet import load_activitynet_captions as load_activitynet_captions
    from tmapdiff.data.activitynet import load_tacos as load_tacos
    from tmapdiff.data.annotations import Annotation as Annotation
    from tmapdiff.data.annotations import AnnotationReport as AnnotationReport
    from tmapdiff.data.annotations import AnnotationSet as AnnotationSet
    from tmapdiff.data.charades import CharadesVideo as CharadesVideo
    from tmapdiff.data.charades import load_charades_actions as load_charades_actions
    from tmapdiff.data.charades import load_charades_sta as load_charades_sta
    from tmapdiff.data.clips import pool_features as pool_features
    from tmapdiff.data.dataset import MomentBatch as MomentBatch
    from tmapdiff.data.dataset import MomentDataset as MomentDataset
    from tmapdiff.data.dataset import MomentSample as MomentSample
    from tmapdiff.data.dataset import collate_moments as collate_moments
    from tmapdiff.data.didemo import SEGMENT_SECONDS as SEGMENT_SECONDS
    from tmapdiff.data.didemo import keep_consensus as keep_consensus
    from tmapdiff.data.didemo import load_didemo as load_didemo
    from tmapdiff.data.features import ConcatFeatureStore as ConcatFeatureStore
    from tmapdiff.data.features import FeatureStore as FeatureStore
    from tmapdiff.data.features import HDF5FeatureStore as HDF5FeatureStore
    from tmapdiff.data.features import NormalizedFeatureStore as NormalizedFeatureStore
    from tmapdiff.data.features import NpyFeatureStore as NpyFeatureStore
    from tmapdiff.data.features import NpzFeatureStore as NpzFeatureStore
    from tmapdiff.data.features import PtFeatureStore as PtFeatureStore
    from tmapdiff.data.features import open_feature_store as open_feature_store
    from tmapdiff.data.formats import AnnotationFile as AnnotationFile
    from tmapdiff.data.formats import AnnotationFormat as AnnotationFormat
    from tmapdiff.data.formats import Split as Split
    from tmapdiff.data.formats import find_annotations as find_annotations
    from tmapdiff.data.formats import find_split as find_split
    from tmapdiff.data.formats import load_annotations as load_annotations
    from tmapdiff.data.formats import load_vslnet as load_vslnet
    from tmapdiff.data.moment_jsonl import load_moment_jsonl as load_moment_jsonl
    from tmapdiff.data.negatives import add_negatives as add_negatives
    from tmapdiff.data.submissions import Prediction as Prediction
    from tmapdiff.data.submissions import read_submission as read_submission
    from tmapdiff.data.submissions import write_submission as write_submission
    from tmapdiff.data.synthetic import SyntheticActivities as SyntheticActivities
    from tmapdiff.data.synthetic import SyntheticDiDeMo as SyntheticDiDeMo
    from tmapdiff.data.synthetic_videos import ShapeAction as ShapeAction
    from tmapdiff.data.synthetic_videos import ShapeVideo as ShapeVideo
    from tmapdiff.data.synthetic_videos import SyntheticVideos as SyntheticVideos
    from tmapdiff.data.text_tracks import Cue as Cue
    from tmapdiff.data.text_tracks import load_text_track as load_text_track
    from tmapdiff.data.timeline import ActionTimelineFeatures as ActionTimelineFeatures
    from tmapdiff.data.track_features import TextTrackFeatures as TextTrackFeatures
    from tmapdiff.data.track_features import encode_text_track as encode_text_track
    from tmapdiff.data.words import GloveVectors as GloveVectors
    from tmapdiff.data.words import Vocabulary as Vocabulary
    from tmapdiff.data.words import load_glove as load_glove
    from tmapdiff.data.words import tokenize as tokenize

# Home module of each public name, in the order the data flows.
_NAMES = {
    "annotations": "Annotation AnnotationReport AnnotationSet",
    "charades": "load_charades_sta load_charades_actions CharadesVideo",
    "didemo": "load_didemo SEGMENT_SECONDS keep_consensus",
    "activitynet": "load_activitynet_captions load_tacos",
    "moment_jsonl": "load_moment_jsonl",
    "formats": """
        load_vslnet AnnotationFormat Split AnnotationFile find_annotations find_split
        load_annotations
    """,
    "negatives": "add_negatives",
    "synthetic": "SyntheticActivities SyntheticDiDeMo",
    "synthetic_videos": "SyntheticVideos ShapeVideo ShapeAction",
    "features": """
        FeatureStore HDF5FeatureStore NpyFeatureStore NpzFeatureStore PtFeatureStore
        NormalizedFeatureStore ConcatFeatureStore open_feature_store
    """,
    "timeline": "ActionTimelineFeatures",
    "text_tracks": "load_text_track Cue",
    "track_features": "encode_text_track TextTrackFeatures",
    "clips": "pool_features",
    "words": "tokenize Vocabulary GloveVectors load_glove",
    "dataset": "MomentDataset MomentSample collate_moments MomentBatch",
    "submissions": "Prediction write_submission read_submission",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]

if not TYPE_CHECKING:  # type checkers see only the imports above
    __getattr__ = loaded_when_used(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
