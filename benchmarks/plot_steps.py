"""Draw a metric over the number of denoising steps, from the JSON files that tables.py writes.

    python benchmarks/plot_steps.py docs/results/tables-nano-timeline --models both MS-2D-TAN
    python benchmarks/plot_steps.py docs/results/tables-best-timeline --metric Rank5@0.7

Runs that differ in their seed only are one line: mean and standard deviation. Runs of the tables
"target" and "steps" give a line for each way to spend passes of the decoder.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budgets import READINGS

from tmapdiff import TmapdiffError, plot_steps
from tmapdiff._files import written_beside
from tmapdiff.errors import FileError

Curve = tuple[list[int], list[list[float]]]


def read_curves(runs: list[dict[str, Any]], metric: str, reading: str) -> dict[str, Curve]:
    """Return numbers of steps and values of the metric, (seeds, steps), of each model."""
    found: dict[str, list[dict[int, float]]] = defaultdict(list)
    for run in runs:
        values: dict[str, dict[int, float]] = defaultdict(dict)
        for name, steps, metrics in _measured(run, reading):
            if metric in metrics:
                values[name][steps] = metrics[metric]
        for name, by_steps in values.items():
            found[name].append(by_steps)
    curves = {}
    for name, seeds in found.items():
        shared = sorted(set.intersection(*(set(seed) for seed in seeds)))
        curves[name] = shared, [[seed[steps] for steps in shared] for seed in seeds]
    return curves


def _measured(run: dict[str, Any], reading: str) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Give the line that each measurement of a run belongs to, its steps and its metrics."""
    label = run["row"]["label"]
    for steps, metrics in run.get("metrics", {}).items():
        yield label, max(int(steps), 1), metrics  # no steps: of what is no network
    budgets = [budget for budget in run.get("budgets", []) if budget["reading"] == reading]
    several = len({budget["recipe"] for budget in budgets}) > 1
    for budget in budgets:
        recipe = budget["recipe"]
        yield f"{label}, {recipe}" if several else label, budget["passes"], budget["metrics"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("results", type=Path, help="folder of JSON files")
    add("--metric", default="Rank1@0.5", help="(default: Rank1@0.5)")
    add("--models", nargs="+", help="labels of rows to draw (default: all)")
    add("--reading", choices=list(READINGS), default="expected hits", help="of budgets of passes")
    add("--output", type=Path, default=Path("steps.png"), help="(default: steps.png)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    runs = [json.loads(path.read_text()) for path in sorted(args.results.glob("*.json"))]
    runs = [run for run in runs if not args.models or run["row"]["label"] in args.models]
    curves = read_curves(runs, args.metric, args.reading)
    if not curves:
        wanted = f" of {', '.join(args.models)}" if args.models else ""
        raise FileError(
            f"plot_steps: expected runs{wanted} with {args.metric} in {args.results}, found none."
        )
    passes = any("budgets" in run for run in runs)
    ax = plot_steps(
        curves,
        metric=args.metric,
        title="; ".join(sorted({run["features"].split(" (")[0] for run in runs})),
        xlabel="passes of the decoder" if passes else "denoising steps",
    )
    with written_beside(args.output) as new:
        ax.figure.savefig(new)


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
