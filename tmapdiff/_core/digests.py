"""Digests of weights, features and files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
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


def add_file(digest: Any, path: Path) -> None:
    """Add the content of a file to a hashlib digest."""
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    add_file(digest, path)
    return digest.hexdigest()
