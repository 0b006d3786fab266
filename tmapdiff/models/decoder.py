"""The denoiser: conditioned decoders of the maps of all scales."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from tmapdiff._core.checks import (
    check_bool,
    check_choice,
    check_int,
    check_shape,
    check_sizes,
)
from tmapdiff.errors import ConfigError
from tmapdiff.layers import TimestepEmbedder
from tmapdiff.layers._modules import module_list
from tmapdiff.layers.gated_conv import Gate
from tmapdiff.layers.stylization import Norm
from tmapdiff.maps import MapGrid
from tmapdiff.models._base import MapModel, grid_of_maps
from tmapdiff.models.map_decoders import (
    Conditioning,
    ConvMapDecoder,
    Stylization,
    TransformerMapDecoder,
)
from tmapdiff.models.prepared import (
    CalledDecoder,
    PreparedCells,
    PreparedDecoder,
    PreparedMap,
    is_preparable,
    join_maps,
    split_maps,
)

Architecture = Literal["conv", "transformer"]


class MapDiffusionDecoder(MapModel):
    """Predicts clean maps from noisy ones, given the timestep and the map features.

    It has a decoder per scale, or one Transformer over the cells of all scales. It predicts a score
    per cell, which the objective turns into IoU (`tmapdiff.losses`).

    Args:
        num_clips: Clips of the finest scale.
        num_anchors: Durations per scale.
        num_scales: Number of scales.
        feature_channels: Channels of the map features.
        channels: Channels of the hidden layers.
        time_channels: Channels of the time embedding.
        architecture: `conv` applies gated convolutions to each map, `transformer` attention
            between its cells (Table 3).
        conditioning: How the noisy map H is combined with the map features F, after a linear layer
            on each (Table 3): `concat` is [H, F], `multiply` H * F, `multiply-residual`
            H * (1 + F), `multiply-gated` H * sigmoid(F). With `cross-attention`, only for
            `transformer`, H attends to H and F.
        kernel_sizes: Only for `conv`: kernel of each convolution, first to last; odd.
        gate: Only for `conv`: `shared` has one gate per cell, `channel` one per cell and channel.
        num_layers: Only for `transformer`: number of layers.
        num_heads: Only for `transformer`: attention heads; must divide `channels`.
        joint_scales: Only for `transformer`: whether the cells of all scales form one sequence.
        stylization: Where the timestep is injected: after the fusion of noisy map and features
            (`fusion`), after each layer (`conv`), at both places, or nowhere (Table 5).
        norm: Normalization in the stylization blocks, `group` or `layer`.
        num_groups: Groups of `group`; must divide the normalized channels.
        dropout: Share of activations dropped in training, in stylization blocks and Transformer
            layers.

    Raises:
        ArgumentError: If a size is too small, or `joint_scales` is not True or False.
        ConfigError: If sizes do not divide, a kernel is even, a choice is unknown, or `conv` is
            used with `cross-attention` or `joint_scales`.

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
        # Check the fields of the other architecture, too: they are saved.
        if architecture == "conv":
            check_int(who, "num_layers", num_layers, at_least=1)
            check_int(who, "num_heads", num_heads, at_least=1)
        else:
            check_sizes(who, "kernel_sizes", kernel_sizes)
        if architecture == "conv" and joint_scales:
            raise ConfigError(
                f"{who}: expected joint_scales to be off. It needs architecture 'transformer'."
            )
        # Without stylization, nothing uses the timestep.
        self.embed_timestep = None if stylization == "none" else TimestepEmbedder(time_channels)

        def decoder() -> ConvMapDecoder | TransformerMapDecoder:
            shared: dict[str, Any] = {
                "feature_channels": feature_channels,
                "channels": channels,
                "time_channels": time_channels,
                "conditioning": conditioning,
                "stylization": stylization,
                "norm": norm,
                "num_groups": num_groups,
                "dropout": dropout,
            }
            if architecture == "conv":
                return ConvMapDecoder(**shared, kernel_sizes=kernel_sizes, gate=gate)
            return TransformerMapDecoder(**shared, num_layers=num_layers, num_heads=num_heads)

        self.decoders = module_list(decoder() for _ in range(1 if joint_scales else num_scales))
        self.gradient_checkpointing = False

    def forward(
        self,
        noisy: Tensor,
        timestep: Tensor | int,
        features: Sequence[Tensor] | Tensor,
        num_clips: Tensor | None = None,
    ) -> Tensor:
        """Predict the clean maps.

        Args:
            noisy: Noisy maps of all scales, packed.
            timestep: Diffusion timestep of each sample, or one for all.
            features: Map features, one tensor per scale, finest first. With one scale, a tensor
                also works.
            num_clips: Clips of each video, if they differ. The number of clips N may then be other
                than the configured one.

        Shape:
            - noisy: (B, cells)
            - timestep: (B,) or (), integer
            - features: K tensors (B, feature_channels, N_k, A)
            - num_clips: (B,), integer
            - returns: (B, cells), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If `timestep` is neither a tensor nor an integer of at least 0.
            ConfigError: If N does not divide into the scales.
        """
        who = "MapDiffusionDecoder"
        sizes = check_shape(who, "noisy", noisy, "B cells")
        timestep = _one_per_sample(timestep, noisy)
        check_shape(who, "timestep", timestep, "B", sizes)
        features, grid = self._check(features, num_clips)
        check_shape(who, "noisy", noisy, f"B {grid.num_cells}", {"B": features[0].shape[0]})

        # 1. Embed the timestep.
        time = None if self.embed_timestep is None else self.embed_timestep(timestep)

        # 2. Split the maps: by scale for convolutions, into sequences of cells for Transformers.
        conditions, sequences = self._conditions(features, time, num_clips, grid)
        noisy_maps = split_maps(noisy, grid, sequences)

        # 3. Score each with its own decoder, given its map features, the time, and its valid cells.
        scores = [
            self._score(decoder, noisy_map, *condition)
            for decoder, noisy_map, condition in zip(
                self.decoders, noisy_maps, conditions, strict=True
            )
        ]
        return join_maps(scores, grid, sequences)

    def prepare(
        self,
        features: Sequence[Tensor] | Tensor,
        timesteps: Tensor,
        num_clips: Tensor | None = None,
    ) -> PreparedDecoder | CalledDecoder:
        """Precompute everything in a denoising run that does not depend on the noisy maps.

        Without gradients, this includes the spectra of kernels, so do not change the weights
        during the run. If decoders or their parts are subclassed, replaced, hooked or compiled,
        nothing is precomputed: each step calls the decoder. `features` and `num_clips` are as for
        `forward`; `timesteps`, (S,), are those of the run in their order.

        Raises:
            ShapeError, ConfigError: As `forward`.
        """
        features, grid = self._check(features, num_clips)
        steps = check_shape("MapDiffusionDecoder", "timesteps", timesteps, "S")["S"]
        if not all(is_preparable(decoder) for decoder in self.decoders):
            return CalledDecoder(self, features, timesteps, num_clips)
        time = None if self.embed_timestep is None else self.embed_timestep(timesteps)
        conditions, sequences = self._conditions(features, time, num_clips, grid)
        prepared = [
            PreparedMap(decoder, *condition)
            if isinstance(decoder, ConvMapDecoder)
            else PreparedCells(decoder, *condition)
            for decoder, condition in zip(self.decoders, conditions, strict=True)
        ]
        return PreparedDecoder(grid, len(features[0]), steps, prepared, sequences)

    def _check(
        self, features: Sequence[Tensor] | Tensor, num_clips: Tensor | None
    ) -> tuple[list[Tensor], MapGrid]:
        if isinstance(features, Tensor) and self.grid.num_scales == 1:
            features = [features]
        who, channels = "MapDiffusionDecoder", self.config.feature_channels
        grid = grid_of_maps(who, "features", features, channels, self.grid, num_clips)
        return list(features), grid

    def _conditions(
        self,
        features: Sequence[Tensor],
        time: Tensor | None,
        num_clips: Tensor | None,
        grid: MapGrid,
    ) -> tuple[list[tuple[Any, ...]], tuple[Tensor, ...]]:
        """Return the arguments of each decoder after its noisy map, and its sequence of cells.

        There are no sequences for `conv`.
        """
        device, scales = features[0].device, range(grid.num_scales)
        if self.config.architecture == "conv":
            masks = [grid.mask(scale, device, num_clips) for scale in scales]
            return [(one, time, mask) for one, mask in zip(features, masks, strict=True)], ()
        joint = [scales] if self.config.joint_scales else [[scale] for scale in scales]
        sequences = tuple(torch.tensor(grid.valid_cells(one), device=device) for one in joint)
        packed = torch.cat([rearrange(one, "b c n a -> b c (n a)") for one in features], dim=-1)
        moments = grid.packed_moments(device)
        mask = None if num_clips is None else grid.packed_mask(device, num_clips)
        return [
            (packed[:, :, cells], moments[cells], time, None if mask is None else mask[:, cells])
            for cells in sequences
        ], sequences

    def _score(self, decoder: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            scores: Tensor = self._gradient_checkpointing_func(decoder, *inputs)
        else:
            scores = decoder(*inputs)
        return scores


def _one_per_sample(timestep: Tensor | int, noisy: Tensor) -> Tensor:
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor(check_int("MapDiffusionDecoder", "timestep", timestep, at_least=0))
    if timestep.dim():
        return timestep
    return timestep.to(noisy.device).expand(noisy.shape[0])
