"""Decoding videos, encoding frames, and extracting features into stores."""

from tmapdiff.video.decoding import (
    SampledFrame,
    VideoInfo,
    VideoReader,
    VideoSource,
    open_video,
    probe_video,
)
from tmapdiff.video.extraction import (
    ExtractionReport,
    VideoFeatures,
    VideoNote,
    encode_video,
    extract_features,
)
from tmapdiff.video.frame_encoder import FrameEncoder, FramePreprocessor
from tmapdiff.video.store_writer import FeatureStoreWriter
from tmapdiff.video.two_towers import TransformersFrameEncoder, load_frame_encoder

# In the order the data flows.
__all__ = [  # noqa: RUF022
    "VideoSource",
    "probe_video",
    "VideoInfo",
    "open_video",
    "VideoReader",
    "SampledFrame",
    "FramePreprocessor",
    "FrameEncoder",
    "TransformersFrameEncoder",
    "load_frame_encoder",
    "encode_video",
    "VideoFeatures",
    "extract_features",
    "ExtractionReport",
    "VideoNote",
    "FeatureStoreWriter",
]
