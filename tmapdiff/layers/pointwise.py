"""Linear maps of the channels of each cell, computed where they lie in memory.

Map features come with channels outside (as torch makes them), inside (channels_last), or inside
with durations outermost (as spectral convolutions make them). These keep what they are given: a
copy into another order costs as much as the work itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmapdiff._checks import check_shape


class PointwiseConv2d(nn.Conv2d):
    """A convolution with kernels of one cell; equal to `nn.Conv2d(..., kernel_size=1)`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.

    Shape:
        - input: (B, in_channels, N_k, A)
        - returns: (B, out_channels, N_k, A), in the memory order of `input`

    Raises:
        ShapeError: If the shape does not fit, in the call.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the convolution; see the class."""
        check_shape("PointwiseConv2d", "input", input, f"B {self.in_channels} N_k A")
        order = memory_order(input)
        if order[-1] != 1:
            return super().forward(input)
        result = F.linear(input.permute(order), self.weight[:, :, 0, 0], self.bias)
        return result.permute(_inverse(order))


def memory_order(x: Tensor) -> list[int]:
    """Name the dimensions of map features from the outermost in memory to the innermost.

    Shape:
        - x: (B, C, N_k, A)
    """
    strides = x.stride()
    # Dimensions of one entry have any stride: they are no reason to call channels the innermost.
    inner = x.shape[1] > 1 and all(strides[1] < strides[d] for d in (0, 2, 3) if x.shape[d] > 1)
    order = sorted((0, 1, 2, 3), key=lambda dim: -strides[dim])
    return [dim for dim in order if dim != 1] + [1] if inner else [0, 1, 2, 3]


def concat_channels(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate the channels of map features, in the memory order of the second.

    Shape:
        - first: (B, C, N_k, A)
        - second: (B, D, N_k, A)
        - returns: (B, C + D, N_k, A)
    """
    order = memory_order(second)
    joined = torch.cat([first.permute(order), second.permute(order)], dim=order.index(1))
    return joined.permute(_inverse(order))


def _inverse(order: list[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]
