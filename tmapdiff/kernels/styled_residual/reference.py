"""The definition of the styled residual: maps plus a linear map of their stylization."""

from einops import einsum
from torch import Tensor

from tmapdiff.kernels.masking import fill_invalid
from tmapdiff.kernels.stylization import reference


def add_styled(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    num_groups: int,
) -> Tensor:
    """Compute `x + linear(stylize(x))`; see the operation."""
    styled = reference.stylize(x, scale, shift, mask, num_groups)
    mixed = einsum(weight, styled, "d c, b c n a -> b d n a") + bias[:, None, None]
    return fill_invalid(x + mixed, mask)
