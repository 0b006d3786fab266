"""Digests of weights and features."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def add_tensors(digest: Any, named: Iterable[tuple[str, Tensor]]) -> None:
    """Add the names and values of tensors, such as a module's weights, to a hashlib digest."""
    for name, tensor in named:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # As bytes: NumPy has no bfloat16.
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
