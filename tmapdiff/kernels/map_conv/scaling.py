"""Powers of two that keep float16 within its range while it is transformed.

Spectra add up what maps hold: at frequency 0 a map of ones is as large as the root of its cells,
and a product with a kernel's spectrum larger still; the smallest values vanish as easily. So maps,
kernels and gradients are brought to a size from which nothing can overflow, and the result is
brought back. Powers of two change no digit. Other dtypes have range enough.
"""

import math

import torch
from torch import Tensor

from tmapdiff.kernels.map_conv.transforms import MapTransform

_LARGEST = 15  # 2**15 is the largest power of two that float16 has


def shrunk(x: Tensor, dims: tuple[int, ...], room: int) -> tuple[Tensor, Tensor]:
    """Bring values to a size of at most 2**-room, by a power of two that `dims` share.

    Returns the values, and the exponents of the powers that undo it, 1 for each of `dims`.
    """
    largest = torch.linalg.vector_norm(x.detach(), math.inf, dims, keepdim=True)
    exponent = (torch.frexp(largest.float())[1] + room).clamp(-_LARGEST, _LARGEST)
    return x * _power(-exponent, x.dtype), exponent


def grow_(x: Tensor, exponent: Tensor) -> Tensor:
    """Multiply by powers of two, in place: the sum of what was given by `shrunk`."""
    # In two steps, each of a power that the dtype has.
    half = exponent.div(2, rounding_mode="floor")
    return x.mul_(_power(half, x.dtype)).mul_(_power(exponent - half, x.dtype))


def kernel_room(transform: MapTransform, channels: int) -> int:
    """Room for the kernel so that the product with maps of at most 1, over `channels`, fits."""
    most = channels * transform.kernel_size**2 / transform.scale
    return math.ceil(math.log2(most)) - _LARGEST


def gradient_room(transform: MapTransform, batch: int) -> int:
    """Room for the gradient so that the product with maps of at most 1 stays in range."""
    most = 2 * transform.num_tiles * batch / transform.scale**2
    return max(0, math.ceil(math.log2(most)) - _LARGEST)


def _power(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.exp2(exponent.float()).to(dtype)
