"""What denoises the map of one scale, or of several: convolutions, or attention between cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import check_choice, check_int, check_shape, check_sizes
from tmapdiff.errors import ConfigError
from tmapdiff.kernels.map_conv import MapConvPlan, map_conv
from tmapdiff.kernels.masking import check_map_features, fill_invalid
from tmapdiff.layers import (
    ConcatConditioning,
    GatedConv2d,
    MapTransformerLayer,
    MomentPositionEmbedder,
    MultiplyConditioning,
    StylizationBlock,
)
from tmapdiff.layers.gated_conv import Gate
from tmapdiff.layers.pointwise import PointwiseConv2d
from tmapdiff.layers.stylization import Norm

Stylization = Literal["none", "fusion", "conv", "both"]
Conditioning = Literal[
    "concat", "multiply", "multiply-residual", "multiply-gated", "cross-attention"
]


class ConvMapDecoder(nn.Module):
    """Denoises the map of one scale by convolutions.

    Noisy map and map features meet; then a stylization block ("fusion"); then layers of gated
    convolution, each followed by a stylization block ("conv"); then a 1x1 head.

    Args:
        feature_channels: Channels of the map features.
        channels: Channels inside.
        time_channels: Channels of the time embedding.
        kernel_sizes: Kernel of each convolution, first to last.
        conditioning: How noisy map and map features meet; not `cross-attention`.
        gate: As in `GatedConv2d`.
        stylization: Where stylization blocks are.
        norm: As in `StylizationBlock`.
        num_groups: As in `StylizationBlock`.
        dropout: As in `StylizationBlock`.

    Shape:
        - noisy: (B, N_k, A)
        - features: (B, feature_channels, N_k, A)
        - time_embedding: (B, time_channels); None without stylization
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError, ConfigError: As its parts, or if `conditioning` needs attention, at
            construction.
        ShapeError: If a shape does not fit, in the call.

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
        check_choice(who, "stylization", stylization, get_args(Stylization))

        def style(width: int, *, when: str) -> StylizationBlock | None:
            if stylization not in (when, "both"):
                return None
            return StylizationBlock(width, time_channels, norm, num_groups, dropout)

        self.condition: Any = _make_conditioning(who, conditioning, feature_channels, channels)
        width = self.condition.out_channels
        self.fusion_style = style(width, when="fusion")
        self.convs: Any = nn.ModuleList()  # of GatedConv2d
        self.conv_styles: Any = nn.ModuleList()  # of StylizationBlock
        for kernel_size in check_sizes(who, "kernel_sizes", kernel_sizes):
            self.convs.append(GatedConv2d(width, channels, kernel_size, gate))
            block = style(channels, when="conv")
            if block is not None:
                self.conv_styles.append(block)
            width = channels
        self.head = PointwiseConv2d(channels, 1)

    def forward(
        self, noisy: Tensor, features: Tensor, time_embedding: Tensor | None, mask: Tensor
    ) -> Tensor:
        """Predict the clean map; see the class."""
        return self.denoise(noisy, self.prepare(features, mask), self.styles(time_embedding))

    @property
    def is_foldable(self) -> bool:
        """Whether the first convolution takes noisy map and map features apart from each other.

        It is linear in both where nothing lies between: then it goes over the map features once,
        and over the noisy map as one channel instead of `channels`.
        """
        return isinstance(self.condition, ConcatConditioning) and self.fusion_style is None

    def prepare(self, features: Tensor, mask: Tensor) -> "PreparedMap":
        """Compute what depends neither on the noisy map nor on the timestep."""
        width = self.condition.feature_channels
        check_map_features(type(self).__name__, features, mask, width)
        prepared = self.condition.prepare(features, mask)
        batch, _, *shape = prepared.shape
        plans: list[MapConvPlan | None] = [None] * len(self.convs)
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            sizes = [conv.in_channels for conv in self.convs]
            dtype = self.head.weight.dtype
            first = 1 if self.is_foldable else 0
            for place in range(first, len(self.convs)):
                maps = (batch, sizes[place], *shape)
                plans[place] = self.convs[place].plan(maps, dtype)
        folded = None
        if self.is_foldable:
            prepared, folded = self._fold(prepared, mask)
        elif plans[0] is not None and plans[0].transform is not None:
            # In the order that the first convolution reads, and all that follows keeps.
            prepared = prepared.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
        return PreparedMap(mask=mask, features=prepared, folded=folded, plans=plans)

    def styles(self, time_embedding: Tensor | None) -> list[Tensor]:
        """Compute what depends on the timestep alone, for each stylization block in their order.

        Shape:
            - time_embedding: (B, time_channels); None without stylization
            - returns: tensors (B, 2 * channels of the block)
        """
        blocks = [] if self.fusion_style is None else [self.fusion_style]
        return [block.style(time_embedding) for block in (*blocks, *self.conv_styles)]

    def denoise(self, noisy: Tensor, prepared: "PreparedMap", styles: Sequence[Tensor]) -> Tensor:
        """Predict the clean map; `prepare` gave `prepared`, and `styles` the styles.

        Shape:
            - noisy: (B, N_k, A)
            - styles: tensors (B, 2 * channels of the block), or (1, ...) for all samples
            - returns: (B, N_k, A), 0 in invalid cells
        """
        mask, plans, styles = prepared.mask, prepared.plans, list(styles)
        batch, _, rows, columns = prepared.features.shape
        check_shape(type(self).__name__, "noisy", noisy, f"B {rows} {columns}", {"B": batch})
        if prepared.folded is None:
            x = self.condition.meet(noisy, prepared.features, mask)
            if self.fusion_style is not None:
                x = self.fusion_style.add_style(x, styles.pop(0), mask)
        for place, conv in enumerate(self.convs):
            if place == 0 and prepared.folded is not None:
                one = fill_invalid(noisy[:, None], mask).to(prepared.folded.dtype)
                convolved = prepared.features + map_conv(one, prepared.folded)
            else:
                convolved = conv.convolve(x, plans[place])  # 0 in invalid cells, as all before it
            x = conv.gated(convolved, mask)
            if self.conv_styles:
                x = self.conv_styles[place].add_style(x, styles.pop(0), mask)
        return rearrange(self.head(x), "b 1 n a -> b n a").masked_fill(~mask, 0)

    def _fold(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve the map features, and find the kernel that is left for the noisy map.

        The noisy map is embedded as `e * noisy + b`. Convolving it, by linearity, is convolving the
        noisy map with `sum_c e_c W_c` and the mask with `sum_c b_c W_c`.
        """
        conv, embed = self.convs[0].conv, self.condition.embed
        of_noisy, of_features = conv.weight.split(
            [self.condition.channels, self.condition.feature_channels], dim=1
        )
        folded = einsum(embed.weight[:, :, 0, 0], of_noisy, "c one, d c n a -> d one n a")
        of_mask = einsum(embed.bias, of_noisy, "c, d c n a -> d n a")[:, None]
        valid = (mask if mask.dim() == 3 else mask[None]).to(folded.dtype)[:, None]
        constant = map_conv(valid, of_mask, conv.bias)
        return map_conv(features.to(folded.dtype), of_features) + constant, folded


@dataclass(frozen=True)
class PreparedMap:
    """What a `ConvMapDecoder` computes once for all timesteps.

    Args:
        mask: Valid cells, (N_k, A) or (B, N_k, A).
        features: What the map features give before they meet the noisy map, (B, C, N_k, A); if
            `folded`, their part of the first convolution.
        folded: Kernel of the first convolution over the noisy map, (D, 1, S, S), if that is apart.
        plans: How each convolution is done, with weights that stay; None where that is not known.
    """

    mask: Tensor
    features: Tensor
    folded: Tensor | None
    plans: Sequence[MapConvPlan | None]


class TransformerMapDecoder(nn.Module):
    """Denoises maps by attention between their cells, of one scale or of several.

    Noisy map and map features meet, and learn which candidate moment each cell is; then a
    stylization block ("fusion"); then Transformer layers with stylization blocks ("conv", for the
    place that convolutions have in the other decoder); then a linear head. With `cross-attention`
    the layers go over the noisy map alone, and attend to it and to the map features.

    Args:
        feature_channels: Channels of the map features.
        channels: Channels inside.
        time_channels: Channels of the time embedding.
        num_layers: Transformer layers.
        num_heads: Heads of the attention; divides `channels`.
        conditioning: How noisy map and map features meet.
        stylization: Where stylization blocks are.
        norm: As in `StylizationBlock`.
        num_groups: As in `StylizationBlock`.
        dropout: Share of activations dropped in training.

    Shape:
        - noisy: (B, T)
        - features: (B, feature_channels, T)
        - moments: (T, 2), start and end of each cell in clips
        - time_embedding: (B, time_channels); None without stylization
        - mask: (B, T), bool; all cells are valid if None
        - returns: (B, T), 0 in invalid cells

    Raises:
        ArgumentError, ConfigError: As its parts, at construction.
        ShapeError: If a shape does not fit, in the call.

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
        check_choice(who, "stylization", stylization, get_args(Stylization))
        self.attends_to_features = conditioning == "cross-attention"
        self.condition: Any
        if self.attends_to_features:
            self.condition = PointwiseConv2d(1, channels)
            self.project = PointwiseConv2d(feature_channels, channels)
        else:
            self.condition = _make_conditioning(who, conditioning, feature_channels, channels)
            self.project = PointwiseConv2d(self.condition.out_channels, channels)
        self.embed_position = MomentPositionEmbedder(channels)
        self.fusion_style = None
        if stylization in ("fusion", "both"):
            self.fusion_style = StylizationBlock(channels, time_channels, norm, num_groups, dropout)
        self.layers: Any = nn.ModuleList(
            MapTransformerLayer(
                channels,
                time_channels,
                num_heads,
                stylized=stylization in ("conv", "both"),
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
        prepared = self.prepare(features, moments, mask)
        return self.denoise(noisy, prepared, self.styles(time_embedding))

    # Layers take maps: a sequence of cells is a map of one column.

    def prepare(
        self, features: Tensor, moments: Tensor, mask: Tensor | None = None
    ) -> "PreparedCells":
        """Compute what depends neither on the noisy map nor on the timestep."""
        column = None if mask is None else mask[..., None]
        features = features[..., None]
        position = rearrange(self.embed_position(moments), "t c -> c t 1")
        if not self.attends_to_features:
            check_map_features(
                type(self).__name__, features, column, self.condition.feature_channels
            )
            return PreparedCells(column, position, self.condition.prepare(features, column), [])
        # Features of unit norm are about 1 / sqrt(channels) each, positions about 1.
        scaled = fill_invalid(features, column) * features.shape[1] ** 0.5
        context = self.project(scaled.to(self.project.weight.dtype)) + position
        encoded = [layer.encode_context(context, column) for layer in self.layers]
        return PreparedCells(column, position, None, encoded)

    def styles(self, time_embedding: Tensor | None) -> list[Tensor]:
        """Compute what depends on the timestep alone, for each stylization block in their order.

        Shape:
            - time_embedding: (B, time_channels); None without stylization
            - returns: tensors (B, 2 * channels)
        """
        if time_embedding is None:
            return []
        fusion = [] if self.fusion_style is None else [self.fusion_style.style(time_embedding)]
        layers = [layer.make_styles(time_embedding) for layer in self.layers]
        return [*fusion, *(style for styles in layers for style in styles)]

    def denoise(self, noisy: Tensor, prepared: "PreparedCells", styles: Sequence[Tensor]) -> Tensor:
        """Predict the clean maps; `prepare` gave `prepared`, and `styles` the styles.

        Shape:
            - noisy: (B, T)
            - styles: tensors (B, 2 * channels), or (1, 2 * channels) for all samples
            - returns: (B, T), 0 in invalid cells
        """
        mask, styles = prepared.mask, list(styles)
        if prepared.features is None:
            noisy_cells = rearrange(noisy, "b t -> b 1 t 1")
            x = self.condition(fill_invalid(noisy_cells, mask)) + prepared.position
        else:
            met = self.condition.meet(noisy[..., None], prepared.features, mask)
            x = self.project(met) + prepared.position
        if self.fusion_style is not None:
            x = x + self.fusion_style.apply_style(x, styles.pop(0), mask)
        of_layer = len(styles) // len(self.layers)
        for place, layer in enumerate(self.layers):
            encoded = prepared.contexts[place] if prepared.contexts else None
            x = layer.apply_styles(x, styles[place * of_layer :][:of_layer], encoded, mask)
        scores = rearrange(self.head(rearrange(x, "b c t 1 -> b t c")), "b t 1 -> b t")
        return scores if mask is None else scores.masked_fill(~mask[..., 0], 0)


@dataclass(frozen=True)
class PreparedCells:
    """What a `TransformerMapDecoder` computes once for all timesteps.

    Args:
        mask: Valid cells, (B, T, 1). All, if None.
        position: Embedded positions, (C, T, 1).
        features: What the map features give before they meet the noisy map, (B, C, T, 1); None
            where it attends to them.
        contexts: Keys and values of the map features, for each layer that attends to them.
    """

    mask: Tensor | None
    position: Tensor
    features: Tensor | None
    contexts: Sequence[Tensor]


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
