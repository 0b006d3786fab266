"""Measure what half precision and spectral convolutions change: Rank metrics of a trained model.

    tmapdiff train --root path/to/charades --features timeline --preset nano --output runs/nano
    python benchmarks/precision.py --model runs/nano/pipeline --data path/to/charades

The same model localizes the same queries from the same noise, in each dtype with each way to
convolve (`TMAPDIFF_BACKEND`). Features are simulated from Charades' action annotations; without
--data, queries and videos are made up. The result is a table, and a JSON file (--output).
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from speed_cases import dtype_name
from speed_suites.setting import backends

from tmapdiff import (
    ActionTimelineFeatures,
    MomentDataset,
    MomentLocalizer,
    TmapdiffError,
    Vocabulary,
    load_charades_sta,
)
from tmapdiff._core.files import written_beside
from tmapdiff.data import SyntheticActivities
from tmapdiff.evaluation import evaluate
from tmapdiff.provenance import describe_run

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WAYS = ("direct", "spectral")
RANKS = ("Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7")


def load_queries(root: Path | None, limit: int | None, folder: Path, num_clips: int) -> Any:
    """Load the queries to localize, with simulated features."""
    vocabulary = Vocabulary.load(folder / "vocabulary" / "vocabulary.json")
    if root is None:
        made_up = SyntheticActivities(num_videos=20, seed=1)
        store = ActionTimelineFeatures(made_up.videos, num_classes=made_up.num_classes)
        queries = made_up.annotations
    else:
        store = ActionTimelineFeatures.from_charades(root)
        queries = load_charades_sta(root, "test")
    if limit is not None:
        queries = queries.limit(limit)
    return MomentDataset(queries, store, vocabulary, num_clips=num_clips)


def measure(
    folder: Path, dataset: Any, dtypes: Sequence[torch.dtype], steps: int, device: str
) -> Iterator[dict[str, Any]]:
    """Give the metrics of each dtype and each way to convolve."""
    for dtype in dtypes:
        model = MomentLocalizer.from_pretrained(folder / "localizer").to(device=device, dtype=dtype)
        for way in WAYS:
            with backends(f"map_conv={way}"):
                found = evaluate(model, dataset, num_inference_steps=steps)
            yield {
                "dtype": dtype_name(dtype),
                "map_conv": way,
                "seconds": found.seconds,
                "metrics": found.metrics,
                "predictions": [one.windows[0][:2] for one in found.predictions],
            }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a trained pipeline")
    add("--data", type=Path, help="folder with the Charades-STA files (default: made-up queries)")
    add("--limit", type=int, help="queries (default: all)")
    add("--steps", type=int, default=10, help="denoising steps (default: 10)")
    add("--dtype", nargs="+", choices=[dtype_name(one) for one in DTYPES], help="(default: all)")
    add("--device", default="cpu", help="(default: cpu)")
    add("--output", type=Path, default=Path("runs/precision.json"), help="(default: %(default)s)")
    args = parser.parse_args(arguments)

    dtypes = [one for one in DTYPES if args.dtype is None or dtype_name(one) in args.dtype]
    num_clips = MomentLocalizer.from_pretrained(args.model / "localizer").grid.num_clips
    dataset = load_queries(args.data, args.limit, args.model, num_clips)
    print(f"{len(dataset):,} queries, {args.steps} steps; features: {dataset.store.description}")
    print(f"{'dtype':<10}{'map_conv':<10}", *(f"{name:>10}" for name in RANKS), "  same answer")
    rows: list[dict[str, Any]] = []
    for row in measure(args.model, dataset, dtypes, args.steps, args.device):
        rows.append(row)
        same = sum(map(_alike, row["predictions"], rows[0]["predictions"])) / len(dataset)
        ranks = (f"{row['metrics'][name]:10.2f}" for name in RANKS)
        print(
            f"{row['dtype']:<10}{row['map_conv']:<10}", *ranks, f"{100 * same:11.2f} %", flush=True
        )
    largest = max(
        abs(row["metrics"][name] - rows[0]["metrics"][name]) for row in rows for name in RANKS
    )
    print(f"largest difference to the first row: {largest:.2f} points")
    for row in rows:
        del row["predictions"]
    result = {**describe_run(str(Path(__file__).parent)), "steps": args.steps, "rows": rows}
    with written_beside(args.output) as new:
        new.write_text(json.dumps(result, indent=1) + "\n")


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether moments are of the same cell, whatever the rounding of their seconds."""
    return all(abs(a - b) < 0.01 for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
