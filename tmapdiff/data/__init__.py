"""Annotations, features and words: from files to the batches that a model trains on."""

from tmapdiff.data.annotations import Annotation, AnnotationReport, AnnotationSet, DroppedLine
from tmapdiff.data.charades import CharadesVideo, load_charades_actions, load_charades_sta
from tmapdiff.data.dataset import MomentBatch, MomentDataset, MomentSample, collate_moments
from tmapdiff.data.features import (
    FeatureStore,
    HDF5FeatureStore,
    NpyFeatureStore,
    NpzFeatureStore,
    open_feature_store,
    pool_features,
)
from tmapdiff.data.synthetic import SyntheticActivities
from tmapdiff.data.timeline import ActionTimelineFeatures
from tmapdiff.data.words import GloveVectors, Vocabulary, load_glove, tokenize

__all__ = [  # noqa: RUF022  in the order the data flows
    "Annotation",
    "AnnotationReport",
    "AnnotationSet",
    "DroppedLine",
    "load_charades_sta",
    "SyntheticActivities",
    "CharadesVideo",
    "load_charades_actions",
    "FeatureStore",
    "HDF5FeatureStore",
    "NpyFeatureStore",
    "NpzFeatureStore",
    "open_feature_store",
    "ActionTimelineFeatures",
    "pool_features",
    "tokenize",
    "Vocabulary",
    "GloveVectors",
    "load_glove",
    "MomentDataset",
    "MomentSample",
    "collate_moments",
    "MomentBatch",
]
