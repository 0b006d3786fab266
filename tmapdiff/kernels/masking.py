"""Shared helpers for maps with invalid cells: checks, filling with zeros, masked statistics."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from tmapdiff._core.checks import check_int, check_shape, message
from tmapdiff.errors import ConfigError, ShapeError
from tmapdiff.kernels.memory_order import memory_order

EPS = 1e-5  # added to variances


def check_map_features(who: str, x: Tensor, mask: Tensor | None, channels: int | str) -> None:
    """Raise ShapeError unless `x` is (B, channels, N_k, A) and `mask` (N_k, A) or (B, N_k, A)."""
    sizes = check_shape(who, "map features", x, f"B {channels} N_k A")
    if mask is None:
        return
    batched = isinstance(mask, Tensor) and mask.dim() == 3
    check_shape(who, "mask", mask, "B N_k A" if batched else "N_k A", sizes)
    if mask.dtype != torch.bool:
        raise ShapeError(f"{who}: expected a mask of dtype bool, got {mask.dtype}.")


def check_styles(
    who: str,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    num_groups: int | None,
) -> dict[str, int]:
    """Check the inputs of `stylize`, and return the sizes by name."""
    check_map_features(who, x, mask, "C")
    sizes = {"B": x.shape[0], "C": x.shape[1]}
    check_shape(who, "scale", scale, "B C", sizes)
    check_shape(who, "shift", shift, "B C", sizes)
    if num_groups is not None:
        check_int(who, "num_groups", num_groups, at_least=1)
        if x.shape[1] % num_groups:
            expected = f"channels divisible by num_groups = {num_groups}"
            raise ConfigError(message(who, expected, x.shape[1]))
    return sizes


def of_all_samples(mask: Tensor | None) -> Tensor | None:
    """Drop a batch axis of size 1 from a mask: a shared mask is faster to apply."""
    return mask[0] if mask is not None and mask.dim() == 3 and mask.shape[0] == 1 else mask


def fill_invalid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set invalid cells to 0, also in the gradient; unlike a product, this removes NaN.

    Keeps the memory order.

    Shape:
        - x: (B, C, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, C, N_k, A)
    """
    mask = of_all_samples(mask)
    if mask is None:
        return x
    return torch.where(mask.unsqueeze(-3), x, 0)


def fill_invalid_(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set invalid cells to 0 in place, for code with its own gradients, and return `x`.

    Only for the CPU: the few invalid cells of a shared mask are indexed, which would synchronize
    with a GPU.
    """
    mask = of_all_samples(mask)
    if mask is None:
        return x
    if mask.dim() == 3:
        return x.masked_fill_(~mask.unsqueeze(-3), 0)
    order = memory_order(x)
    invalid = dict(zip((2, 3), cells_of(mask).invalid, strict=True))
    # Indexing out of memory order would be as slow as a pass over all cells.
    x.permute(order)[tuple(invalid.get(dim, slice(None)) for dim in order)] = 0
    return x


class CellLists(NamedTuple):
    """Cells of a mask, on the CPU.

    Attributes:
        valid: Positions of the valid cells in the flattened mask, (valid,).
        invalid: The invalid cells, as index tensors for the mask's two dimensions.
        sources: For each cell of the flattened mask, its position in `valid`, or `len(valid)` if it
            is invalid.
    """

    valid: Tensor
    invalid: tuple[Tensor, ...]
    sources: Tensor


def cells_of(mask: Tensor) -> CellLists:
    """List the cells of a CPU mask, (N_k, A) or its transpose; cached by value."""
    return _listed(mask.numpy().tobytes(), tuple(mask.shape))


@lru_cache(maxsize=32)
def _listed(values: bytes, shape: tuple[int, int]) -> CellLists:
    mask = torch.from_numpy(np.frombuffer(values, dtype=bool).reshape(shape).copy())
    valid = mask.flatten().nonzero().squeeze(1)
    sources = torch.full_like(mask.flatten(), len(valid), dtype=torch.int64)
    sources[valid] = torch.arange(len(valid), device=mask.device)
    return CellLists(valid, (~mask).nonzero(as_tuple=True), sources)


def inverse_deviation(variance: Tensor, eps: float = EPS) -> Tensor:
    """Return 1 / standard deviation; NaN, not 0, if the variance overflowed."""
    return (variance + eps).rsqrt() + 0 * variance


def masked_group_norm(x: Tensor, mask: Tensor | None, num_groups: int, eps: float = EPS) -> Tensor:
    """Normalize each group of channels by the mean and variance of its valid cells.

    Statistics are computed in float32 or wider. The result is NaN if the variance overflows, from
    values of about 1e19, and 0 for samples without valid cells.

    Args:
        x: Map features.
        mask: Which cells are valid. Defaults to all.
        num_groups: Groups of channels; must divide the channels.
        eps: Added to the variance.

    Shape:
        - x: (B, C, N_k, A)
        - mask: (N_k, A) or (B, N_k, A), bool
        - returns: (B, C, N_k, A), 0 in invalid cells

    Source: Wu and He, Group Normalization, arXiv 1803.08494, Eq. 1.
    """
    groups = rearrange(x, "b (g c) n a -> b g c n a", g=num_groups)
    groups = groups.to(torch.promote_types(x.dtype, torch.float32))
    valid = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device) if mask is None else mask
    valid = valid[..., None, None, :, :]
    groups = torch.where(valid, groups, 0)
    per_group = "b g c n a -> b g 1 1 1"
    count = (valid.sum((-2, -1), keepdim=True) * groups.shape[2]).clamp(min=1)
    mean = reduce(groups, per_group, "sum") / count
    centered = torch.where(valid, groups - mean, 0)
    variance = reduce(centered.square(), per_group, "sum") / count
    # Fill again, so that NaN gradients of invalid cells do not reach the statistics.
    normalized = torch.where(valid, centered * inverse_deviation(variance, eps), 0)
    return rearrange(normalized, "b g c n a -> b (g c) n a").to(x.dtype)
