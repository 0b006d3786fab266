"""Sizes at which matrix products on a GPU read and write at full speed.

Tensor cores are fed 16 bytes at a time. Where rows of a matrix begin elsewhere, as with the 513
channels of 512 features and their gate, numbers of half precision are read one by one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers that rows are to be a multiple of. 8 of half precision are 16 bytes; Triton sees what a
# size is divisible by from 16 up.
_ALIGNED = {"cuda": 16}
# Rows do not grow by more than this share of theirs.
_MOST_ADDED = 0.25


def aligned_channels(channels: int, device: torch.device) -> int:
    """Channels that a product on a device should have for so many."""
    added = -channels % _ALIGNED.get(device.type, 1)
    return channels + added if added <= _MOST_ADDED * channels else channels


def with_channels(x: Tensor, channels: int, dim: int) -> Tensor:
    """Give a tensor so many channels, the last of them 0; itself, if it has them."""
    added = channels - x.shape[dim]
    if not added:
        return x
    return F.pad(x, (0, 0) * (-1 - dim if dim < 0 else x.dim() - 1 - dim) + (0, added))


def in_aligned_rows(table: Tensor) -> Tensor:
    """Copy a table, (..., columns), so that each row begins at a multiple of 8 numbers."""
    columns = table.shape[-1]
    return F.pad(table, (0, -columns % 8))[..., :columns]
