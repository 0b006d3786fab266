"""Train a moment localizer on DiDeMo, and evaluate it with DiDeMo's own metric.

    python examples/train_didemo.py
    python examples/train_didemo.py --root path/to/didemo --features average_fc7.h5

The map of six clips, six durations and one scale has exactly DiDeMo's 21 moments as its cells.
Without --root it makes up a small data set of scripted activities, and needs no download. With
--root it reads train_data.json and test_data.json from that folder; the features are an HDF5 file
with one array of (6, D) a video, a row a segment, or a folder of such arrays.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from tmapdiff import (
    PRESETS,
    ActionTimelineFeatures,
    MomentDataset,
    TmapdiffError,
    Trainer,
    Vocabulary,
    open_feature_store,
)
from tmapdiff._files import written_beside
from tmapdiff.data import (
    SEGMENT_SECONDS,
    AnnotationSet,
    FeatureStore,
    SyntheticDiDeMo,
    keep_consensus,
    load_didemo,
    write_submission,
)
from tmapdiff.errors import ArgumentError
from tmapdiff.evaluation import evaluate_didemo, evaluate_didemo_prior
from tmapdiff.provenance import describe_run

GRID = {"num_clips": 6, "num_anchors": 6, "num_scales": 1}
SYNTHETIC_EPOCHS = 30


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
    add("--output", type=Path, help="folder to write to (default: runs/didemo-<preset>-<seed>)")
    add("--resume", action="store_true", help="continue a run in --output that was interrupted")
    add("--device", choices=["auto", "cpu"], default="auto", help="(default: auto)")
    return parser.parse_args(arguments)


def load_data(args: argparse.Namespace) -> tuple[AnnotationSet, AnnotationSet, FeatureStore]:
    """Training and test pairs with the moments of all annotators, and the features."""
    store: FeatureStore
    if args.root is None:
        train, test = (SyntheticDiDeMo(split=split) for split in ("train", "test"))
        store = ActionTimelineFeatures(
            {**train.videos, **test.videos},
            num_classes=SyntheticDiDeMo.num_classes,
            drop=0.0,
            jitter=0.5,
            noise=1.0,
        )
        return train.annotations, test.annotations, store
    if args.features is None:
        raise ArgumentError("train_didemo: expected --features with --root, got none.")
    store = open_feature_store(args.features, seconds_per_feature=SEGMENT_SECONDS)
    splits = (load_didemo(args.root, split) for split in ("train", "test"))
    train, test = (split.restrict_to(store) for split in splits)
    return train, test, store


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    train, test, store = load_data(args)
    if args.limit is not None:
        train, test = train.limit(args.limit), test.limit(args.limit)
    print(f"train: {train.report}\ntest: {test.report}\nfeatures: {store.description}")

    vocabulary = Vocabulary.from_sentences(pair.query for pair in train)
    # One moment a query to learn from, and those of all annotators to be judged by.
    train_set, test_set = (
        MomentDataset(part, store, vocabulary, GRID["num_clips"], clip_seconds=SEGMENT_SECONDS)
        for part in (keep_consensus(train), test)
    )
    preset = replace(PRESETS[args.preset], grid=GRID)
    torch.manual_seed(args.seed)
    fields = {"vocabulary_size": len(vocabulary), "clip_channels": store.feature_dim}
    if args.objective is not None:
        fields["objective"] = args.objective
    if args.model == "ms2dtan":
        model = preset.build_ms2dtan(**fields)
    else:
        model = preset.build(**fields, deterministic=args.model == "deterministic")

    epochs = SYNTHETIC_EPOCHS if args.epochs is None and args.root is None else args.epochs
    config = replace(preset.training, seed=args.seed)
    config = config if epochs is None else replace(config, epochs=epochs)
    output = args.output or Path("runs") / f"didemo-{args.preset}-{args.seed}"
    device = None if args.device == "auto" else args.device
    trainer = Trainer(model, train_set, config, output, device=device)
    if args.resume:
        trainer.resume()
    trainer.train()

    averaged = trainer.ema_model.eval()
    found = evaluate_didemo(averaged, test_set, num_inference_steps=args.steps, seed=args.seed)
    prior = evaluate_didemo_prior(train, test)
    print(f"\n{store.description}; percent\n{'':<10} {args.model:>13} {'prior':>7}")
    for name, value in found.metrics.items():
        print(f"{name:<10} {value:>13.2f} {prior[name]:>7.2f}" if name in prior
              else f"{name:<10} {value:>13.2f}")  # fmt: skip

    with written_beside(output / "model") as folder:
        averaged.save_pretrained(folder)
        vocabulary.save(folder / "vocabulary.json")
    write_submission(found.predictions, output / "predictions.jsonl")
    summary = {
        **found.metrics,
        "prior": prior,
        "features": store.description,
        "arguments": {name: str(value) for name, value in vars(args).items()},
        **describe_run(str(Path(__file__).parent)),
    }
    with written_beside(output / "metrics.json") as new:
        new.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nwritten to {output}: metrics.json, predictions.jsonl, model")


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
