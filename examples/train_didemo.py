"""Train a moment localizer on DiDeMo by a recipe, and evaluate it with DiDeMo's own metric.

    python examples/train_didemo.py
    python examples/train_didemo.py --root path/to/didemo --features average_fc7.h5

The cells of a map with six clips, six durations and one scale are exactly DiDeMo's 21 moments.
Without --root, it uses a small synthetic data set of scripted activities, without a download. With
--root, it reads train_data.json and test_data.json from that folder; the features are an HDF5 file
with one array of (6, D) per video, one row per segment, or a folder of such arrays.
`tmapdiff train --dataset didemo` does the same with more options.
"""

import argparse
from pathlib import Path

from tmapdiff import spin_briefly

spin_briefly()  # before torch is imported

from tmapdiff import PRESETS
from tmapdiff.recipes import (
    LocalizationData,
    Recipe,
    SamplingOptions,
    evaluate_trained,
    is_main_process,
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of DiDeMo (default: synthetic data)")
    parser.add_argument("--features", nargs="+", default=[], help="required with --root")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the model")
    parser.add_argument("--epochs", type=int, help="passes over the data (default: the preset's)")
    parser.add_argument("--limit", type=int, help="queries to train and test on (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs/didemo"), help="a new folder")
    args = parser.parse_args(arguments)

    if args.root is None:
        data = LocalizationData.make_up("didemo")
    else:
        data = LocalizationData.load(args.root, format="didemo", features=args.features)
    data = data.with_features_only().limit(args.limit)
    print(data)

    recipe = Recipe(preset=args.preset, training={"epochs": args.epochs})
    trained = recipe.train(data, args.output, say=print)
    results = evaluate_trained(trained, SamplingOptions(), data)
    if not is_main_process():  # with `accelerate launch`
        return
    for row, metrics in results.rows.items():
        print(f"{row:<24}", *(f"{name} {value:.2f}" for name, value in metrics.items()))
    trained.make_pipeline().save_pretrained(args.output / "pipeline")
    names = results.write(args.output, {"features": data.store.description})
    print(f"written to {args.output}: {', '.join(names)}, pipeline")


if __name__ == "__main__":
    main()
