"""Decoders of the map of one scale or several: convolutions, or attention between cells."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from einops import rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import check_choice, check_int, check_sizes
from tmapdiff.errors import ConfigError
from tmapdiff.kernels.masking import fill_invalid
from tmapdiff.layers import (
    ConcatConditioning,
    GatedConv2d,
    MapTransformerLayer,
    MomentPositionEmbedder,
    MultiplyConditioning,
    StylizationBlock,
)
from tmapdiff.layers._modules import dtype_of, module_list
from tmapdiff.layers.gated_conv import Gate
from tmapdiff.layers.pointwise import PointwiseConv2d
from tmapdiff.layers.stylization import Norm, NoStylization, add_style

Stylization = Literal["none", "fusion", "conv", "both"]
Conditioning = Literal[
    "concat", "multiply", "multiply-residual", "multiply-gated", "cross-attention"
]


class ConvMapDecoder(nn.Module):
    """Denoises the map of one scale by convolutions.

    The noisy map is combined with the map features. A stylization block ("fusion") follows, then
    gated convolutions, each with a stylization block ("conv"), then a 1x1 head.

    `feature_channels`, `channels`, `time_channels`, `kernel_sizes`, `conditioning`, `gate`,
    `stylization`, `norm`, `num_groups` and `dropout` are as for `MapDiffusionDecoder`.

    Shape:
        - noisy: (B, N_k, A)
        - features: (B, feature_channels, N_k, A)
        - time_embedding: (B, time_channels); None without stylization
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError, ConfigError: At construction, as its layers, or if `conditioning` is
            `cross-attention`.
        ShapeError: In the call, if a shape does not fit.

    Source: Zhang et al., arXiv 2401.08232, section 3.3.
    """

    def __init__(
        self,
        feature_channels: int,
        channels: int,
        time_channels: int,
        kernel_sizes: Sequence[int],
        conditioning: Conditioning = "concat",
        gate: Gate = "shared",
        stylization: Stylization = "both",
        norm: Norm = "group",
        num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        who = "ConvMapDecoder"

        def style(place: Stylization, width: int) -> StylizationBlock | NoStylization:
            if not _is_stylized(who, stylization, place):
                return NoStylization()
            return StylizationBlock(width, time_channels, norm, num_groups, dropout)

        kernels = check_sizes(who, "kernel_sizes", kernel_sizes)
        self.condition = _make_conditioning(who, conditioning, feature_channels, channels)
        widths = [self.condition.out_channels, *[channels] * len(kernels)]
        self.fusion_style = style("fusion", widths[0])
        layers = [
            (GatedConv2d(width, channels, kernel, gate), style("conv", channels))
            for width, kernel in zip(widths, kernels, strict=False)
        ]
        self.convs = module_list(conv for conv, _ in layers)
        self.conv_styles = module_list(block for _, block in layers)
        self.head = PointwiseConv2d(channels, 1)

    def forward(
        self, noisy: Tensor, features: Tensor, time_embedding: Tensor | None, mask: Tensor
    ) -> Tensor:
        """Predict the clean map; see the class."""
        x = self.condition(noisy, features, mask)
        x = add_style(self.fusion_style, x, time_embedding, mask)
        for conv, style in zip(self.convs, self.conv_styles, strict=True):
            x = conv(x, mask, filled=True)
            x = add_style(style, x, time_embedding, mask)
        return rearrange(self.head(x), "b 1 n a -> b n a").masked_fill(~mask, 0)


class TransformerMapDecoder(nn.Module):
    """Denoises the maps of one scale or several by attention between their cells.

    The noisy map is combined with the map features and with a position embedding of each cell's
    moment. A stylization block ("fusion") follows, then Transformer layers with stylization blocks
    ("conv", named after `ConvMapDecoder`'s), then a linear head. With `cross-attention`, the layers
    transform the noisy map, which attends to itself and to the map features.

    `feature_channels`, `channels`, `time_channels`, `num_layers`, `num_heads`, `conditioning`,
    `stylization`, `norm`, `num_groups` and `dropout` are as for `MapDiffusionDecoder`.

    Shape:
        - noisy: (B, T)
        - features: (B, feature_channels, T)
        - moments: (T, 2), start and end of each cell in clips
        - time_embedding: (B, time_channels); None without stylization
        - mask: (B, T), bool. Defaults to all True
        - returns: (B, T), 0 in invalid cells

    Raises:
        ArgumentError, ConfigError: At construction, as its layers.
        ShapeError: In the call, if a shape does not fit.

    Source: Zhang et al., arXiv 2401.08232, section 3.3 and Table 3.
    """

    def __init__(
        self,
        feature_channels: int,
        channels: int,
        time_channels: int,
        num_layers: int,
        num_heads: int = 8,
        conditioning: Conditioning = "concat",
        stylization: Stylization = "both",
        norm: Norm = "layer",
        num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        who = "TransformerMapDecoder"
        in_layers = _is_stylized(who, stylization, "conv")
        self.attends_to_features = conditioning == "cross-attention"
        self.condition: Any  # with cross-attention, the embedding of the noisy map
        if self.attends_to_features:
            self.condition = PointwiseConv2d(1, channels)
            self.project = PointwiseConv2d(feature_channels, channels)
        else:
            self.condition = _make_conditioning(who, conditioning, feature_channels, channels)
            self.project = PointwiseConv2d(self.condition.out_channels, channels)
        self.embed_position = MomentPositionEmbedder(channels)
        self.fusion_style: StylizationBlock | NoStylization = NoStylization()
        if _is_stylized(who, stylization, "fusion"):
            self.fusion_style = StylizationBlock(channels, time_channels, norm, num_groups, dropout)
        self.layers = module_list(
            MapTransformerLayer(
                channels,
                time_channels,
                num_heads,
                stylized=in_layers,
                norm=norm,
                num_groups=num_groups,
                dropout=dropout,
            )
            for _ in range(check_int(who, "num_layers", num_layers, at_least=1))
        )
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1))

    def forward(
        self,
        noisy: Tensor,
        features: Tensor,
        moments: Tensor,
        time_embedding: Tensor | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Predict the clean maps; see the class."""
        # A sequence of cells is a map of one column.
        noisy, features = noisy[..., None], features[..., None]
        mask = None if mask is None else mask[..., None]
        position = rearrange(self.embed_position(moments), "t c -> c t 1")
        context = None
        if self.attends_to_features:
            x = self.condition(fill_invalid(noisy[:, None], mask)) + position
            context = self.embed_features(features, mask) + position
        else:
            x = self.project(self.condition(noisy, features, mask)) + position
        x = add_style(self.fusion_style, x, time_embedding, mask)
        for layer in self.layers:
            x = layer(x, time_embedding, context, mask)
        return self.score(x, mask)

    def embed_features(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed the map features for cross-attention; (B, feature_channels, T, 1)."""
        # Entries of unit-norm features are about 1 / sqrt(channels), those of positions about 1.
        scaled = fill_invalid(features, mask) * features.shape[1] ** 0.5
        return self.project(scaled.to(dtype_of(self.project)))

    def score(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the scores from the last layer's cells `x`, (B, channels, T, 1)."""
        scores = rearrange(self.head(rearrange(x, "b c t 1 -> b t c")), "b t 1 -> b t")
        return scores if mask is None else scores.masked_fill(~mask[..., 0], 0)


def _is_stylized(who: str, stylization: Stylization, place: Stylization) -> bool:
    check_choice(who, "stylization", stylization, get_args(Stylization))
    return stylization in (place, "both")


def _make_conditioning(
    who: str, conditioning: str, feature_channels: int, channels: int
) -> ConcatConditioning | MultiplyConditioning:
    check_choice(who, "conditioning", conditioning, get_args(Conditioning))
    if conditioning == "cross-attention":
        raise ConfigError(
            f"{who}: expected another conditioning than 'cross-attention'. "
            "It needs architecture 'transformer'."
        )
    if conditioning == "concat":
        return ConcatConditioning(feature_channels, channels)
    product = conditioning.removeprefix("multiply").removeprefix("-") or "plain"
    return MultiplyConditioning(feature_channels, channels, product)  # type: ignore[arg-type]
