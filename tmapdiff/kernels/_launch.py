"""What launches of Triton kernels share: whether they can run, layouts and sizes."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

_HAS_TRITON = find_spec("triton") is not None
# triton reads it when a kernel is decorated, which a later change does not undo.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST_ELEMENTS = 2**31  # offsets within a sample are 32 bits wide


def why_not_triton(*tensors: Tensor) -> str | None:
    """Say why no Triton kernel can run on these tensors; None if one can.

    On the CPU, only triton's interpreter can: for tests, as it is slow.
    """
    if not _HAS_TRITON:
        return "triton is not installed"
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


def in_order(
    device: torch.device, triton: str | None, **others: str | None
) -> dict[str, str | None]:
    """Order backends for `choose`, best first: triton is that only on a GPU."""
    if device.type == "cuda":
        return {"triton": triton, **others}
    return {**others, "triton": triton}


def cells_of(x: Tensor) -> Tensor:
    """View map features (B, C, N, A) as (B, C, N * A), or copy them where no stride allows it."""
    cells = x.flatten(2)
    reach = sum(
        (size - 1) * stride
        for size, stride in zip(cells.shape[1:], cells.stride()[1:], strict=True)
    )
    return cells if reach < _MOST_ELEMENTS else cells.contiguous()


def empty_like_maps(x: Tensor, channels: int | None = None) -> Tensor:
    """Make room for maps in the layout of `x`: channels_last if its channels are neighbours.

    Args:
        x: Map features, (B, C, N, A).
        channels: Channels of the new maps; C, if None.
    """
    shape = (x.shape[0], x.shape[1] if channels is None else channels, *x.shape[2:])
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def power_of_2(size: int) -> int:
    """Smallest power of 2 that is not below `size`, at least 1."""
    return 1 << max(size - 1, 0).bit_length()


def ceil_div(size: int, part: int) -> int:
    """Parts that cover `size`."""
    return -(-size // part)


def warps_for(elements: int) -> int:
    """Warps of a program that holds so many elements: 32 each thread, 1 to 16 warps."""
    return min(max(elements // 1024, 1), 16)
