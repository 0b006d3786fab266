"""Building blocks for maps, independent of any model or data set."""

from tmapdiff.kernels.masking import masked_group_norm
from tmapdiff.layers.attention import MapTransformerLayer, MomentPositionEmbedder
from tmapdiff.layers.conditioning import ConcatConditioning, MultiplyConditioning
from tmapdiff.layers.gated_conv import GatedConv2d, GatedConv2dStack
from tmapdiff.layers.stylization import StylizationBlock, TimestepEmbedder

__all__ = [  # in the order the data flows
    "ConcatConditioning",
    "GatedConv2d",
    "GatedConv2dStack",
    "MapTransformerLayer",
    "MomentPositionEmbedder",
    "MultiplyConditioning",
    "StylizationBlock",
    "TimestepEmbedder",
    "masked_group_norm",
]
