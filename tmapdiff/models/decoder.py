"""The denoiser: one condition-injected decoder a scale."""

from collections.abc import Sequence
from typing import Literal

from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._checks import check_choice, check_length, check_shape, check_sizes
from tmapdiff.layers import ConcatConditioning, GatedConv2d, StylizationBlock, TimestepEmbedder
from tmapdiff.layers.gated_conv import Gate
from tmapdiff.layers.stylization import Norm
from tmapdiff.maps import MapGrid
from tmapdiff.models._base import MapModel

Stylization = Literal["none", "fusion", "conv", "both"]


class MapDecoder(nn.Module):
    """Denoises the map of one scale.

    Noisy map and map features are concatenated; then a stylization block ("fusion"); then layers of
    gated convolution, each followed by a stylization block ("conv"); then a 1x1 head.

    Args:
        feature_channels: Channels of the map features.
        channels: Channels inside.
        time_channels: Channels of the time embedding.
        kernel_sizes: Kernel of each convolution, first to last.
        gate: As in `GatedConv2d`.
        stylization: Where stylization blocks are.
        norm: As in `StylizationBlock`.
        num_groups: As in `StylizationBlock`.
        dropout: As in `StylizationBlock`.

    Shape:
        - noisy: (B, N_k, A)
        - features: (B, feature_channels, N_k, A)
        - time_embedding: (B, time_channels); None without stylization
        - mask: (N_k, A), bool
        - returns: (B, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError, ConfigError: As its parts, at construction.
        ShapeError: If a shape does not fit, in the call.

    Source: Zhang et al., arXiv 2401.08232, section 3.3.
    """

    def __init__(
        self,
        feature_channels: int,
        channels: int,
        time_channels: int,
        kernel_sizes: Sequence[int],
        gate: Gate = "shared",
        stylization: Stylization = "both",
        norm: Norm = "group",
        num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("MapDecoder", "stylization", stylization, Stylization.__args__)  # type: ignore[attr-defined]

        def style(width: int, *, when: str) -> StylizationBlock | None:
            if stylization not in (when, "both"):
                return None
            return StylizationBlock(width, time_channels, norm, num_groups, dropout)

        self.condition = ConcatConditioning(feature_channels, channels)
        width = self.condition.out_channels
        self.fusion_style = style(width, when="fusion")
        self.convs = nn.ModuleList()
        self.conv_styles = nn.ModuleList()
        for kernel_size in check_sizes("MapDecoder", "kernel_sizes", kernel_sizes):
            self.convs.append(GatedConv2d(width, channels, kernel_size, gate))
            block = style(channels, when="conv")
            if block is not None:
                self.conv_styles.append(block)
            width = channels
        self.head = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(
        self, noisy: Tensor, features: Tensor, time_embedding: Tensor | None, mask: Tensor
    ) -> Tensor:
        """Predict the clean map; see the class."""
        x = self.condition(noisy, features, mask)
        if self.fusion_style is not None:
            x = x + self.fusion_style(x, time_embedding, mask)
        for layer, conv in enumerate(self.convs):
            x = conv(x, mask)
            if self.conv_styles:
                x = x + self.conv_styles[layer](x, time_embedding, mask)
        return rearrange(self.head(x), "b 1 n a -> b n a").masked_fill(~mask, 0)


class MapDiffusionDecoder(MapModel):
    """Predicts clean maps from noisy ones, given the timestep and the map features.

    One decoder a scale, of the same architecture with weights of its own. The prediction is a score
    a cell, which the objective turns into IoU (`tmapdiff.losses`).

    Args:
        num_clips: Clips of the finest scale.
        num_anchors: Durations a scale.
        num_scales: Scales.
        feature_channels: Channels of the map features.
        channels: Channels inside.
        time_channels: Channels of the time embedding.
        kernel_sizes: Kernel of each convolution, first to last; odd.
        gate: `shared` has one gate a cell, `channel` one a cell and channel.
        stylization: Where the timestep comes in: after the fusion of noisy map and features, after
            each convolution, at both places, or at none (Table 5).
        norm: Normalisation in the stylization blocks, `group` or `layer`.
        num_groups: Groups of `group`; divides `channels` and `channels + feature_channels`.
        dropout: Share of activations dropped in stylization blocks in training.

    Raises:
        ArgumentError: If a size is too small.
        ConfigError: If sizes do not divide, a kernel is even or a choice is unknown.

    Source: Zhang et al., arXiv 2401.08232, section 3.3.

    Example:
        >>> decoder = MapDiffusionDecoder(32, 8, 3, feature_channels=64, channels=64)
        >>> features = [torch.randn(2, 64, rows, columns) for rows, columns in decoder.grid.shapes]
        >>> noisy = torch.randn(2, decoder.grid.num_cells)
        >>> decoder(noisy, torch.tensor([999, 10]), features).shape
        torch.Size([2, 448])
    """

    @register_to_config
    def __init__(
        self,
        num_clips: int = 64,
        num_anchors: int = 16,
        num_scales: int = 3,
        feature_channels: int = 512,
        channels: int = 512,
        time_channels: int = 512,
        kernel_sizes: Sequence[int] = (17, 17),
        gate: Gate = "shared",
        stylization: Stylization = "both",
        norm: Norm = "group",
        num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid = MapGrid(num_clips, num_anchors, num_scales)
        # Without stylization nothing would train it.
        self.embed_timestep = None if stylization == "none" else TimestepEmbedder(time_channels)
        self.scales = nn.ModuleList(
            MapDecoder(
                feature_channels,
                channels,
                time_channels,
                kernel_sizes,
                gate,
                stylization,
                norm,
                num_groups,
                dropout,
            )
            for _ in range(num_scales)
        )

    def forward(self, noisy: Tensor, timestep: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Predict the clean maps.

        Args:
            noisy: Noisy maps of all scales, packed.
            timestep: Diffusion timestep of each sample.
            features: Map features, one tensor a scale, finest first.

        Shape:
            - noisy: (B, cells)
            - timestep: (B,), integer
            - features: K tensors (B, feature_channels, N_k, A)
            - returns: (B, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
        """
        who = "MapDiffusionDecoder"
        sizes = check_shape(who, "noisy", noisy, f"B {self.grid.num_cells}")
        check_shape(who, "timestep", timestep, "B", sizes)
        check_length(who, "features", features, self.grid.num_scales)
        for scale, (rows, columns) in enumerate(self.grid.shapes):
            axes = f"B {self.config.feature_channels} {rows} {columns}"
            check_shape(who, f"features[{scale}]", features[scale], axes, sizes)
        time_embedding = None if self.embed_timestep is None else self.embed_timestep(timestep)
        return self.grid.pack(
            [
                decoder(one, features[scale], time_embedding, self.grid.mask(scale, one.device))
                for scale, (decoder, one) in enumerate(
                    zip(self.scales, self.grid.unpack(noisy), strict=True)
                )
            ]
        )
