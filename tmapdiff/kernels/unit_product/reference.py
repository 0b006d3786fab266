"""The definition: the product with a vector, of unit norm in each cell."""

import torch
from torch import Tensor

from tmapdiff.kernels.masking import fill_invalid

SMALLEST_NORM = 1e-12  # shorter products are divided by it


def unit_product(maps: Tensor, vector: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `maps * vector / norm` in float32 at least; see the operation.

    Products and norms of float16 would overflow from 256 on, and underflow.
    """
    given = torch.promote_types(maps.dtype, vector.dtype)
    wide = torch.promote_types(given, torch.float32)
    # Filled twice: what invalid cells hold must not reach the vector's gradient, nor what their own
    # gradient holds.
    filled = fill_invalid(maps.to(wide), mask)
    product = fill_invalid(filled * vector.to(wide)[..., None, None], mask)
    # Not torch's norm, whose second derivative is NaN where the norm is 0, as in invalid cells.
    squares = product.square().sum(1, keepdim=True)
    norm = squares.clamp(min=SMALLEST_NORM**2).sqrt()
    # NaN, not 0, where the norm is more than the dtype holds.
    return (product / (norm + 0 * squares)).to(given)
