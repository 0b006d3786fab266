"""Elementwise operations, which should cost no more than reading and writing maps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from speed_cases import Candidate, Case, Contest, TimedCase, Work
from torch import Tensor

from speed_suites.setting import AUTO, Setting, backends, compiled, inference
from tmapdiff import MapGrid
from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.styled_residual import add_styled
from tmapdiff.kernels.stylization import stylize

NUM_GROUPS = 8
# (samples, channels, starts, durations) of suite "operations".
SIZES = (
    (1, 32, 16, 8),
    (8, 16, 16, 8),
    (8, 64, 8, 8),
    (8, 64, 32, 8),
    (32, 64, 16, 8),
    (32, 64, 32, 8),
    (32, 128, 64, 16),
)

Inputs = Sequence[Tensor]


@dataclass(frozen=True)
class Operation:
    """An operation on maps."""

    name: str
    shape: dict[str, Any]  # sizes
    # Draws its inputs, a sample per row. Gradients are for all of them.
    draw: Callable[[torch.dtype], Inputs]
    # Runs it with a backend.
    call: Callable[[Inputs, str | None], Tensor | tuple[Tensor, ...]]
    moved: int  # fewest numbers that it must read and write
    moved_back: int = 0  # the same for its gradient; 0 if it has none
    shared: tuple[int, ...] = ()  # indices of inputs that all samples share


def map_operations(
    setting: Setting, grid: MapGrid, scale: int, channels: int, batch: int
) -> Iterator[Operation]:
    """List the operations on the maps of a scale."""
    rows, columns = grid.shapes[scale]
    mask = grid.mask(scale, setting.device)
    shape = {"batch": batch, "maps": f"{rows}x{columns}", "channels": channels}
    gates = batch * rows * columns
    numbers = gates * channels

    def maps(width: int, dtype: torch.dtype) -> Tensor:
        return setting.layout(setting.random(batch, width, rows, columns, dtype=dtype))

    def maps_and(styles: int, dtype: torch.dtype) -> list[Tensor]:
        drawn = [setting.random(batch, channels, dtype=dtype) for _ in range(styles)]
        return [maps(channels, dtype), *drawn]

    def styled(dtype: torch.dtype) -> Inputs:
        weight = setting.random(channels, channels, dtype=dtype) / channels**0.5
        return [*maps_and(2, dtype), weight, setting.random(channels, dtype=dtype)]

    # Each backward reads the maps and the result's gradient, and writes the maps' gradient.
    yield Operation(
        "stylize",
        shape,
        partial(maps_and, 2),
        lambda given, backend: stylize(*given, mask, num_groups=NUM_GROUPS, backend=backend),
        2 * numbers,
        3 * numbers,
    )
    yield Operation(
        "gate",
        shape,
        lambda dtype: [maps(channels + 1, dtype)],
        lambda given, backend: gate_features(*given, mask, channels=channels, backend=backend),
        2 * numbers + gates,
        3 * numbers + 2 * gates,
    )
    yield Operation(
        "styled_residual",
        shape,
        styled,
        lambda given, backend: add_styled(*given, mask, num_groups=NUM_GROUPS, backend=backend),
        2 * numbers,
        3 * numbers,
        shared=(3, 4),
    )


def cases(
    setting: Setting, grid: MapGrid, channels: int, batch: int, dtype: torch.dtype
) -> Iterator[Case]:
    """Measure each operation on the maps of each scale, or of the first with --quick."""
    for scale in range(1 if setting.quick else grid.num_scales):
        for operation in map_operations(setting, grid, scale, channels, batch):
            yield from _timed(setting, "kernels", operation, dtype, "auto")


def operation_cases(setting: Setting) -> Iterator[Case]:
    """Measure `eager` on maps of several sizes; by default, the smallest do not use it."""
    setting = replace(setting, as_in_decoder=True)
    for batch, channels, rows, columns in SIZES[: 1 if setting.quick else None]:
        grid = MapGrid(rows, columns, 1)
        for operation in map_operations(setting, grid, 0, channels, batch):
            yield from _timed(setting, "operations", operation, setting.dtypes[0], "eager")


def _timed(
    setting: Setting, suite: str, operation: Operation, dtype: torch.dtype, ours: str
) -> Iterator[Case]:
    """Measure an operation, and its gradient if it has one."""
    modes = {"forward": (_forward, operation.moved)}
    if operation.moved_back:
        moved = operation.moved + operation.moved_back
        modes["forward+backward"] = (_forward_and_backward, moved)
    for mode, (run, moved) in modes.items():
        work = Work(bytes_moved=float(moved * dtype.itemsize))
        yield TimedCase(
            suite,
            f"{operation.name} {mode}",
            operation.shape,
            dtype,
            partial(_contest, setting, operation, run, dtype, work, ours),
            floor=lambda ceilings, work=work: work.bytes_moved / ceilings.bytes_a_second,
        )


def _forward(operation: Operation, backend: str | None, given: Inputs) -> Inputs:
    with torch.no_grad():
        results = operation.call(given, backend)
    return results if isinstance(results, tuple) else [results]


def _forward_and_backward(operation: Operation, backend: str | None, given: Inputs) -> Inputs:
    *inputs, gradient = given
    leaves = [one.detach().requires_grad_() for one in inputs]
    result = operation.call(leaves, backend)
    return [result.detach(), *torch.autograd.grad(result, leaves, gradient)]


def _contest(
    setting: Setting,
    operation: Operation,
    run: Callable[[Operation, str | None, Inputs], Inputs],
    dtype: torch.dtype,
    work: Work,
    ours: str,
) -> Contest:
    def draw() -> Inputs:
        given = operation.draw(dtype)
        if run is _forward:
            return given
        with inference(AUTO):
            return [*given, torch.randn_like(operation.call(given, "reference"))]

    first = draw()
    inputs = [first, *(draw() for _ in range(setting.num_inputs(first[0].nbytes) - 1))]

    def first_samples(results: Inputs) -> Inputs:
        """Leave out gradients of shared inputs."""
        return [one[:1] for place, one in enumerate(results) if place - 1 not in operation.shared]

    def expected() -> Inputs:
        given = [one if i in operation.shared else one[:1] for i, one in enumerate(first)]
        return first_samples(run(operation, "reference", [one.double() for one in given]))

    calls = {"reference": partial(run, operation, "reference")}
    if setting.compiled:
        calls["compiled"] = compiled(calls["reference"])
    calls[ours] = partial(run, operation, None if ours == "auto" else ours)
    return Contest(
        [
            Candidate(
                backend,
                call,
                inputs,
                partial(backends, AUTO),
                len(first[0]),
                work,
                outputs=first_samples,
            )
            for backend, call in calls.items()
        ],
        expected,
    )
