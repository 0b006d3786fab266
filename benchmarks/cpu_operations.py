"""Compare what operations do on a CPU with their definitions in plain torch.

    python benchmarks/cpu_operations.py
    python benchmarks/cpu_operations.py --only gate unit_product

For maps of several sizes, channels innermost in memory, with the mask of a finest scale: the ratio
of `eager` to `reference` time, on one core of the CPU, in its own time, the median of turns. Below
1, `eager` is faster. Where it is not, an operation should take the definition (the kernels' own
`__init__.py` say from how many values they do not).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from timing import CpuClock, Effort, Spread, calls_a_turn, take_turns
from torch import Tensor

from tmapdiff import MapGrid
from tmapdiff.kernels.gate import gate_features
from tmapdiff.kernels.styled_residual import add_styled
from tmapdiff.kernels.stylization import stylize
from tmapdiff.kernels.unit_product import unit_product

NUM_GROUPS = 8

# Samples, channels, starts, durations.
SIZES = (
    (1, 32, 16, 8),
    (8, 16, 16, 8),
    (8, 64, 8, 8),
    (8, 64, 32, 8),
    (32, 64, 16, 8),
    (32, 64, 32, 8),
    (32, 128, 64, 16),
)

Operation = Callable[[list[Tensor], Tensor, str], Tensor]


def operations(batch: int, channels: int) -> dict[str, tuple[int, list[Tensor], Operation]]:
    """For each operation: channels of the maps, what it takes besides, and its call."""
    scale, shift = torch.randn(2, batch, channels).unbind()
    weight, bias = torch.randn(channels, channels) / channels**0.5, torch.randn(channels)
    return {
        "gate": (
            channels + 1,
            [],
            lambda given, mask, backend: gate_features(
                *given, mask, channels=channels, backend=backend
            ),
        ),
        "stylization": (
            channels,
            [scale, shift],
            lambda given, mask, backend: stylize(
                *given, mask, num_groups=NUM_GROUPS, backend=backend
            ),
        ),
        "styled_residual": (
            channels,
            [scale, shift, weight, bias],
            lambda given, mask, backend: add_styled(
                *given, mask, num_groups=NUM_GROUPS, backend=backend
            ),
        ),
        "unit_product": (
            channels,
            [scale],
            lambda given, mask, backend: unit_product(*given, mask, backend=backend),
        ),
    }


class Ratios(NamedTuple):
    """Time of `eager` over that of the definition, in inference and with gradients."""

    operation: str
    sizes: tuple[int, ...]
    inference: float
    training: float


def compare(sizes: tuple[int, ...], only: list[str], effort: Effort) -> Iterator[Ratios]:
    """Compare each operation on maps of some sizes."""
    batch, channels, rows, columns = sizes
    mask = MapGrid(rows, columns, 1).mask(0, torch.device("cpu"))
    for name, (width, others, call) in operations(batch, channels).items():
        if name not in only:
            continue
        maps = _maps(batch, width, rows, columns)
        gradient = _maps(batch, channels, rows, columns)

        def inference(backend: str, given: list[Tensor], call: Operation = call) -> None:
            with torch.no_grad():
                call(given, mask, backend)

        def training(
            backend: str,
            given: list[Tensor],
            call: Operation = call,
            gradient: Tensor = gradient,
        ) -> None:
            leaves = [one.detach().requires_grad_() for one in given]
            torch.autograd.grad(call(leaves, mask, backend), leaves, gradient)

        given = [maps, *others]
        yield Ratios(
            name,
            sizes,
            *(_ratio(mode, given, effort) for mode in (inference, training)),
        )


def _maps(batch: int, channels: int, rows: int, columns: int) -> Tensor:
    # Durations outermost and channels innermost, as maps lie in a decoder.
    return torch.randn(columns, rows, batch, channels).permute(2, 3, 1, 0)


def _ratio(mode: Callable[[str, list[Tensor]], None], given: list[Tensor], effort: Effort) -> float:
    clock = CpuClock(time.process_time)
    for backend in ("eager", "reference"):
        mode(backend, given)
    calls = calls_a_turn(clock.seconds(lambda: mode("reference", given)), effort)

    def turn(backend: str) -> Callable[[int], float]:
        def repeat() -> None:
            for _ in range(calls):
                mode(backend, given)

        return lambda _: clock.seconds(repeat) / calls

    backends = ("eager", "reference")
    seconds = take_turns({one: turn(one) for one in backends}, effort, clock.now)
    pairs = zip(*(seconds[one] for one in backends), strict=True)
    return Spread.of([ours / plain for ours, plain in pairs]).median


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(operations(1, NUM_GROUPS))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="OPERATION")
    parser.add_argument("--first", type=int, default=len(SIZES), help="only so many (default: all)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each, at least")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    effort = Effort(rounds=5, seconds=args.seconds)
    print("| operation | samples x channels x map | values | inference | forward and backward |")
    print("| --- | --- | --- | --- | --- |")
    for sizes in SIZES[: args.first]:
        batch, channels, rows, columns = sizes
        for one in compare(sizes, args.only, effort):
            name = f"{batch} x {channels} x {rows}x{columns}"
            values = f"{batch * channels * rows * columns:,}"
            ratios = f"{one.inference:.2f} | {one.training:.2f}"
            print(f"| {one.operation} | {name} | {values} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
