"""The definition of stylization."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tmapdiff.kernels.masking import EPS, fill_invalid, masked_group_norm


def stylize(
    x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor | None, num_groups: int | None
) -> Tensor:
    """Compute `silu(norm(x) * (1 + scale) + shift)` in float32 or wider; see the operation."""
    compute = torch.promote_types(x.dtype, torch.float32)
    scale, shift = (rearrange(style, "b c -> b c 1 1").to(compute) for style in (scale, shift))
    if num_groups is None:
        normalized = _layer_norm(fill_invalid(x, mask).to(compute))
    else:
        normalized = masked_group_norm(x.to(compute), mask, num_groups)
    return fill_invalid(F.silu(normalized * (1 + scale) + shift), mask).to(x.dtype)


def _layer_norm(x: Tensor) -> Tensor:
    cells = rearrange(x, "b c n a -> b n a c")
    return rearrange(F.layer_norm(cells, cells.shape[-1:], eps=EPS), "b n a c -> b c n a")
