"""Runs on a GPU as CUDA graphs: captured once for inputs of a kind, then replayed as one launch."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from tmapdiff.kernels.map_conv import MapConvPlan

_WARM_UP = 2  # runs before the capture: they compile kernels, make tables, choose implementations


class CapturedRuns:
    """Does on a GPU what a function does, without the time that Python and launches take.

    A function is captured once for inputs of one kind: of the same structure, sizes, dtypes and
    memory order. Then inputs are copied to where the captured run reads them, and it is replayed.
    What it reads besides, such as weights, is looked at anew in each replay, where it was.

    Copies and pickles start without captured runs.

    Args:
        most: Kinds of inputs that are kept; the one not used for longest makes room for a new one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._captured: dict[Hashable, _CapturedRun] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(self, run: Callable[..., Tensor], read: list[Tensor], *inputs: Any) -> Tensor:
        """Return what `run(*inputs)` returns.

        Args:
            run: What is done; it must not read values of tensors, nor make tensors of numbers.
            read: Tensors that it reads besides the inputs.
            *inputs: Tensors on the GPU, dataclasses and sequences of them, and hashable values.
        """
        surroundings = (
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
            *(one.data_ptr() for one in read),
        )
        kind = run, surroundings, _changed(inputs, _kind)
        # One at a time: all write their inputs to one place.
        with self._lock, torch.cuda.device(_tensors_of(inputs)[0].device):
            captured = self._captured.pop(kind, None)
            if captured is None:
                while len(self._captured) >= self.most:  # first: there may be no room for more
                    del self._captured[next(iter(self._captured))]
                captured = _CapturedRun(run, inputs)
            self._captured[kind] = captured  # the one used last is last
            return captured.replay(inputs)

    def takes(self, tensor: Tensor) -> bool:
        """Tell whether a run over a tensor is captured: on a GPU, if there is work."""
        return tensor.is_cuda and tensor.numel() > 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "CapturedRuns":
        return CapturedRuns(self.most)

    def __reduce__(self) -> tuple[Any, ...]:
        return CapturedRuns, (self.most,)


class _CapturedRun:
    def __init__(self, run: Callable[..., Tensor], inputs: tuple[Any, ...]) -> None:
        # Spectra of kernels are too large for a copy. They are nobody else's but their module's,
        # which makes others when its weights change.
        own = _changed(inputs, lambda one: one.clone(), leave=MapConvPlan)
        self._inputs = _tensors_of(own)
        self._graph, self._done = torch.cuda.CUDAGraph(), torch.cuda.Event()
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with _without_autocast_cache():
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    run(*own)
            # On the same stream, of the same device. Other threads may go on, such as those that
            # copy batches.
            with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
                self._result = run(*own)
        current.wait_stream(aside)

    def replay(self, inputs: tuple[Any, ...]) -> Tensor:
        current = torch.cuda.current_stream()
        current.wait_event(self._done)  # the last replay may have been on another stream
        for own, given in zip(self._inputs, _tensors_of(inputs), strict=True):
            if own.data_ptr() != given.data_ptr():
                own.copy_(given)
        self._graph.replay()
        result = self._result.clone()
        self._done.record(current)
        return result


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Cast weights in each run: those that autocast keeps are gone after it, and may be old."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _changed(value, found.append)
    return found


def _kind(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _changed(value: Any, change: Callable[[Tensor], Any], leave: type | None = None) -> Any:
    """Change all tensors in dataclasses and sequences, which become tuples; `leave` one class."""
    if isinstance(value, Tensor):
        return change(value)
    if leave is not None and isinstance(value, leave):
        return value
    if isinstance(value, list | tuple):
        return tuple(_changed(one, change, leave) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return type(value)(**{name: _changed(part, change, leave) for name, part in parts.items()})
    return value
