"""Shared helpers of fast implementations: can they run, and strides and sizes for Triton."""

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels._derivatives import is_transformed

_HAS_TRITON = find_spec("triton") is not None
# Read once, as triton does when it decorates a kernel.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST_ELEMENTS = 2**31  # offsets within a sample are 32 bits wide
TRANSFORMED = "torch.func or forward-mode differentiation transforms them"


def why_not_triton(*tensors: Tensor) -> str | None:
    """Return why no Triton kernel can run on these tensors, or None if one can.

    On the CPU, only triton's slow interpreter can, for tests.
    """
    if not _HAS_TRITON:
        return "triton is not installed"
    if is_transformed(*tensors):
        return TRANSFORMED
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"they are on {' and '.join(sorted(map(str, devices)))}"
    device = tensors[0].device.type
    if device != "cuda" and not (device == "cpu" and _INTERPRETED):
        return f"they are on {device}"
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            return f"they hold {tensor.dtype}"
    if any(tensor[:1].numel() >= _MOST_ELEMENTS for tensor in tensors):
        return "a sample has 2**31 elements or more"
    return None


def why_not_eager(*tensors: Tensor) -> str | None:
    """Return why no eager implementation with its own gradient can run, or None if one can.

    These are for the CPU in float32 or float64. On GPUs Triton is faster, and half precision would
    need the copies that they avoid. The compiler fuses the reference itself.
    """
    if torch.compiler.is_compiling():
        return "torch's compiler traces them"
    if is_transformed(*tensors):
        return TRANSFORMED
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "they are not on the CPU"
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        return f"they hold {' and '.join(sorted(map(str, dtypes)))}"
    return None


# Some releases of torch cannot compile this.
@torch.compiler.assume_constant_result
def uses_tf32() -> bool:
    """Whether torch multiplies float32 matrices in TF32 on a GPU.

    Newer releases raise if the old setting is read after the new one was set.
    """
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if precision is None else precision == "tf32"


def in_order(
    device: torch.device, triton: str | None, **others: str | None
) -> dict[str, str | None]:
    """Order backends for `choose`, best first: triton comes first on a GPU, last elsewhere."""
    if device.type == "cuda":
        return {"triton": triton, **others}
    return {**others, "triton": triton}


def within_reach(x: Tensor) -> Tensor:
    """Return `x`, or a contiguous copy if offsets within a sample exceed 32 bits."""
    reach = sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )
    return x if reach < _MOST_ELEMENTS else x.contiguous()


def mask_bytes(mask: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a mask viewed as bytes, and its stride from sample to sample."""
    if mask is None:
        return None, 0
    return mask.contiguous().view(torch.uint8), mask[0].numel() if mask.dim() == 3 else 0


def cell_strides(*maps: Tensor) -> tuple[int, list[list[int]]]:
    """Return the number of columns, and strides of maps over (batch, channel, row, column).

    If the rows of all maps are adjacent in memory, cells are treated as a single column: the number
    is 1 and column strides are 0.
    """
    rows, columns = maps[0].shape[-2:]
    strides = [list(one.stride()) for one in maps]
    if columns > 1 and all(rows == 1 or one[2] == columns * one[3] for one in strides):
        return 1, [[*one[:2], one[3], 0] for one in strides]
    return columns, strides


def power_of_2(size: int) -> int:
    """Return the smallest power of 2 >= `size`, at least 1."""
    return 1 << max(size - 1, 0).bit_length()


def ceil_div(size: int, part: int) -> int:
    """Return the number of parts that cover `size`."""
    return -(-size // part)


def tile_constants(
    maps: Tensor, mask: Tensor | None, columns: int, cells: int, channels: int
) -> dict[str, Any]:
    """Return the compile-time constants of kernels on tiles of (`cells`, `channels`)."""
    return {
        "HAS_MASK": mask is not None,
        "SKIP": maps.stride(1) == 1,
        "COLUMNS": columns,
        "CELLS": cells,
        "CHANNELS": channels,
        "num_warps": min(max(cells * channels // 1024, 1), 16),  # 32 elements per thread
    }
