"""The definition of the unit product."""

import torch
from torch import Tensor

from tmapdiff.kernels.masking import fill_invalid

SMALLEST_NORM = 1e-12  # smaller norms are replaced by it


def unit_product(maps: Tensor, vector: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `maps * vector / norm` in float32 or wider; see the operation.

    In float16, products and norms would overflow from 256 on, and underflow.
    """
    given = torch.promote_types(maps.dtype, vector.dtype)
    wide = torch.promote_types(given, torch.float32)
    # Filled twice, to keep values and gradients of invalid cells out of the vector's gradient.
    filled = fill_invalid(maps.to(wide), mask)
    product = fill_invalid(filled * vector.to(wide)[..., None, None], mask)
    # Not torch's norm, whose second derivative is NaN at 0.
    squares = product.square().sum(1, keepdim=True)
    norm = squares.clamp(min=SMALLEST_NORM**2).sqrt()
    # NaN, not 0, where the norm overflows.
    return (product / (norm + 0 * squares)).to(given)
