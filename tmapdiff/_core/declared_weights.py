"""Check the memory of the weights that a configuration declares, before allocating it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tmapdiff._core.checks import first_line
from tmapdiff.errors import CheckpointError

_GROWTH = 4  # weights may be stored in 8 bits and used in 32
_SPARE = 64 * 2**20  # bytes, for weights that are not stored
_MOST_TENSORS = 10_000  # torch's time is quadratic in the tensors of an LSTM
_MOST_CONFIG_BYTES = 4 * 2**20


def check_declared_weights(place: str, folder: Path, build: Callable[[], object]) -> None:
    """Build a model on the meta device, and compare the size of its weights with its files.

    An untrusted configuration may declare a layer with a billion channels. Real weights, which are
    not compressed, would need as much space on disk.
    """
    try:
        sizes = {path.suffix: path.stat().st_size for path in folder.glob("config.json")}
        stored = sum(path.stat().st_size for path in folder.glob("*") if path.suffix in _WEIGHTS)
    except OSError:
        return  # the actual load reports this
    if max(sizes.values(), default=0) > _MOST_CONFIG_BYTES:
        raise CheckpointError(f"{place}: its config.json has more than {_MOST_CONFIG_BYTES} bytes.")
    check_declared_bytes(place, stored, build)


def check_declared_bytes(place: str, stored: int, build: Callable[[], object]) -> None:
    """Do the same for weights that are `stored` in a given number of bytes."""
    try:
        with _no_more_than(place, _GROWTH * stored + _SPARE), torch.device("meta"):
            build()
    except CheckpointError:
        raise
    except Exception as error:
        if "overflow" in first_line(error).lower():
            text = f"{place}: its configuration declares more weights than can be counted."
            raise CheckpointError(text) from None
        return  # the actual load reports this


_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}


@contextmanager
def _no_more_than(place: str, most: int) -> Iterator[None]:
    declared, tensors, thread = 0, 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal declared, tensors
        if parameter is None or threading.get_ident() != thread:
            return
        declared += parameter.numel() * parameter.element_size()
        tensors += 1
        if declared > most or tensors > _MOST_TENSORS:
            raise CheckpointError(
                f"{place}: its configuration declares at least {declared:,} bytes of weights, in "
                f"{tensors:,} tensors, but the files next to it hold far less."
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
