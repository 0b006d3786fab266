"""Train a moment localizer on DiDeMo, and evaluate it with DiDeMo's own metric.

    python examples/train_didemo.py
    python examples/train_didemo.py --root path/to/didemo --features average_fc7.h5

The map of six clips, six durations and one scale has exactly DiDeMo's 21 moments as its cells.
Without --root it makes up a small data set of scripted activities, and needs no download. With
--root it reads train_data.json and test_data.json from that folder; the features are an HDF5 file
with one array of (6, D) a video, a row a segment, or a folder of such arrays.
"""

import argparse
import sys
from pathlib import Path

from tmapdiff import spin_briefly

spin_briefly()  # before torch is imported

from tmapdiff import PRESETS, TmapdiffError
from tmapdiff.errors import ArgumentError
from tmapdiff.provenance import describe_run
from tmapdiff.recipes import (
    LocalizationData,
    Reading,
    Recipe,
    check_run_folder,
    evaluate_trained,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, help="folder with the DiDeMo files (default: made-up data)")
    add("--features", type=Path, help="features of the videos; needed with --root")
    add("--model", choices=["diffusion", "deterministic", "ms2dtan"], default="diffusion")
    add("--preset", choices=list(PRESETS), default="tiny", help="size of the model (default: tiny)")
    add("--objective", help="what is learned, see tmapdiff.losses (default: the model's)")
    add("--epochs", type=int, help="passes over the training set (default: the preset's)")
    add("--steps", type=int, help="denoising steps of sampling (default: the model's)")
    add("--seed", type=int, default=0, help="seed of weights, data order and noise (default: 0)")
    add("--limit", type=int, help="pairs to train on and to test on (default: all)")
    add("--output", type=Path, help="folder to write to (default: in runs, named after options)")
    add(
        "--resume", action="store_true", help="continue the run in --output; it may get more epochs"
    )
    add("--overwrite", action="store_true", help="replace the run in --output")
    add("--device", choices=["auto", "cpu"], default="auto", help="(default: auto)")
    return parser.parse_args(arguments)


def load_data(args: argparse.Namespace) -> LocalizationData:
    """Training and test pairs with the moments of all annotators, and the features."""
    if args.root is None:
        data = LocalizationData.make_up("didemo")
    elif args.features is None:
        raise ArgumentError("train_didemo: expected --features with --root, got none.")
    else:
        data = LocalizationData.load(args.root, format="didemo", features=[args.features])
    data = data.with_features_only()
    return data if args.limit is None else data.limit(args.limit)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    recipe = Recipe(
        preset=args.preset,
        model=args.model,
        objective=args.objective,
        seed=args.seed,
        training={"epochs": args.epochs},
    )
    features = None if args.features is None else [args.features]
    sources = {"train": args.root, "features": features, "limit": args.limit}
    output = args.output or recipe.default_folder("didemo", sources)
    check_run_folder(output, resume=args.resume, overwrite=args.overwrite)
    data = load_data(args)
    print(data)

    device = None if args.device == "auto" else args.device
    reading = Reading(
        () if args.steps is None else (args.steps,), seed=args.seed, protocol=data.protocol
    )
    trained = recipe.train(
        data,
        output,
        steps=reading.steps,
        device=device,
        resume=args.resume,
        overwrite=args.overwrite,
        say=print,
    )
    results = evaluate_trained(trained, reading, data)
    found, prior = results.summary(), results.rows["best constant"]
    print(f"\n{data.store.description}; percent\n{'':<10} {args.model:>13} {'prior':>7}")
    for name in results.evaluation.metrics:
        beside = f"{prior[name]:>7.2f}" if name in prior else ""
        print(f"{name:<10} {found[name]:>13.2f} {beside}".rstrip())

    trained.save_model(output / "model")
    trained.make_pipeline().save_pretrained(output / "pipeline")
    details = {
        "prior": prior,
        "features": data.store.description,
        "arguments": {name: str(value) for name, value in vars(args).items()},
        **describe_run(str(Path(__file__).parent)),
    }
    names = (*results.write(output, details), "model", "pipeline")
    print(f"\nwritten to {output}: {', '.join(names)}")


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
