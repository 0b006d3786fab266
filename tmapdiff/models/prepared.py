"""Denoising runs: the decoders' `forward`, with everything that steps share computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import check_shape, message
from tmapdiff.errors import ArgumentError
from tmapdiff.kernels.map_conv import MapConvPlan
from tmapdiff.kernels.masking import fill_invalid
from tmapdiff.layers import (
    ConcatConditioning,
    GatedConv2d,
    MapTransformerLayer,
    MultiplyConditioning,
    StylizationBlock,
)
from tmapdiff.layers._modules import dtype_of, is_plain
from tmapdiff.layers.gated_conv import MapConv2d
from tmapdiff.layers.stylization import NoStylization
from tmapdiff.maps import MapGrid
from tmapdiff.models.map_decoders import ConvMapDecoder, TransformerMapDecoder


@dataclass(frozen=True)
class PreparedDecoder:
    """A denoising run, returned by `MapDiffusionDecoder.prepare`.

    Args:
        grid: The candidate moments.
        batch: Number of samples.
        steps: Number of timesteps.
        parts: The prepared run of each decoder.
        sequences: For Transformers, the cells of each decoder's sequence.
    """

    grid: MapGrid
    batch: int
    steps: int
    parts: "Sequence[PreparedMap | PreparedCells]"
    sequences: tuple[Tensor, ...] = ()

    def denoise(self, noisy: Tensor, step: int) -> Tensor:
        """Predict the clean maps at one of the prepared timesteps, as the decoder's call does.

        Args:
            noisy: Noisy maps of all scales, packed.
            step: Index of the timestep, from 0.

        Shape:
            - noisy: (B, cells)
            - returns: (B, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If `step` is out of range.
        """
        who = "MapDiffusionDecoder"
        _check_step(who, step, self.steps)
        check_shape(who, "noisy", noisy, f"B {self.grid.num_cells}", {"B": self.batch})
        noisy_maps = split_maps(noisy, self.grid, self.sequences)
        pairs = zip(self.parts, noisy_maps, strict=True)
        scores = [part.denoise(noisy_map, step) for part, noisy_map in pairs]
        return join_maps(scores, self.grid, self.sequences)


def split_maps(packed: Tensor, grid: MapGrid, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Split packed maps into those of each scale, (B, N_k, A), or sequences of cells, (B, T)."""
    return [packed[:, cells] for cells in sequences] if sequences else grid.unpack(packed)


def join_maps(maps: list[Tensor], grid: MapGrid, sequences: Sequence[Tensor]) -> Tensor:
    """Undo `split_maps`; cells of no sequence are 0."""
    if not sequences:
        return grid.pack(maps)
    packed = maps[0].new_zeros(maps[0].shape[0], grid.num_cells)
    for cells, scores in zip(sequences, maps, strict=True):
        packed = packed.index_copy(1, cells, scores)
    return packed


@dataclass(frozen=True)
class CalledDecoder:
    """A denoising run that prepares nothing and calls the decoder at each step."""

    decoder: nn.Module
    features: Sequence[Tensor]
    timesteps: Tensor
    num_clips: Tensor | None

    def denoise(self, noisy: Tensor, step: int) -> Tensor:
        """Predict the clean maps, as `PreparedDecoder.denoise`."""
        _check_step(type(self.decoder).__name__, step, len(self.timesteps))
        timestep = self.timesteps[step].expand(len(noisy))
        scores: Tensor = self.decoder(noisy, timestep, self.features, self.num_clips)
        return scores


def _check_step(who: str, step: int, steps: int) -> None:
    if not 0 <= step < steps:
        raise ArgumentError(message(who, f"step in 0 to {steps - 1}", step))


def is_preparable(decoder: nn.Module) -> bool:
    """Return whether a prepared run equals calls of the decoder.

    It bypasses `forward` of some layers, which must therefore not be subclassed or hooked.
    """
    parts: list[nn.Module]
    if is_plain(decoder, ConvMapDecoder):
        parts = [decoder.condition, decoder.fusion_style, *decoder.convs, *decoder.conv_styles]
    elif is_plain(decoder, TransformerMapDecoder):
        parts = [decoder.fusion_style, *decoder.layers]
        layers = [layer for layer in decoder.layers if isinstance(layer, MapTransformerLayer)]
        parts += [style for layer in layers for style in layer.styles]
        if not decoder.attends_to_features:
            parts.append(decoder.condition)
    else:
        return False
    return all(is_plain(part, *_KINDS) for part in parts)


_KINDS: tuple[type[nn.Module], ...] = (
    ConcatConditioning,
    MultiplyConditioning,
    GatedConv2d,
    MapTransformerLayer,
    StylizationBlock,
    NoStylization,
)


class PreparedMap:
    """A prepared run of a `ConvMapDecoder`; arguments are as for the decoder's call."""

    def __init__(
        self,
        decoder: ConvMapDecoder,
        features: Tensor,
        time_embedding: Tensor | None,
        mask: Tensor,
    ) -> None:
        self.decoder, self.mask = decoder, mask
        encoded = decoder.condition.encode_features(features, mask)
        # One per convolution, valid while weights stay.
        self.plans: list[MapConvPlan | None] = [None] * len(decoder.convs)
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            batch, _, rows, columns = encoded.shape
            for place, conv in enumerate(decoder.convs):
                if is_plain(conv.conv, MapConv2d):
                    shape = (batch, conv.in_channels, rows, columns)
                    self.plans[place] = conv.conv.plan(shape, dtype_of(decoder.head))
        first = self.plans[0]
        if first is not None and first.transform is not None:
            # The memory layout that the first convolution reads and later layers keep.
            inner = rearrange(encoded, "b c n a -> a n b c").contiguous()
            encoded = rearrange(inner, "a n b c -> b c n a")
        self.features = encoded
        self.fusion_style = decoder.fusion_style.project_time(time_embedding)
        self.conv_styles = [style.project_time(time_embedding) for style in decoder.conv_styles]

    def denoise(self, noisy: Tensor, step: int) -> Tensor:
        """Predict the clean map, (B, N_k, A)."""
        decoder, mask = self.decoder, self.mask
        x = decoder.condition.combine(noisy, self.features, mask)
        x = decoder.fusion_style.residual(x, _row(self.fusion_style, step), mask)
        parts = zip(decoder.convs, self.plans, decoder.conv_styles, self.conv_styles, strict=True)
        for conv, plan, style, projected in parts:
            x = conv(x, mask, plan, filled=True)
            x = style.residual(x, _row(projected, step), mask)
        return rearrange(decoder.head(x), "b 1 n a -> b n a").masked_fill(~mask, 0)


class PreparedCells:
    """A prepared run of a `TransformerMapDecoder`; arguments are as for the decoder's call."""

    def __init__(
        self,
        decoder: TransformerMapDecoder,
        features: Tensor,
        moments: Tensor,
        time_embedding: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        features, mask = features[..., None], None if mask is None else mask[..., None]
        self.decoder, self.mask = decoder, mask
        self.position = rearrange(decoder.embed_position(moments), "t c -> c t 1")
        self.features: Tensor | None = None
        self.contexts: list[Tensor | None] = [None] * len(decoder.layers)
        if decoder.attends_to_features:
            context = decoder.embed_features(features, mask) + self.position
            self.contexts = [layer.encode_context(context, mask) for layer in decoder.layers]
        else:
            self.features = decoder.condition.encode_features(features, mask)
        self.fusion_style = decoder.fusion_style.project_time(time_embedding)
        self.layer_styles = [
            [style.project_time(time_embedding) for style in layer.styles]
            for layer in decoder.layers
        ]

    def denoise(self, noisy: Tensor, step: int) -> Tensor:
        """Predict the clean maps, (B, T)."""
        decoder, mask, column = self.decoder, self.mask, noisy[..., None]
        if self.features is None:
            x = decoder.condition(fill_invalid(column[:, None], mask)) + self.position
        else:
            x = decoder.project(decoder.condition.combine(column, self.features, mask))
            x = x + self.position
        x = decoder.fusion_style.residual(x, _row(self.fusion_style, step), mask)
        for layer, context, styles in zip(
            decoder.layers, self.contexts, self.layer_styles, strict=True
        ):
            x = fill_invalid(x, mask)
            (attending, feeding), (first, second) = layer.styles, styles
            x = x + attending.branch(layer.attend(x, context, mask), _row(first, step), mask)
            x = x + feeding.branch(layer.feed(x), _row(second, step), mask)
        return decoder.score(x, mask)


def _row(style: Tensor, step: int) -> Tensor:
    return style[step : step + 1]  # one row for all samples
