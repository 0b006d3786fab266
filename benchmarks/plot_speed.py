"""Draw the ratios of a result of speed.py: a bar a backend, whiskers from the 20th to the 80th %.

    python benchmarks/plot_speed.py runs/speed/sampling--cpu--float32.json --output sampling.png

Left of the line is faster than the reference. What failed is not drawn, and named.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tmapdiff import TmapdiffError
from tmapdiff._checks import require
from tmapdiff._files import written_beside
from tmapdiff.errors import FileError

# Greys and hatches that stay apart in print; whoever is first gets the darkest.
_LOOKS = (
    ("0.15", ""),
    ("0.45", ""),
    ("0.7", ""),
    ("0.9", ""),
    ("0.9", "////"),
    ("0.9", "xxxx"),
    ("0.9", "...."),
    ("0.7", "\\\\\\\\"),
)

Group = Sequence[Mapping[str, Any]]


def drawable(result: Mapping[str, Any], suite: str | None = None) -> dict[str, Group]:
    """Group the records that have a ratio to another backend, by case."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in result["results"]:
        timed = one["ratio_p20"] is not None and one["backend"] != one["reference"]
        if timed and suite in (None, one["suite"]):
            groups.setdefault(case_label(one), []).append(one)
    return groups


def case_label(record: Mapping[str, Any]) -> str:
    """Name a case, its sizes and its reference."""
    sizes = ", ".join(f"{name} {value}" for name, value in record["shape"].items())
    lines = [f"{record['suite']}: {record['case']}", sizes, f"1 is {record['reference']}"]
    return "\n".join(filter(None, lines))


def draw(result: Mapping[str, Any], groups: Mapping[str, Group]) -> Any:
    """Draw them, on a scale of doublings."""
    figures: Any = require("matplotlib.figure", extra="viz", purpose="plot_speed")
    ticker: Any = require("matplotlib.ticker", extra="viz", purpose="plot_speed")
    names = list(dict.fromkeys(one["backend"] for group in groups.values() for one in group))
    looks = {name: _LOOKS[place % len(_LOOKS)] for place, name in enumerate(names)}
    heights = [len(group) for group in groups.values()]
    figure = figures.Figure(
        figsize=(8, 1.2 + 0.26 * sum(heights) + 0.45 * len(groups)), layout="constrained"
    )
    panels = figure.subplots(
        len(groups), sharex=True, squeeze=False, height_ratios=[one + 0.5 for one in heights]
    )[:, 0]
    for panel, (label, group) in zip(panels, groups.items(), strict=True):
        for place, one in enumerate(group):
            ratio = one["ratio_to_reference"]
            shade, hatch = looks[one["backend"]]
            whisker = [[ratio - one["ratio_p20"]], [one["ratio_p80"] - ratio]]
            # From 1, so that length is how much faster or slower.
            panel.barh(place, ratio - 1, left=1, color=shade, hatch=hatch, edgecolor="black")
            panel.errorbar(ratio, place, xerr=whisker, color="tab:red", capsize=3)
        panel.set_yticks(range(len(group)), [bar_label(one) for one in group], fontsize=7)
        panel.set_ylim(len(group) - 0.4, -0.6)
        panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7, labelpad=8)
        panel.axvline(1, color="black")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _fraction(value)))
        panel.grid(axis="x", linewidth=0.4)
        panel.set_axisbelow(True)
    panels[-1].set_xlabel("time an item, divided by the reference's (less is faster)")
    about = result["metadata"]
    device = about["cpu"] if about["device"] == "cpu" else about["device"]
    commit = (about["commit"] or "unknown")[:10] + ("-dirty" if about["dirty"] else "")
    figure.suptitle(f"{device}, torch {about['torch']}, commit {commit}", fontsize=9)
    return figure


def bar_label(record: Mapping[str, Any]) -> str:
    """Name a bar: the backend and its ratio."""
    return f"{record['backend']}, {record['dtype']}  {record['ratio_to_reference']:.3g}"


def _fraction(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="a JSON file of speed.py")
    parser.add_argument("--suite", help="only this suite")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    args = parser.parse_args(arguments)
    try:
        result = json.loads(args.results.read_text())
    except (OSError, ValueError) as error:
        raise FileError(f"plot_speed: expected a result of speed.py: {error}") from error
    groups = drawable(result, args.suite)
    if not groups:
        raise FileError(f"plot_speed: expected ratios in {args.results}, found none.")
    figure = draw(result, groups)
    with written_beside(args.output) as new:
        figure.savefig(new, format=args.output.suffix[1:] or "png", dpi=150)
    for one in result["results"]:
        if one["error"] is not None:
            print(f"not drawn: {one['suite']}: {one['case']}, {one['backend']}: {one['error']}")


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
