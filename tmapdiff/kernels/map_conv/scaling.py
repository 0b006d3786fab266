"""Scaling by powers of two, which keeps transforms within the range of float16.

Spectra are sums over maps: at frequency 0, that of a map of ones is the root of its number of
cells, and its product with a kernel's spectrum is larger still. Small values may underflow. So
maps, kernels and gradients are scaled to a size at which nothing can overflow, and the result is
scaled back. Powers of two are exact. Other dtypes do not need this.
"""

import math

import torch
from torch import Tensor

from tmapdiff.kernels.map_conv.transforms import MapTransform

_LARGEST = 15  # 2**15 is float16's largest power of two


def shrunk(x: Tensor, dims: tuple[int, ...], room: int) -> tuple[Tensor, Tensor]:
    """Scale values to at most 2**-room, by a power of two shared along `dims`.

    Returns the values, and the exponents that undo the scaling, with size 1 along `dims`.
    """
    largest = torch.linalg.vector_norm(x.detach(), math.inf, dims, keepdim=True)
    exponent = (torch.frexp(largest.float())[1] + room).clamp(-_LARGEST, _LARGEST)
    return x * _power(-exponent, x.dtype), exponent


def grow_(x: Tensor, exponent: Tensor) -> Tensor:
    """Multiply by powers of two in place, to undo `shrunk`."""
    # In two steps, as the dtype may not represent the whole power.
    half = exponent.div(2, rounding_mode="floor")
    return x.mul_(_power(half, x.dtype)).mul_(_power(exponent - half, x.dtype))


def kernel_room(transform: MapTransform, channels: int) -> int:
    """Return the room of a kernel for products with maps up to 1, over `channels`, to fit."""
    most = channels * transform.kernel_size**2 / transform.scale
    return math.ceil(math.log2(most)) - _LARGEST


def gradient_room(transform: MapTransform, batch: int) -> int:
    """Return the room of a gradient for products with maps up to 1 to fit."""
    most = 2 * transform.num_tiles * batch / transform.scale**2
    return max(0, math.ceil(math.log2(most)) - _LARGEST)


def _power(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.exp2(exponent.float()).to(dtype)
