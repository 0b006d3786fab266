"""Linear maps over the channels of each cell that keep the memory order of their input.

Map features come with channels outermost (torch's default), innermost (channels_last), or innermost
with durations outermost (from spectral convolutions). Copying into another order costs as much as
the linear map itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmapdiff._core.checks import check_shape
from tmapdiff.kernels.memory_order import inverse_order, memory_order


class PointwiseConv2d(nn.Conv2d):
    """A convolution with one-cell kernels, equal to `nn.Conv2d(..., kernel_size=1)`.

    Arguments are those of `nn.Conv2d`. `kernel_size` is always 1; it exists as LoRA creates layers
    of this class like `nn.Conv2d`.

    Shape:
        - input: (B, in_channels, N_k, A)
        - returns: (B, out_channels, N_k, A), in the memory order of `input`

    Raises:
        ShapeError: If the shape does not fit, in the call.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the convolution; see the class."""
        check_shape("PointwiseConv2d", "input", input, f"B {self.in_channels} N_k A")
        # A single channel counts as innermost, and so will the output's channels.
        order = [0, 2, 3, 1] if self.in_channels == 1 else memory_order(input)
        if order[-1] != 1:
            return super().forward(input)
        result = F.linear(input.permute(order), self.weight.flatten(1), self.bias)
        return result.permute(inverse_order(order))


def concat_channels(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate the channels of map features, in the memory order of the second.

    Shape:
        - first: (B, C, N_k, A)
        - second: (B, D, N_k, A)
        - returns: (B, C + D, N_k, A)
    """
    order = memory_order(second)
    joined = torch.cat([first.permute(order), second.permute(order)], dim=order.index(1))
    return joined.permute(inverse_order(order))
