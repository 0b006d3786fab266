"""Memory order of map features, and creating maps in the same order."""

import torch
from torch import Tensor

from tmapdiff.kernels._alignment import aligned_channels


def memory_order(x: Tensor) -> list[int]:
    """Return the dimensions of map features, (B, C, N_k, A), outermost in memory first."""
    strides = x.stride()
    # Ignore dimensions of size 1, whose strides are arbitrary.
    inner = x.shape[1] > 1 and all(strides[1] < strides[d] for d in (0, 2, 3) if x.shape[d] > 1)
    order = sorted((0, 1, 2, 3), key=lambda dim: -strides[dim])
    return [dim for dim in order if dim != 1] + [1] if inner else [0, 1, 2, 3]


def inverse_order(order: list[int]) -> list[int]:
    """Return the inverse permutation of `order`."""
    return [order.index(dim) for dim in range(len(order))]


def empty_like_maps(x: Tensor, channels: int | None = None) -> Tensor:
    """Allocate maps in the memory order of `x`, (B, C, N_k, A), with C or `channels` channels.

    If `x` has padded, aligned channels, so does a result with C channels.
    """
    shape = [x.shape[0], x.shape[1] if channels is None else channels, *x.shape[2:]]
    own = shape[1]
    order = memory_order(x)
    if channels is None and order[-1] == 1:
        aligned = aligned_channels(own, x.device)
        if aligned == min((x.stride(dim) for dim in (0, 2, 3) if x.shape[dim] > 1), default=own):
            shape[1] = aligned
    empty = torch.empty([shape[dim] for dim in order], dtype=x.dtype, device=x.device)
    return empty.permute(inverse_order(order))[:, :own]
