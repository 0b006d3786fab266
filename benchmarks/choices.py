"""Compare what arithmetic says of direct and spectral convolution with what the clock says.

    python benchmarks/choices.py
    python benchmarks/choices.py --training

For convolutions of several sizes: the ratio of direct to spectral time, by `map_conv/costs.py` and
measured, on one core of the CPU, in its own time, the shortest of several turns. Above 1 the
spectral way is faster. Where the two ratios are far apart, or on two sides of 1, the library would
choose wrongly if it did not ask the clock (`_DOUBTFUL` in `map_conv/__init__.py`).
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from tmapdiff.kernels.map_conv import map_conv, plan_map_conv
from tmapdiff.kernels.map_conv.costs import (
    ConvSizes,
    best_transform,
    direct_seconds,
    spectral_seconds,
)

# Batch, channels in and out, starts, durations, cells that the kernel spans.
SIZES = (
    (1, 1, 129, 64, 16, 17),
    (1, 32, 33, 16, 8, 5),
    (1, 32, 33, 16, 16, 17),
    (1, 64, 65, 8, 8, 5),
    (1, 64, 65, 8, 8, 9),
    (1, 64, 65, 32, 8, 5),
    (1, 128, 65, 32, 8, 5),
    (1, 128, 129, 16, 16, 17),
    (1, 128, 129, 32, 16, 9),
    (1, 256, 129, 64, 16, 5),
    (1, 256, 129, 64, 16, 9),
    (2, 64, 65, 16, 8, 5),
    (8, 128, 65, 32, 8, 5),
    (8, 128, 129, 32, 16, 9),
    (16, 64, 65, 16, 16, 7),
    (32, 1, 65, 32, 8, 5),
    (32, 1, 129, 64, 16, 17),
    (32, 32, 33, 8, 8, 5),
    (32, 64, 65, 8, 8, 5),
    (32, 64, 65, 32, 8, 3),
    (32, 64, 65, 32, 8, 5),
    (32, 128, 65, 32, 8, 5),
    (32, 128, 129, 8, 8, 3),
    (64, 32, 33, 16, 8, 5),
)
TURNS = 6


class Ratio(NamedTuple):
    """Direct over spectral time of a convolution."""

    sizes: tuple[int, ...]
    by_arithmetic: float
    measured: float


def compare(sizes: tuple[int, ...], training: bool, turns: int = TURNS) -> Ratio:
    """Compare arithmetic and clock: in training with gradients, else with weights that stay."""
    batch, channels, out_channels, rows, columns, size = sizes
    # Durations outermost and channels innermost, as maps lie in a decoder.
    x = torch.randn(columns, rows, batch, channels).permute(2, 3, 1, 0)
    gradient = torch.randn(columns, rows, batch, out_channels).permute(2, 3, 1, 0)
    weight, bias = torch.randn(out_channels, channels, size, size), torch.randn(out_channels)
    leaves = [one.requires_grad_(training) for one in (x, weight, bias)]

    def run(backend: str) -> Callable[[], object]:
        if training:
            return lambda: torch.autograd.grad(map_conv(*leaves, backend=backend), leaves, gradient)
        plan = plan_map_conv(weight, x.shape, x.dtype, backend=backend)
        return lambda: map_conv(x, weight, bias, plan=plan)

    direct, spectral = (run(backend) for backend in ("direct", "spectral"))
    best = [float("inf")] * 2
    for turn in range(1 + turns):
        for place, one in enumerate((direct, spectral)):
            began = time.process_time()
            one()
            if turn:  # not the first, which makes tables
                best[place] = min(best[place], time.process_time() - began)
    wanted = ConvSizes(*sizes, x.dtype, "cpu")
    transform = best_transform(wanted, with_kernel=training)
    expected = direct_seconds(wanted) / spectral_seconds(wanted, transform, with_kernel=training)
    return Ratio(sizes, expected, best[0] / best[1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", action="store_true", help="with gradients")
    parser.add_argument("--first", type=int, default=len(SIZES), help="only so many (default: all)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ratios = sorted(
        (compare(sizes, args.training) for sizes in SIZES[: args.first]),
        key=lambda one: one.by_arithmetic,
    )
    print("| batch, channels, out, starts, durations, kernel | by arithmetic | measured |")
    print("| --- | --- | --- |")
    for one in ratios:
        name = ", ".join(map(str, one.sizes))
        print(f"| {name} | {one.by_arithmetic:.2f} | {one.measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
