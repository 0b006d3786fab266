"""MS-2D-TAN: the baseline of map diffusion, which predicts maps in one pass."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn
from typing_extensions import override

from tmapdiff._core.checks import check_sizes
from tmapdiff.errors import CheckpointError
from tmapdiff.layers import GatedConv2dStack
from tmapdiff.layers.gated_conv import Gate
from tmapdiff.layers.pointwise import PointwiseConv2d
from tmapdiff.maps import MapGrid
from tmapdiff.models.encoder import MultimodalEncoder
from tmapdiff.models.map_localizer import Generators, MapLocalizer, Query, Ranking


class MS2DTAN(MapLocalizer):
    """Predicts the map of every scale from the map features, by gated convolutions.

    The published configuration for Charades-STA has 512 channels, two layers of 17x17 kernels, and
    map features by convolution. `map_layer="max-pool"` in `encoder_config` is the other variant.

    `nms_threshold`, `ranking` and `presence_weights` are as for `MomentLocalizer`.

    Args:
        encoder_config: Fields of the `MultimodalEncoder`; its channels are those of all layers.
        kernel_sizes: Kernel of each gated convolution, first to last; odd.
        gate: As for `GatedConv2d`.
        objective: What is learned, see `tmapdiff.losses.get_objective`.

    Raises:
        ConfigError: If a field or choice is unknown, or a kernel is even.
        ArgumentError: If a size is out of range.

    Source: Zhang et al., Multi-Scale 2D Temporal Adjacent Networks, arXiv 2012.02646.
    """

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        kernel_sizes: Sequence[int] = (17, 17),
        gate: Gate = "shared",
        objective: str = "bce-rescaled",
        nms_threshold: float = 0.49,
        ranking: Ranking = "nms",
        presence_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = MultimodalEncoder.from_config(encoder_config)
        self._set_up(self.encoder.grid, objective, nms_threshold, ranking)
        channels = self.encoder.config.channels
        kernels = check_sizes("MS2DTAN", "kernel_sizes", kernel_sizes)
        scales = range(self.grid.num_scales)
        self.convs = nn.ModuleList(
            GatedConv2dStack(channels, channels, kernels, gate) for _ in scales
        )
        self.heads = nn.ModuleList(PointwiseConv2d(channels, 1) for _ in scales)
        self.gradient_checkpointing = False

    def _compilable_parts(self) -> list[nn.Module]:
        return [*super()._compilable_parts(), *self.convs]

    def score(
        self,
        features: Tensor,
        words: Tensor,
        num_words: Tensor,
        num_clips: Tensor | None = None,
    ) -> list[Tensor]:
        """Score every candidate moment; `objective.activation` turns scores into the map.

        `features`, `words`, `num_words` and `num_clips` are as for `localize`.

        Shape:
            - returns: K tensors (B, N_k, A), 0 in invalid cells

        Raises:
            ShapeError: If a shape does not fit.
            ArgumentError: If a sentence is empty.
        """
        grid = self.grid_of(features, num_clips)
        maps = self.encoder(features, words, num_words, num_clips)
        scores = []
        for scale, (one, convs, head) in enumerate(zip(maps, self.convs, self.heads, strict=True)):
            # As in the published model, later layers read the first layer's results in cells that
            # end outside the video. Cells that start there are hidden: they depend on the padding.
            starts_inside = None
            if num_clips is not None:
                starts_inside = grid.mask(scale, one.device, num_clips)[..., :1].expand_as(
                    one[:, 0]
                )
            if self.gradient_checkpointing and torch.is_grad_enabled():
                checkpoint: Any = self._gradient_checkpointing_func
                convolved = checkpoint(convs, one, starts_inside)
            else:
                convolved = convs(one, starts_inside)
            scored = rearrange(head(convolved), "b 1 n a -> b n a")
            scores.append(scored.masked_fill(~grid.mask(scale, scored.device, num_clips), 0))
        return scores

    @override
    def _loss(self, iou: Tensor, grid: MapGrid, query: Query, generator: Generators) -> Tensor:
        # Sum of the losses of all scales.
        target, mask = self.objective.target(iou), grid.packed_mask(iou.device, query[-1])
        scores = grid.pack(self.score(*query))
        parts = (one.split(grid.cells_per_scale, dim=-1) for one in (scores, target, mask))
        return torch.stack([self.objective(*scale) for scale in zip(*parts, strict=True)]).sum()

    @override
    def _predict(self, grid: MapGrid, query: Query) -> Tensor:
        maps = self.objective.activation(grid.pack(self.score(*query)).float())
        return maps.masked_fill(~grid.packed_mask(maps.device, query[-1]), 0)

    def load_public_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights of the public implementation.

        They do not include word vectors: set those with `encoder.load_word_vectors`.

        Args:
            state_dict: Weights by name, from `torch.load(path, weights_only=True)`.

        Raises:
            CheckpointError: If weights are missing, unknown or of another shape.

        Source: MS-2D-TAN in github.com/microsoft/VideoX (MIT license).
        """
        who = "MS2DTAN.load_public_state_dict"
        ours = {name: _our_name(name.removeprefix("module.")) for name in state_dict}
        if unknown := [name for name, own in ours.items() if own is None]:
            raise CheckpointError(f"{who}: it has unknown weights: {_listed(unknown)}.")
        renamed = _join_gates({str(own): state_dict[name] for name, own in ours.items()})
        if "encoder.clip_encoder.weight" in renamed:  # a convolution over one clip
            weight = renamed["encoder.clip_encoder.weight"]
            renamed["encoder.clip_encoder.weight"] = weight.flatten(1)
        embedding = "encoder.text_encoder.embedding.weight"
        own = {name: one for name, one in self.state_dict().items() if name != embedding}
        if missing := own.keys() - renamed.keys():
            raise CheckpointError(f"{who}: it has no weights: {_listed(missing)}.")
        if further := renamed.keys() - own.keys():
            raise CheckpointError(f"{who}: it has weights of further layers: {_listed(further)}.")
        for name, tensor in renamed.items():
            if tensor.shape != own[name].shape:
                got, expected = tuple(tensor.shape), tuple(own[name].shape)
                raise CheckpointError(f"{who}: expected {name} of shape {expected}, got {got}.")
        self.load_state_dict(renamed, strict=False)


