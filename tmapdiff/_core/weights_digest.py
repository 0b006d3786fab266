"""Telling weights from others."""

from typing import Any

import torch
from torch import nn


def add_weights(digest: Any, module: nn.Module) -> None:
    """Add the names and values of a module's weights to a digest of hashlib."""
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # As bytes: NumPy has no bfloat16.
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
