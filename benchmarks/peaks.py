"""Peak memory of tensors."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the peak number of bytes in tensors during a call.

    On a GPU, all tensors count. Elsewhere, only new tensors that torch's Python dispatch sees, so
    not the temporary memory inside operations.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    with LiveTensors() as live:
        run()
    return live.peak


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of live storages that operations have created."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0  # bytes
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count its new storages."""
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._remember(storage, 0)  # existed before
        result = func(*args, **kwargs)
        for storage in _storages(result):
            self._remember(storage, storage.nbytes())
        return result

    def _remember(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, storage._cdata, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.current -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = (one for one in tree_leaves(tree) if isinstance(one, Tensor))
    return [part.untyped_storage() for one in tensors for part in _strided(one)]


def _strided(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor]
