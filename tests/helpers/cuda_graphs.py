"""CUDA graphs without a GPU: operations of torch are recorded, and done again by a replay."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from helpers.host_sync import reason_to_wait
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tmapdiff.kernels import masking
from tmapdiff.models.captured_runs import CapturedRuns


class FakeGraph:
    """Stands for `torch.cuda.CUDAGraph`.

    Attributes:
        replays: How often each graph was replayed, in the order of their captures.
    """

    replays: list[int]

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.number = len(self.replays)
        self.replays.append(0)

    def replay(self) -> None:
        """Do all again, reading and writing where it was captured."""
        self.replays[self.number] += 1
        for function, args, kwargs, results in self.calls:
            again = function(*args, **kwargs)
            for result, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(result, Tensor) and _place(result) != _place(new):
                    result.copy_(new)


class _Recording(TorchDispatchMode):
    def __init__(self, graph: FakeGraph, stream: "_Stream", capture_error_mode: str) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.__name__.split(".")[0]
        reason = reason_to_wait(name, args, kwargs)
        if name == "lift_fresh":
            reason = "a tensor made of numbers"
        if reason is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {reason}")
        results = function(*args, **kwargs)
        self.graph.calls.append((function, args, kwargs, results))
        return results

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        # A capture computes nothing, and what it wrote to is the graph's: spoil it.
        given: set[int] = set()
        made: list[Tensor] = []
        for _, args, kwargs, results in self.graph.calls:
            before = {_place(one) for one in made}
            given |= {_place(one) for one in _tensors((args, kwargs))} - before
            made += [one for one in _tensors(results) if _place(one) not in given]
        for one in made:
            one.fill_(torch.nan if one.is_floating_point() else 0)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(values) if isinstance(one, Tensor))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Stream:
    def wait_stream(self, stream: "_Stream") -> None:
        pass

    def wait_event(self, event: "_Event") -> None:
        pass


class _Event:
    def record(self, stream: _Stream) -> None:
        pass


@contextmanager
def cuda_graphs() -> Iterator[list[int]]:
    """Give runs on the CPU the graphs of a GPU; how often each was replayed."""
    FakeGraph.replays = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        patch.setattr(torch.cuda, "graph", _Recording)
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "current_stream", _Stream)
        patch.setattr(torch.cuda, "stream", nullcontext)
        patch.setattr(torch.cuda, "device", nullcontext)
        patch.setattr(CapturedRuns, "takes", lambda _, tensor: tensor.numel() > 0)
        # What a CPU does in its own way looks at values.
        patch.setattr(masking, "why_not_eager", lambda *_: "it is recorded")
        patch.setenv("TMAPDIFF_BACKEND", "reference,map_conv=spectral")
        yield FakeGraph.replays
