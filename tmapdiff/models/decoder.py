"""The denoiser: condition-injected decoders of the maps of all scales."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from tmapdiff._core.checks import (
    check_bool,
    check_choice,
    check_int,
    check_length,
    check_shape,
    check_sizes,
)
from tmapdiff.errors import ConfigError
from tmapdiff.layers import TimestepEmbedder
from tmapdiff.layers.gated_conv import Gate
from tmapdiff.layers.stylization import Norm
from tmapdiff.maps import MapGrid
from tmapdiff.models._base import MapModel
from tmapdiff.models.map_decoders import (
    Conditioning,
    ConvMapDecoder,
    Stylization,
    TransformerMapDecoder,
)
from tmapdiff.models.prepared import PreparedDecoder

Architecture = Literal["conv", "transformer"]


class MapDiffusionDecoder(MapModel):
    """Predicts clean maps from noisy ones, given the timestep and the map features.

    One decoder a scale, of the same architecture with weights of its own, or one Transformer over
    the cells of all scales. The prediction is a score a cell, which the objective turns into IoU
    (`tmapdiff.losses`).

    Args:
        num_clips: Clips of the finest scale.
        num_anchors: Durations a scale.
        num_scales: Scales.
        feature_channels: Channels of the map features.
        channels: Channels inside.
        time_channels: Channels of the time embedding.
        architecture: Gated convolutions over each map, or attention between its cells (Table 3).
        conditioning: How noisy map H and map features F meet (Table 3). `concat` is [H, F],
            `multiply` H * F, `multiply-residual` H * (1 + F), `multiply-gated` H * sigmoid(F), each
            of linear maps of both; with `cross-attention`, of the Transformer only, H attends to
            H and F.
        kernel_sizes: Of `conv`: kernel of each convolution, first to last; odd.
        gate: Of `conv`: `shared` has one gate a cell, `channel` one a cell and channel.
        num_layers: Of `transformer`: layers.
        num_heads: Of `transformer`: heads of the attention; divides `channels`.
        joint_scales: Of `transformer`: whether the cells of all scales are one sequence.
        stylization: Where the timestep comes in: after the fusion of noisy map and features, after
            each layer ("conv"), at both places, or at none (Table 5).
        norm: Normalisation in the stylization blocks, `group` or `layer`.
        num_groups: Groups of `group`; divides the channels that are normalised.
        dropout: Share of activations dropped in training, in stylization blocks and Transformer
            layers.

    Raises:
        ArgumentError: If a size is too small, or `joint_scales` is not True or False.
        ConfigError: If sizes do not divide, a kernel is even, a choice is unknown, or `conv` is to
            use cross-attention or join scales.

    Source: Zhang et al., arXiv 2401.08232, section 3.3.

    Example:
        >>> decoder = MapDiffusionDecoder(32, 8, 3, feature_channels=64, channels=64)
        >>> features = [torch.randn(2, 64, rows, columns) for rows, columns in decoder.grid.shapes]
        >>> noisy = torch.randn(2, decoder.grid.num_cells)
        >>> decoder(noisy, torch.tensor([999, 10]), features).shape
        torch.Size([2, 448])
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        num_clips: int = 64,
        num_anchors: int = 16,
        num_scales: int = 3,
        feature_channels: int = 512,
        channels: int = 512,
        time_channels: int = 512,
        architecture: Architecture = "conv",
        conditioning: Conditioning = "concat",
        kernel_sizes: Sequence[int] = (17, 17),
        gate: Gate = "shared",
        num_layers: int = 4,
        num_heads: int = 8,
        joint_scales: bool = False,
        stylization: Stylization = "both",
        norm: Norm = "group",
        num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        who = "MapDiffusionDecoder"
        self.grid = MapGrid(num_clips, num_anchors, num_scales)
        check_int(who, "feature_channels", feature_channels, at_least=1)
        check_int(who, "channels", channels, at_least=1)
        check_bool(who, "joint_scales", joint_scales)
        check_choice(who, "architecture", architecture, get_args(Architecture))
        # Fields of the other architecture are saved, too.
        if architecture == "conv":
            check_int(who, "num_layers", num_layers, at_least=1)
            check_int(who, "num_heads", num_heads, at_least=1)
        else:
            check_sizes(who, "kernel_sizes", kernel_sizes)
        # Without stylization nothing would train it.
        self.embed_timestep = None if stylization == "none" else TimestepEmbedder(time_channels)
        widths = (feature_channels, channels, time_channels)
        self.decoders: Any = nn.ModuleList()  # of ConvMapDecoder or TransformerMapDecoder
        self.gradient_checkpointing = False
        if architecture == "conv" and joint_scales:
            raise ConfigError(
                f"{who}: expected joint_scales to be off. It needs architecture 'transformer'."
            )
        for _ in range(1 if joint_scales else num_scales):
            decoder: nn.Module
            if architecture == "conv":
                decoder = ConvMapDecoder(
                    *widths,
                    kernel_sizes,
                    conditioning,
                    gate,
                    stylization,
                    norm,
                    num_groups,
                    dropout,
                )
            else:
                decoder = TransformerMapDecoder(
                    *widths,
                    num_layers,
                    num_heads,
                    conditioning,
                    stylization,
                    norm,
                    num_groups,
                    dropout,
                )
            self.decoders.append(decoder)

    def forward(
        self,
        noisy: Tensor,
        timestep: Tensor,
        features: Sequence[Tensor],
        num_clips: Tensor | None = None,
    ) -> Tensor:
        """Predict the clean maps.

        Args:
            noisy: Noisy maps of all scales, packed.
            timestep: Diffusion timestep of each sample.
            features: Map features, one tensor a scale, finest first.
            num_clips: Clips of each video, when they differ. Maps may then be of another number of
                clips than the configuration's.

        Shape:
            - noisy: (B, cells)
            - timestep: (B,), integer
            - features: K tensors (B, feature_channels, N_k, A)
            - num_clips: (B,), integer
            - returns: (B, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ConfigError: If maps of another size do not divide into the scales.
        """
        sizes = check_shape("MapDiffusionDecoder", "noisy", noisy, "B cells")
        check_shape("MapDiffusionDecoder", "timestep", timestep, "B", sizes)
        prepared = self.prepare(features, timestep, num_clips)
        return self._denoise(noisy, prepared, prepared.styles)

    def prepare(
        self, features: Sequence[Tensor], timesteps: Tensor, num_clips: Tensor | None = None
    ) -> PreparedDecoder:
        """Compute what does not depend on the noisy maps, once for a whole run of steps.

        Besides what there is to know of map features and timesteps, these are, without gradients,
        the spectra of kernels: the weights are taken to stay as they are until the next call.

        Args:
            features: Map features, one tensor a scale, finest first.
            timesteps: The timesteps of the run, in their order.
            num_clips: Clips of each video, when they differ; as for the call.

        Shape:
            - features: K tensors (B, feature_channels, N_k, A)
            - timesteps: (S,), integer
            - num_clips: (B,), integer

        Raises:
            ShapeError: If a shape does not fit.
            ConfigError: If maps of another size do not divide into the scales.
        """
        who = "MapDiffusionDecoder"
        check_length(who, "features", features, self.grid.num_scales)
        grid = self.grid
        if num_clips is not None:
            check_shape(who, "features[0]", features[0], "B C N A")
            grid = grid.resized(features[0].shape[2])
        sizes: dict[str, int] = {}
        for scale, (rows, columns) in enumerate(grid.shapes):
            axes = f"B {self.config.feature_channels} {rows} {columns}"
            sizes = check_shape(who, f"features[{scale}]", features[scale], axes, sizes)
        steps = check_shape(who, "timesteps", timesteps, "S")["S"]
        if num_clips is not None:
            check_shape(who, "num_clips", num_clips, "B", sizes)
        embedding = None if self.embed_timestep is None else self.embed_timestep(timesteps)
        styles = [decoder.styles(embedding) for decoder in self.decoders]
        if self.config.architecture == "conv":
            maps = [
                decoder.prepare(features[scale], grid.mask(scale, features[0].device, num_clips))
                for scale, decoder in enumerate(self.decoders)
            ]
            return PreparedDecoder(self, grid, sizes["B"], steps, maps, styles)
        return self._prepare_cells(grid, steps, features, num_clips, styles)

    def _denoise(
        self, noisy: Tensor, prepared: PreparedDecoder, styles: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        grid = prepared.grid
        sizes = {"B": prepared.batch}
        check_shape("MapDiffusionDecoder", "noisy", noisy, f"B {grid.num_cells}", sizes)
        parts = zip(self.decoders, prepared.maps, styles, strict=True)
        if self.config.architecture == "conv":
            maps = grid.unpack(noisy)
            return grid.pack(
                [
                    self._run(decoder, maps[scale], one, style)
                    for scale, (decoder, one, style) in enumerate(parts)
                ]
            )
        scores = noisy.new_zeros(noisy.shape)
        for (decoder, one, style), cells in zip(parts, prepared.cells, strict=True):
            found = self._run(decoder, noisy[:, cells], one, style)
            scores = scores.to(found.dtype).index_copy(1, cells, found)
        return scores

    def _run(self, decoder: Any, noisy: Tensor, prepared: Any, styles: Sequence[Tensor]) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            run: Any = self._gradient_checkpointing_func
            return run(decoder.denoise, noisy, prepared, styles)
        return decoder.denoise(noisy, prepared, styles)

    def _prepare_cells(
        self,
        grid: MapGrid,
        steps: int,
        features: Sequence[Tensor],
        num_clips: Tensor | None,
        styles: list[list[Tensor]],
    ) -> PreparedDecoder:
        device, scales = features[0].device, range(grid.num_scales)
        packed_features = torch.cat([one.flatten(2) for one in features], dim=-1)
        moments = grid.packed_moments(device)
        mask = None if num_clips is None else grid.packed_mask(device, num_clips)
        sequences = [scales] if self.config.joint_scales else [[scale] for scale in scales]
        # The sequence holds valid cells only: the others would cost as much.
        cells = [torch.tensor(grid.valid_cells(sequence), device=device) for sequence in sequences]
        maps = [
            decoder.prepare(
                packed_features[:, :, one], moments[one], None if mask is None else mask[:, one]
            )
            for decoder, one in zip(self.decoders, cells, strict=True)
        ]
        return PreparedDecoder(self, grid, len(packed_features), steps, maps, styles, cells)