# Public names and ours. In `prop_module`, 0 is the convolution and 1 its normalization. In
# `map_modules`, 0 is the convolution and 1 its gate; here they are one convolution.
_NAMES = (
    (r"clip_module\.vis_conv\.(\w+)", r"encoder.clip_encoder.\1"),
    (r"prop_module\.layers\.(\d+\.\d+\.[01]\.\w+)", r"encoder.map_features.scales.\1"),
    (r"fusion_module\.textual_encoder\.(\w+)", r"encoder.text_encoder.lstm.\1"),
    (r"fusion_module\.tex_linear\.(\w+)", r"encoder.text_encoder.linear.\1"),
    (r"fusion_module\.vis_conv\.(\w+)", r"encoder.fuse_map.\1"),
    (r"map_modules\.(\d+)\.blocks\.(\d+)\.0\.(\w+)", r"convs.\1.layers.\2.conv.\3"),
    (r"map_modules\.(\d+)\.blocks\.(\d+)\.1\.(\w+)", r"convs.\1.layers.\2.conv.\3.gate"),
    (r"pred_modules\.(\d+)\.predictor\.(\w+)", r"heads.\1.\2"),
)


def _our_name(name: str) -> str | None:
    for theirs, ours in _NAMES:
        if match := re.fullmatch(theirs, name):
            return match.expand(ours)
    return None


def _join_gates(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = {name: one for name, one in weights.items() if not name.endswith(".gate")}
    for name, gate in weights.items():
        conv = name.removesuffix(".gate")
        if conv != name and conv in joined and joined[conv].shape[1:] == gate.shape[1:]:
            joined[conv] = torch.cat([joined[conv], gate])
        elif conv != name:
            joined[name] = gate  # reported as weights of further layers
    return joined


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return f"{', '.join(ordered[:3])} ({len(ordered)} in all)"
