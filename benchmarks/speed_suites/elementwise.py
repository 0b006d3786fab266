"""Operations on each cell or channel, which should cost no more than reading and writing maps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from speed_cases import Candidate, Case, Contest, TimedCase, Work
from torch import Tensor

from speed_suites.setting import AUTO, Setting, backends, compiled, inference
from tmapdiff import MapGrid
from tmapdiff.kernels.ddim_step import ddim_coefficients, ddim_step
from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.stylization import stylize

NUM_GROUPS = 8

Inputs = Sequence[Tensor]


@dataclass(frozen=True)
class Operation:
    """An operation on maps.

    Args:
        name: Its name.
        shape: Sizes that say how large it is.
        draw: Draws its inputs, a sample a row; gradients are of all of them.
        call: Runs it on them, with a backend.
        moved: Numbers that it reads and writes, at least.
        moved_back: The same of its gradient; 0 if it has none.
    """

    name: str
    shape: dict[str, Any]
    draw: Callable[[torch.dtype], Inputs]
    call: Callable[[Inputs, str | None], Inputs]
    moved: int
    moved_back: int = 0


def operations(setting: Setting, grid: MapGrid, channels: int, batch: int) -> Iterator[Operation]:
    """List the operations: on the maps of each scale, or of the first with --quick."""
    for scale, (rows, columns) in enumerate(grid.shapes[: 1 if setting.quick else None]):
        mask = grid.mask(scale, setting.device)
        shape = {"batch": batch, "maps": f"{rows}x{columns}", "channels": channels}
        numbers = batch * channels * rows * columns
        gates = batch * rows * columns

        def maps(width: int, dtype: torch.dtype, size: tuple[int, int] = (rows, columns)) -> Tensor:
            return setting.layout(setting.random(batch, width, *size, dtype=dtype))

        def styles(dtype: torch.dtype) -> Inputs:
            return [setting.random(batch, channels, dtype=dtype) for _ in range(2)]

        # Backward, both read the maps and the gradient of the result, and write one of the maps.
        yield Operation(
            "stylize",
            shape,
            lambda dtype, maps=maps: [maps(channels, dtype), *styles(dtype)],
            lambda given, backend, mask=mask: [
                stylize(*given, mask, num_groups=NUM_GROUPS, backend=backend)
            ],
            moved=2 * numbers,
            moved_back=3 * numbers,
        )
        yield Operation(
            "gate",
            shape,
            lambda dtype, maps=maps: [maps(channels + 1, dtype)],
            lambda given, backend, mask=mask: [
                gate_features(*given, mask, channels=channels, backend=backend)
            ],
            moved=2 * numbers + gates,
            moved_back=3 * numbers + 2 * gates,
        )
    row = ddim_coefficients([0.1, 0.6], signal_scale=0.1)[0].tolist()
    cells = grid.num_cells
    yield Operation(
        "ddim_step",
        {"batch": batch, "cells": cells},
        lambda dtype: [setting.random(batch, cells, dtype=dtype) for _ in range(2)],
        lambda given, backend: ddim_step(*given, row, backend=backend),
        moved=5 * batch * cells,
    )


def cases(
    setting: Setting, grid: MapGrid, channels: int, batch: int, dtype: torch.dtype
) -> Iterator[Case]:
    """Measure each operation, and with its gradient if it has one."""
    for operation in operations(setting, grid, channels, batch):
        modes = {"forward": (_forward, operation.moved)}
        if operation.moved_back:
            moved = operation.moved + operation.moved_back
            modes["forward+backward"] = (_forward_and_backward, moved)
        for mode, (run, moved) in modes.items():
            work = Work(bytes_moved=float(moved * dtype.itemsize))
            yield TimedCase(
                "kernels",
                f"{operation.name} {mode}",
                operation.shape,
                dtype,
                partial(_contest, setting, operation, run, dtype, work),
                floor=lambda ceilings, work=work: work.bytes_moved / ceilings.bytes_a_second,
            )


def _forward(operation: Operation, backend: str | None, given: Inputs) -> Inputs:
    with torch.no_grad():
        return operation.call(given, backend)


def _forward_and_backward(operation: Operation, backend: str | None, given: Inputs) -> Inputs:
    *inputs, gradient = given
    leaves = [one.detach().requires_grad_() for one in inputs]
    [result] = operation.call(leaves, backend)
    return [result.detach(), *torch.autograd.grad(result, leaves, gradient)]


def _contest(
    setting: Setting,
    operation: Operation,
    run: Callable[[Operation, str | None, Inputs], Inputs],
    dtype: torch.dtype,
    work: Work,
) -> Contest:
    def draw() -> Inputs:
        given = operation.draw(dtype)
        if run is _forward:
            return given
        with inference(AUTO):
            [result] = operation.call(given, "reference")
        return [*given, torch.randn_like(result)]

    first = draw()
    inputs = [first, *(draw() for _ in range(setting.num_inputs(first[0].nbytes) - 1))]
    calls = {"reference": partial(run, operation, "reference")}
    if setting.compiled:
        calls["compiled"] = compiled(calls["reference"])
    calls["auto"] = partial(run, operation, None)
    return Contest(
        [
            Candidate(
                backend,
                call,
                inputs,
                partial(backends, AUTO),
                len(first[0]),
                work,
                outputs=lambda results: [one[:1] for one in results],
            )
            for backend, call in calls.items()
        ],
        lambda: run(operation, "reference", [one[:1].double() for one in first]),
    )
