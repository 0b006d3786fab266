r"""Measure and plot the calibration of confidence, from runs of `tables.py --table steps`.

    python benchmarks/tables.py --table steps --preset best --data path/to/charades \
        --holdout 0.1 --seeds 1 --results runs/holdout
    python benchmarks/tables.py --table steps --preset best --data path/to/charades
    python benchmarks/calibration.py --fit runs/holdout --runs runs/tables-best

A Platt calibrator is fitted on the held-out training videos of `--fit`. Runs of other models in
`--runs` are printed without it. An answer is right if its IoU with the annotated moment is above
`--threshold`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from budgets import format_mean, print_head
from torch import Tensor

from tmapdiff import CalibrationMetrics, PlattCalibrator, TmapdiffError, plot_calibration
from tmapdiff._core.files import written_beside
from tmapdiff.errors import ArgumentError, FileError

OTHERS = {"deterministic twin": "deterministic", "MS-2D-TAN": "ms2dtan"}


def load_runs(folder: Path, model: str = "diffusion") -> list[dict[str, Any]]:
    """Load a model's runs that recorded confidence."""
    loaded = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{model}_*.json"))]
    runs = [one for one in loaded if "certainty" in one]
    if not runs and model == "diffusion":
        raise FileError(f"calibration: expected runs of table 'steps' in {folder}, found none.")
    return runs


def certainty(run: dict[str, Any], passes: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Return each query's confidence, (Q,), and whether its best moment is right, (Q,) bool."""
    found = run["certainty"][f"samples, {passes} passes"]
    return torch.tensor(found["confidence"]), torch.tensor(found["iou"]) > threshold


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--fit", type=Path, required=True, help="folder of runs on held-out training videos")
    add("--runs", type=Path, required=True, help="folder of the runs to evaluate")
    add("--passes", type=int, default=1, choices=(1, 10), help="decoder passes (default: 1)")
    add("--threshold", type=float, default=0.7, help="IoU of a right answer (default: 0.7)")
    add("--plot", type=Path, help="write a plot of the first run here")
    args = parser.parse_args(arguments)

    fit_on = load_runs(args.fit)
    if any(run["held_out_training_videos"] is None for run in fit_on):
        raise ArgumentError(
            f"calibration: expected runs with --holdout in {args.fit}, got runs on the test set."
        )
    fitted = [certainty(run, args.passes, args.threshold) for run in fit_on]
    calibrate = PlattCalibrator().fit(*(torch.cat(one) for one in zip(*fitted, strict=True)))
    runs = load_runs(args.runs)
    judged = [certainty(run, args.passes, args.threshold) for run in runs]
    kinds = {
        "diffusion, expected hits": judged,
        "diffusion, calibrated": [
            (calibrate(confidence).float(), correct) for confidence, correct in judged
        ],
    }
    print(f"Features: {runs[0]['features']}.")
    print(f"Rank1@{args.threshold:g}, decoder passes: {args.passes}, {runs[0]['evaluated_on']};")
    print("mean ± standard deviation over seeds, percent.\n")
    for label, model in OTHERS.items():
        if others := load_runs(args.runs, model):
            kinds[label] = [certainty(run, 1, args.threshold) for run in others]
    names: list[str] = []
    for kind, pairs in kinds.items():
        found = []
        for confidence, correct in pairs:
            metrics = CalibrationMetrics()
            metrics.update(confidence.clamp(0, 1), correct)
            found.append(metrics.compute())
        if not names:
            names = list(found[0])
            print_head(["confidence", "seeds", *names])
        cells = [format_mean([one[name] for one in found]) for name in names]
        print(f"| {kind} | {len(found)} |", *(f"{cell} |" for cell in cells))
    if args.plot is not None:
        first = {
            kind: (pairs[0][0].clamp(0, 1), pairs[0][1])
            for kind, pairs in kinds.items()
            if kind.startswith("diffusion")
        }
        title = f"Rank1@{args.threshold:g}, {runs[0]['features'].split(' (')[0]}"
        with written_beside(args.plot) as new:
            plot_calibration(first, title=title).savefig(new, dpi=120)


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
