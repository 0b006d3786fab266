"""Models, and the parts that only models use."""

from tmapdiff.models.decoder import MapDecoder, MapDiffusionDecoder
from tmapdiff.models.encoder import MapFeatureBuilder, MultimodalEncoder, TextEncoder
from tmapdiff.models.localizer import Localization, MomentLocalizer

__all__ = [  # in the order the data flows
    "Localization",
    "MapDecoder",
    "MapDiffusionDecoder",
    "MapFeatureBuilder",
    "MomentLocalizer",
    "MultimodalEncoder",
    "TextEncoder",
]
