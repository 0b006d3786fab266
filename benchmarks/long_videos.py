"""Measure what a query about a long video costs: time and memory over the number of clips.

    python benchmarks/long_videos.py
    python benchmarks/long_videos.py --clips 64 256 1024 --cases nms --plot long-videos.png

One query, random weights and features, two denoising steps. Each number of clips runs in a process
of its own, with one thread. Time is the processor's, the median of some runs after one that is not
counted; memory is that of all tensors that `localize` makes at its peak, and by how much the
process grew (its largest resident set, over that after a short video). Growth is the exponent of
the power of N that fits the upper half of the numbers of clips best, by least squares of
logarithms.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peaks import peak_bytes

from tmapdiff import PRESETS
from tmapdiff._core.files import written_beside
from tmapdiff.models import MapLocalizer
from tmapdiff.plots.style import COLORS, MARKERS, new_figure
from tmapdiff.presets import Preset
from tmapdiff.provenance import describe_run

CLIPS = tuple(2**power for power in range(6, 15))
STEPS = 2
TINY, PAPER = PRESETS["tiny"], PRESETS["paper"]
# The paper's maps and kernels, of channels few enough for an hour of video on two cores.
NARROW = replace(
    PAPER,
    encoder={**PAPER.encoder, "channels": 32, "word_channels": 32},
    decoder={**PAPER.decoder, "channels": 32, "time_channels": 32},
)


@dataclass(frozen=True)
class Case:
    """A model, and how moments are read off its maps."""

    label: str
    preset: Preset
    ranking: str


CASES = {
    "nms": Case("preset tiny, NMS", TINY, "nms"),
    "expected-hits": Case("preset tiny, expected hits", TINY, "expected-hits"),
    "17x17": Case("17x17 kernels, A = 16, 32 channels, expected hits", NARROW, "expected-hits"),
}


def build_model(case: Case) -> MapLocalizer:
    torch.manual_seed(0)
    return case.preset.build(vocabulary_size=100, clip_channels=64).eval()


def ask(model: MapLocalizer, clips: int, ranking: str) -> Any:
    """Localize one query in a video of so many clips."""
    random = torch.Generator().manual_seed(clips)
    return model.localize(
        torch.randn(1, clips, 64, generator=random),
        torch.randint(2, 100, (1, 8), generator=random),
        torch.tensor([8]),
        torch.ones(1),
        num_clips=torch.tensor([clips]),
        ranking=ranking,
        num_inference_steps=STEPS,
        generator=[random],
    )


def measure(case: Case, clips: int, repeats: int) -> dict[str, float]:
    """Seconds and bytes of one query; the process should be a fresh one."""
    torch.set_num_threads(1)
    model = build_model(case)
    ask(model, min(CLIPS), case.ranking)
    before = _largest_resident_set()
    ask(model, clips, case.ranking)
    grown = _largest_resident_set() - before
    times = []
    for _ in range(repeats):
        began = time.process_time()
        ask(model, clips, case.ranking)
        times.append(time.process_time() - began)
    peak = peak_bytes(lambda: ask(model, clips, case.ranking), torch.device("cpu"))
    return {
        "clips": clips,
        "seconds": statistics.median(times),
        "tensor_bytes": peak,
        "process_bytes": grown,
    }


def _largest_resident_set() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_apart(name: str, clips: int, repeats: int) -> dict[str, float]:
    """Do the same as `measure`, in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(clips), "--repeats", str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def growth(clips: Sequence[int], costs: Sequence[float]) -> float:
    """Exponent of the power of the clips that costs grow with, over the upper half."""
    half = len(clips) // 2
    exponent, _ = np.polyfit(np.log(clips[half:]), np.log(costs[half:]), 1)
    return float(exponent)


def table(label: str, rows: Sequence[dict[str, float]]) -> str:
    """Say what a case costs, in Markdown."""
    lines = [
        f"{label}:\n",
        "| clips | seconds | tensors, MiB | process grew by, MiB |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        tensors, process = row["tensor_bytes"] / 2**20, row["process_bytes"] / 2**20
        lines.append(f"| {row['clips']} | {row['seconds']:.3f} | {tensors:.1f} | {process:.0f} |")
    clips = [int(row["clips"]) for row in rows]
    exponents = [growth(clips, [row[key] for row in rows]) for key in ("seconds", "tensor_bytes")]
    lines.append("| growth | {:.2f} | {:.2f} | |".format(*exponents))
    return "\n".join(lines)


def draw(results: dict[str, list[dict[str, float]]]) -> Any:
    """Draw time and memory over clips, with a line of slope 1."""
    figure = new_figure(7.2, 3.0, "long_videos")
    axes = figure.subplots(1, 2)
    for axis, key, unit, title in (
        (axes[0], "seconds", 1, "processor seconds a query"),
        (axes[1], "tensor_bytes", 2**20, "tensors at the peak, MiB"),
    ):
        for place, (name, rows) in enumerate(results.items()):
            clips = [row["clips"] for row in rows]
            costs = [row[key] / unit for row in rows]
            axis.loglog(
                clips, costs, color=COLORS[place], marker=MARKERS[place], label=CASES[name].label
            )
        axis.loglog(
            clips,
            [costs[-1] * one / clips[-1] for one in clips],
            ":",
            color="0.5",
            label="proportional",
        )
        axis.set_xlabel("clips N")
        axis.set_title(title, fontsize=9)
        axis.grid(linewidth=0.3)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7
    )
    return figure


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--clips", type=int, nargs="+", default=list(CLIPS), help="(default: 64 ... 16384)")
    add("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="(default: all)")
    add("--repeats", type=int, default=3, help="timed runs (default: 3)")
    add("--json", type=Path, help="file to write the result to")
    add("--plot", type=Path, help="picture to draw")
    add("--one", nargs=2, metavar=("CASE", "CLIPS"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.one:
        name, clips = args.one
        print(json.dumps(measure(CASES[name], int(clips), args.repeats)))
        return
    results = {}
    for name in args.cases:
        results[name] = [measure_apart(name, clips, args.repeats) for clips in args.clips]
        print(table(CASES[name].label, results[name]) + "\n", flush=True)
    if args.json:
        found = {"results": results, **describe_run(str(Path(__file__).parent))}
        with written_beside(args.json) as new:
            new.write_text(json.dumps(found, indent=2) + "\n")
    if args.plot:
        with written_beside(args.plot) as new:
            draw(results).savefig(new)


if __name__ == "__main__":
    main()
