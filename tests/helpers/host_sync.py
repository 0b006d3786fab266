"""Finding what waits for a device: values read on the host, sizes that depend on values, copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tmapdiff.kernels.map_conv import transforms
from tmapdiff.maps import multiscale

_KEPT = (
    multiscale.distinct_moments,
    transforms._forward_tables,
    transforms._inverse_tables,
    transforms._kernel_tables,
    transforms._small_kernel_table,
)

# Results of these are read by the host, or have a size that the host has to know.
_WAITING = {
    "_local_scalar_dense",  # item, bool, int, float
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "unique_consecutive",
    "unique_dim",
}


class _Watch(TorchDispatchMode):
    def __init__(self, found: list[str], fail: bool) -> None:
        super().__init__()
        self.found, self.fail = found, fail

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reason = reason_to_wait(func.__name__.split(".")[0], args, kwargs or {})
        if reason is not None:
            self.found.append(reason)
            if self.fail:
                pytest.fail(f"waits for the device: {reason}")
        return func(*args, **(kwargs or {}))


def reason_to_wait(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
    if name in _WAITING:
        return name
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return f"{name} without output_size"
    if name in ("index", "index_put", "index_put_"):
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            return f"{name} by a mask"
        if name != "index" and args[2].device != args[0].device:
            return f"{name} of a number from the host"
    blocking = not kwargs.get("non_blocking", False)
    if name == "_to_copy" and blocking:
        here, there = args[0].device, torch.device(kwargs.get("device") or args[0].device)
        if here.type != there.type:
            return f"copy from {here.type} to {there.type}"
    if name == "copy_" and not (len(args) > 2 and args[2]) and blocking:
        here, there = args[1].device.type, args[0].device.type
        if here != there:
            return f"copy from {here} to {there}"
    return None


@contextmanager
def host_syncs() -> Iterator[list[str]]:
    """Gather what in the block would wait for a device, were its tensors not on the CPU.

    On tensors of the CPU, copies to it, `tolist()` and `numpy()` cannot be seen: see `on_a_device`.
    """
    found: list[str] = []
    with _Watch(found, fail=False):
        yield found


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Fail at what in the block would wait for a device; sees what `host_syncs` sees."""
    with _Watch([], fail=True):
        yield


class _Device:
    def __call__(self, value: Any) -> Any:
        """Put tensors, alone or in lists and dicts, on the device."""
        return tree_map_only(Tensor, self._one, value)

    @staticmethod
    def _one(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


@contextmanager
def on_a_device() -> Iterator[_Device]:
    """Compute on a device that is not there: shapes only, and copies to the host are copies.

    Gives a function that puts tensors on it. Make modules inside, under `torch.device("cuda")`.
    """
    if torch.__version__ < (2, 10) and not torch.cuda.is_available():
        pytest.skip("torch before 2.10 asks the driver, for fake tensors too")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield _Device()
    finally:
        # What is kept of the device that is not there must not be met on one that is.
        for tables in _KEPT:
            tables.cache_clear()
