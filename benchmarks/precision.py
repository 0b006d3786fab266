"""Measure how half precision and spectral convolutions affect a trained model's Rank metrics.

    tmapdiff train --root path/to/charades --features timeline --preset nano --output runs/nano
    python benchmarks/precision.py --pipeline runs/nano/pipeline --data path/to/charades

The model localizes the same queries from the same noise, in each dtype and with each convolution
backend (`TMAPDIFF_BACKEND`). Features are simulated from Charades' action annotations; without
--data, queries and videos are synthetic.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from speed_cases import dtype_name
from speed_suites.setting import backends

from tmapdiff import MomentLocalizationPipeline, TmapdiffError
from tmapdiff.evaluation import Evaluation, evaluate
from tmapdiff.recipes import LocalizationData, make_pipeline_test_set

DTYPES = {dtype_name(one): one for one in (torch.float32, torch.bfloat16, torch.float16)}
WAYS = ("direct", "spectral")
RANKS = ("Rank1@0.5", "Rank1@0.7", "Rank5@0.5", "Rank5@0.7")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pipeline", type=Path, required=True, help="folder of a trained pipeline")
    add("--data", type=Path, help="folder with the Charades-STA files (default: synthetic queries)")
    add("--limit", type=int, help="queries (default: all)")
    add("--steps", type=int, default=10, help="denoising steps (default: 10)")
    add("--dtype", nargs="+", choices=DTYPES, default=DTYPES, help="(default: all)")
    add("--device", default="cpu", help="(default: cpu)")
    args = parser.parse_args(arguments)

    data = LocalizationData.make_up()
    if args.data is not None:
        data = LocalizationData.load(None, args.data, features=["timeline"])
    data = data.limit(args.limit)
    dataset = make_pipeline_test_set(
        MomentLocalizationPipeline.from_pretrained(args.pipeline), data
    )
    print(f"{len(dataset):,} queries, {args.steps} steps; features: {data.store.description}")
    print(f"{'dtype':<10}{'map_conv':<10}", *(f"{name:>10}" for name in RANKS), "  same answer")
    first: Evaluation | None = None
    largest = 0.0
    for dtype in args.dtype:
        pipeline = MomentLocalizationPipeline.from_pretrained(args.pipeline)
        model = pipeline.localizer.to(args.device, DTYPES[dtype])
        for way in WAYS:
            with backends(f"map_conv={way}"):
                found = evaluate(model, dataset, num_inference_steps=args.steps)
            first = first or found
            largest = max(
                largest, *(abs(found.metrics[name] - first.metrics[name]) for name in RANKS)
            )
            ranks = (f"{found.metrics[name]:10.2f}" for name in RANKS)
            # The same cell, up to the rounding of seconds.
            apart = (best_moments(found) - best_moments(first)).abs().amax(dim=1)
            same = f"{100 * (apart < 0.01).double().mean().item():11.2f} %"
            print(f"{dtype:<10}{way:<10}", *ranks, same, flush=True)
    print(f"largest difference to the first row: {largest:.2f} points")


def best_moments(found: Evaluation) -> torch.Tensor:
    return torch.tensor([answer.windows[0][:2] for answer in found.predictions])


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
