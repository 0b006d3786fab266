"""Models and their parts."""

from tmapdiff.models.decoder import MapDiffusionDecoder
from tmapdiff.models.encoder import MapFeatureBuilder, MultimodalEncoder, TextEncoder
from tmapdiff.models.localizer import DenoisingStep, MomentLocalizer
from tmapdiff.models.map_decoders import ConvMapDecoder, TransformerMapDecoder
from tmapdiff.models.map_localizer import AnswerKind, Localization, MapLocalizer, Ranking
from tmapdiff.models.ms2dtan import MS2DTAN
from tmapdiff.models.protocols import (
    DenoisingRun,
    MapDecoder,
    MapEncoder,
    Objective,
    register_part,
)
from tmapdiff.models.similarity import SimilarityEncoder, SimilarityLocalizer
from tmapdiff.models.transformers_text import SentenceFeatures, TransformersTextEncoder

__all__ = [
    "MS2DTAN",
    "AnswerKind",
    "ConvMapDecoder",
    "DenoisingRun",
    "DenoisingStep",
    "Localization",
    "MapDecoder",
    "MapDiffusionDecoder",
    "MapEncoder",
    "MapFeatureBuilder",
    "MapLocalizer",
    "MomentLocalizer",
    "MultimodalEncoder",
    "Objective",
    "Ranking",
    "SentenceFeatures",
    "SimilarityEncoder",
    "SimilarityLocalizer",
    "TextEncoder",
    "TransformerMapDecoder",
    "TransformersTextEncoder",
    "register_part",
]
