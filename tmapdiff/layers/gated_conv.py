"""Gated convolutions over maps."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from tmapdiff._core.checks import check_choice, check_int, check_sizes
from tmapdiff.errors import ConfigError
from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.map_conv import KernelSpectra, MapConvPlan, map_conv, plan_map_conv
from tmapdiff.kernels.masking import check_map_features, fill_invalid

Gate = Literal["shared", "channel"]


class MapConv2d(nn.Conv2d):
    """`nn.Conv2d` for maps, with an odd kernel and padding that keeps their size.

    Large kernels use FFTs where that is faster (`kernels.map_conv`). Arguments are those of
    `nn.Conv2d`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spectra = KernelSpectra()

    @override
    def forward(self, input: Tensor, plan: MapConvPlan | None = None) -> Tensor:
        if plan is None and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            plan = self.plan(input.shape, input.dtype)
        return map_conv(input, self.weight, self.bias, plan=plan)

    def plan(self, shape: Sequence[int], dtype: torch.dtype) -> MapConvPlan:
        """Plan convolutions of inputs of this `shape` and `dtype`, with unchanging weights."""
        return plan_map_conv(self.weight, shape, dtype, spectra=self.spectra)

    @override
    def train(self, mode: bool = True) -> Self:
        if mode:
            self.spectra.clear()  # as weights will change
        return super().train(mode)


class GatedConv2d(nn.Module):
    """`relu(conv(x)) * sigmoid(gate(x))` on valid cells, keeping the map's size.

    One `MapConv2d` computes both; its last channels are the gate.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Cells that the kernel spans along starts and durations; odd.
        gate: `shared` has one gate per cell (MS-2D-TAN), `channel` one per cell and channel.

    Shape:
        - x: (B, in_channels, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool; None means that all cells are valid
        - plan: from `conv.plan`, for unchanging weights; None makes a new plan
        - filled: whether `x` is already 0 in invalid cells, which saves a pass over it
        - returns: (B, out_channels, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError: If a size is below 1, at construction.
        ConfigError: If `kernel_size` is even or `gate` is unknown, at construction.
        ShapeError: If a shape does not fit, in the call.

    Source: Yu et al., arXiv 1806.03589, Eq. 2; MS-2D-TAN, arXiv 2012.02646, section 3.4.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, gate: Gate = "shared"
    ) -> None:
        super().__init__()
        who = "GatedConv2d"
        self.in_channels = check_int(who, "in_channels", in_channels, at_least=1)
        self.out_channels = check_int(who, "out_channels", out_channels, at_least=1)
        check_int(who, "kernel_size", kernel_size, at_least=1)
        if kernel_size % 2 == 0:
            raise ConfigError(
                f"{who}: expected an odd kernel_size, got {kernel_size}. "
                "An even kernel cannot keep the map's size."
            )
        self.gate = check_choice(who, "gate", gate, get_args(Gate))
        self.gate_channels = 1 if gate == "shared" else out_channels
        self.conv = MapConv2d(
            in_channels, out_channels + self.gate_channels, kernel_size, padding=kernel_size // 2
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        plan: MapConvPlan | None = None,
        filled: bool = False,
    ) -> Tensor:
        """Convolve and gate; see the class."""
        check_map_features("GatedConv2d", x, mask, self.in_channels)
        x = x if filled else fill_invalid(x, mask)
        convolved = self.conv(x) if plan is None else self.conv(x, plan)
        return gate_features(convolved, mask, channels=self.out_channels)

    def extra_repr(self) -> str:
        """Show settings that are not visible in submodules."""
        return f"gate={self.gate}"


class GatedConv2dStack(nn.Module):
    """A sequence of gated convolutions.

    Args:
        in_channels: Channels of the input.
        channels: Channels of every layer's output.
        kernel_sizes: Kernel size of each layer, first to last.
        gate: As in `GatedConv2d`.

    Shape:
        - x: (B, in_channels, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool; None means that all cells are valid
        - returns: (B, channels, N_k, A), 0 in invalid cells

    Raises:
        ArgumentError: If a size is below 1, at construction.
        ConfigError: If there is no layer, a kernel is even or `gate` is unknown, at construction.
        ShapeError: If a shape does not fit, in the call.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_sizes: Sequence[int],
        gate: Gate = "shared",
    ) -> None:
        super().__init__()
        kernels = check_sizes("GatedConv2dStack", "kernel_sizes", kernel_sizes)
        widths = [in_channels, *[channels] * len(kernels)]
        self.layers = nn.ModuleList(
            GatedConv2d(width, channels, kernel, gate)
            for width, kernel in zip(widths, kernels, strict=False)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply every layer; see the class."""
        for layer in self.layers:
            x = layer(x, mask)
        return x
