"""Sizes at which matrix products on a GPU read and write at full speed.

Tensor cores load 16 bytes at a time. If rows are not aligned to that, as with the 513 channels of
512 features and their gate, half-precision numbers are loaded one by one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Row lengths are padded to a multiple of this: 8 half-precision numbers are 16 bytes, and Triton
# detects divisibility by 16.
_ALIGNED = {"cuda": 16}
_MOST_ADDED = 0.25  # largest padding, as a share of the row length


def aligned_channels(channels: int, device: torch.device) -> int:
    """Return the number of channels to pad to for fast products on a device."""
    added = -channels % _ALIGNED.get(device.type, 1)
    return channels + added if added <= _MOST_ADDED * channels else channels


def with_channels(x: Tensor, channels: int, dim: int) -> Tensor:
    """Pad a tensor with zeros to `channels` channels, if needed."""
    added = channels - x.shape[dim]
    if not added:
        return x
    return F.pad(x, (0, 0) * (-1 - dim if dim < 0 else x.dim() - 1 - dim) + (0, added))


def in_aligned_rows(table: Tensor) -> Tensor:
    """Copy a table, (..., columns), so that each row starts at a multiple of 8 numbers."""
    columns = table.shape[-1]
    return F.pad(table, (0, -columns % 8))[..., :columns]
