"""The definition of the map convolution: it keeps the map's size, with zero padding."""

import torch.nn.functional as F
from torch import Tensor


def map_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve maps with a kernel of odd size; see the operation."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
