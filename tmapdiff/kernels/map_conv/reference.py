"""The definition: a convolution that keeps the map's size, zeros around the map."""

import torch.nn.functional as F
from torch import Tensor


def map_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve maps with a kernel of odd size.

    Shape:
        - x: (B, C, N_k, A)
        - weight: (D, C, S, S)
        - bias: (D,)
        - returns: (B, D, N_k, A)
    """
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
