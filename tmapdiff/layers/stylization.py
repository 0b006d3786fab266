"""Conditioning maps on the diffusion timestep: timestep embeddings and stylization blocks."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from tmapdiff._core.checks import check_choice, check_int, check_range, check_shape
from tmapdiff.errors import ConfigError
from tmapdiff.kernels.masking import check_map_features, fill_invalid
from tmapdiff.kernels.styled_residual import add_styled, why_not_eager
from tmapdiff.kernels.stylization import stylize
from tmapdiff.layers._modules import dtype_of, is_plain
from tmapdiff.layers.pointwise import PointwiseConv2d

Norm = Literal["group", "layer"]
_SINUSOIDS = 128  # sines and cosines of a timestep


class TimestepEmbedder(nn.Module):
    """Embeds diffusion timesteps: sinusoids, then a two-layer MLP.

    Args:
        time_channels: Channels of the embedding.

    Shape:
        - timesteps: (B,), integer
        - returns: (B, time_channels)

    Raises:
        ArgumentError: If `time_channels` is below 1, at construction.
        ShapeError: If `timesteps` is not (B,), in the call.

    Source: Ho et al., DDPM, arXiv 2006.11239, appendix B.
    """

    def __init__(self, time_channels: int) -> None:
        super().__init__()
        check_int("TimestepEmbedder", "time_channels", time_channels, at_least=1)
        self.time_channels = time_channels
        self.sinusoids = Timesteps(_SINUSOIDS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = TimestepEmbedding(_SINUSOIDS, time_channels)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps; see the class."""
        check_shape("TimestepEmbedder", "timesteps", timesteps, "B")
        return self.mlp(self.sinusoids(timesteps).to(dtype_of(self.mlp.linear_1)))


class StylizationBlock(nn.Module):
    """Scales and shifts the channels of map features depending on the timestep.

    `MLP(act(Norm(x) * lambda_w + lambda_b))` with `[lambda_w, lambda_b] = Proj(time_embedding)`,
    act = SiLU, and an MLP of one linear layer, as in MotionDiffuse. Use it as a residual branch:
    `x + block(x, time_embedding, mask)`. It returns zeros until trained (inside, lambda_w = 1 and
    lambda_b = 0), so the sum starts as the identity.

    Args:
        channels: Channels of the map features.
        time_channels: Channels of the time embedding.
        norm: `group` normalizes groups of channels over the valid cells, `layer` the channels of
            each cell.
        num_groups: Only for `group`; must divide `channels`.
        dropout: Share of activations dropped in training.

    Shape:
        - x: (B, channels, N_k, A)
        - time_embedding: (B, time_channels)
        - mask: (N_k, A) or (B, N_k, A), bool; None means that all cells are valid
        - returns: (B, channels, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError: If a size is too small or `dropout` is outside [0, 1], at construction.
        ConfigError: If `norm` is unknown or `channels` is not divisible, at construction.
        ShapeError: If a shape does not fit, in the call.

    Source: Zhang et al., arXiv 2401.08232, Eq. 6; MotionDiffuse, arXiv 2208.15001.
    """

    def __init__(
        self,
        channels: int,
        time_channels: int,
        norm: Norm = "group",
        num_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        who = "StylizationBlock"
        self.channels = check_int(who, "channels", channels, at_least=1)
        self.time_channels = check_int(who, "time_channels", time_channels, at_least=1)
        self.norm = check_choice(who, "norm", norm, get_args(Norm))
        self.num_groups = check_int(who, "num_groups", num_groups, at_least=1)
        if norm == "group" and channels % num_groups:
            raise ConfigError(
                f"{who}: expected channels divisible by num_groups = {num_groups}, got {channels}."
            )
        self.project = nn.Linear(time_channels, 2 * channels)
        self.dropout = nn.Dropout(check_range(who, "dropout", dropout, 0, 1))
        self.mlp = PointwiseConv2d(channels, channels)
        for parameter in (*self.project.parameters(), *self.mlp.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time_embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the residual branch; see the class."""
        who = "StylizationBlock"
        sizes = check_shape(who, "map features", x, "B C N_k A")
        check_shape(who, "time_embedding", time_embedding, f"B {self.time_channels}", sizes)
        return self.branch(x, self.project_time(time_embedding), mask)

    def project_time(self, time_embedding: Tensor | None) -> Tensor:
        """Compute `[lambda_w - 1, lambda_b]`, (B, 2 * channels), from the `time_embedding` alone.

        Raises:
            ShapeError: If the shape does not fit.
        """
        axes = f"B {self.time_channels}"
        check_shape("StylizationBlock", "time_embedding", time_embedding, axes)
        return self.project(F.silu(time_embedding))  # type: ignore[arg-type]

    def branch(self, x: Tensor, style: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the call's result from the `style` that `project_time` returned.

        `x` and `mask` are as for the call; a single-row `style` applies to all samples.
        """
        check_map_features("StylizationBlock", x, mask, self.channels)
        scale, shift = style.expand(x.shape[0], -1).chunk(2, dim=1)
        groups = self.num_groups if self.norm == "group" else None
        styled = stylize(x, scale, shift, mask, num_groups=groups)
        return fill_invalid(self.mlp(self.dropout(styled)), mask)

    def residual(self, x: Tensor, style: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute `x + branch`, fused if possible; `x` is 0 in invalid cells.

        `style` is as for `branch`.
        """
        check_map_features("StylizationBlock", x, mask, self.channels)
        drops = self.dropout.training and self.dropout.p > 0
        plain = is_plain(self.mlp, PointwiseConv2d) and is_plain(self.dropout, nn.Dropout)
        bias = self.mlp.bias if plain and not drops else None
        if self.norm == "group" and bias is not None:
            scale, shift = style.expand(x.shape[0], -1).chunk(2, dim=1)
            given = (x, scale, shift, self.mlp.weight.flatten(1), bias)
            if why_not_eager(*given, mask=mask) is None:
                return add_styled(*given, mask, num_groups=self.num_groups)
        return x + self.branch(x, style, mask)

    def extra_repr(self) -> str:
        """Show settings that are not visible in submodules."""
        return f"norm={self.norm}, num_groups={self.num_groups}"


class NoStylization(nn.Module):
    """Replaces a `StylizationBlock` in models without stylization."""

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        """Return `x` unchanged."""
        return x

    branch = residual = forward

    def project_time(self, time_embedding: Tensor | None) -> Tensor:
        """Return an empty style."""
        return torch.empty(0)


def add_style(
    block: nn.Module, x: Tensor, time_embedding: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """Compute `x + block(x, time_embedding, mask)`, or `x` without stylization.

    Arguments are those of a `StylizationBlock`'s call, with `x` 0 in invalid cells.
    """
    if isinstance(block, NoStylization):
        return x
    if is_plain(block, StylizationBlock):
        return block.residual(x, block.project_time(time_embedding), mask)
    return x + block(x, time_embedding, mask)
