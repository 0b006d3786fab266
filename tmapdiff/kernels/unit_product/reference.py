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
    product = fill_invalid(maps.to(wide) * vector.to(wide)[..., None, None], mask)
    norm = torch.linalg.vector_norm(product, dim=1, keepdim=True)
    # NaN, not 0, where the norm is more than the dtype holds.
    return (product / (norm.clamp(min=SMALLEST_NORM) + 0 * norm)).to(given)
