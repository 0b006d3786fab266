"""Train a moment localizer on Charades-STA, evaluate it, and write down everything about it.

    python examples/train_charades.py
    python examples/train_charades.py --root path/to/charades --preset tiny

Without --root it makes up a small data set of scripted activities, and needs no download. With
--root it reads charades_sta_{train,test}.txt and Charades_v1_{train,test}.csv from that folder.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tmapdiff import (
    PRESETS,
    ActionTimelineFeatures,
    MomentDataset,
    MomentLocalizer,
    TmapdiffError,
    Trainer,
    Vocabulary,
    load_charades_sta,
    open_feature_store,
)
from tmapdiff._files import written_beside
from tmapdiff.data import AnnotationSet, FeatureStore, SyntheticActivities, load_glove
from tmapdiff.errors import ConfigError
from tmapdiff.evaluation import (
    Evaluation,
    draw_queries,
    evaluate,
    evaluate_prior,
    fit_moment_prior,
    write_predictions,
)
from tmapdiff.provenance import describe_run

SYNTHETIC_EPOCHS = 30
HOLDOUT_SEED = 0  # The same videos are held out whatever --seed says.


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    presets = ", ".join(f"{name} ({preset.description})" for name, preset in PRESETS.items())
    add = parser.add_argument
    add("--root", type=Path, help="folder with the Charades-STA files (default: made-up data)")
    add(
        "--features",
        default="timeline",
        help="an HDF5 file, a folder of .npy or .npz files, or 'timeline': features simulated "
        "from Charades' action annotations (default: timeline)",
    )
    add(
        "--seconds-per-feature",
        type=float,
        help="seconds between two features of a file or folder (default: duration / features)",
    )
    add("--glove", type=Path, help="text file of GloVe vectors (default: learned embeddings)")
    add("--preset", choices=list(PRESETS), default="tiny", help=f"{presets} (default: tiny)")
    add("--objective", help="what is learned, see tmapdiff.losses (default: the preset's)")
    add(
        "--epochs",
        type=int,
        help=f"passes over the training set (default: the preset's; made-up data "
        f"{SYNTHETIC_EPOCHS})",
    )
    add("--batch-size", type=int, help="queries a training step (default: the preset's)")
    add(
        "--steps",
        type=int,
        nargs="+",
        help="denoising steps of sampling; with several numbers, each is evaluated and the first "
        "is the one whose predictions are written (default: the model's)",
    )
    add("--seed", type=int, default=0, help="seed of weights, data order and noise (default: 0)")
    add("--output", type=Path, help="folder to write to (default: runs/<data>-<preset>-<seed>)")
    add("--resume", action="store_true", help="continue a run in --output that was interrupted")
    add("--limit", type=int, help="pairs to train on and to test on (default: all)")
    add(
        "--holdout",
        type=float,
        help="share of the training videos, 0 to 1, to evaluate on instead of the test set "
        "(default: none; use it for every choice you make)",
    )
    add("--device", choices=["auto", "cpu"], default="auto", help="(default: auto)")
    add(
        "--mixed-precision",
        choices=["no", "fp16", "bf16"],
        help="arithmetic of training's forward pass (default: the preset's)",
    )
    add("--eval-only", type=Path, metavar="MODEL_DIR", help="evaluate this model; train nothing")
    return parser.parse_args(arguments)


def load_data(args: argparse.Namespace) -> tuple[AnnotationSet, AnnotationSet, FeatureStore]:
    """Training pairs, evaluation pairs, and the features of their videos."""
    store: FeatureStore
    if args.root is None:
        synthetic = [SyntheticActivities(split=split) for split in ("train", "test")]
        train, test = (data.annotations for data in synthetic)
        videos = {**synthetic[0].videos, **synthetic[1].videos}
        # Clearer features than Charades' simulated ones: there is little data to learn from.
        classes = SyntheticActivities.num_classes
        store = ActionTimelineFeatures(videos, num_classes=classes, drop=0.0, jitter=0.5, noise=1.0)
    else:
        train = load_charades_sta(args.root, "train")
        test = load_charades_sta(args.root, "test")
        if args.features == "timeline":
            store = ActionTimelineFeatures.from_charades(args.root)
        else:
            store = open_feature_store(args.features, args.seconds_per_feature)
    if args.holdout is not None:
        train, test = train.split_videos(args.holdout, HOLDOUT_SEED)
    train, test = train.restrict_to(store), test.restrict_to(store)
    if args.limit is not None:
        train, test = train.limit(args.limit), test.limit(args.limit)
    for name, annotations in (("train", train), ("test", test)):
        print(f"{name}: {annotations.report}")
    print(f"features: {store.description}")
    return train, test, store


def train_model(
    args: argparse.Namespace, train: AnnotationSet, test: AnnotationSet, store: FeatureStore
) -> tuple[Trainer, MomentDataset, MomentDataset]:
    preset = PRESETS[args.preset]
    chosen = {
        "epochs": args.epochs or (SYNTHETIC_EPOCHS if args.root is None else None),
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
        "seed": args.seed,
    }
    config = replace(preset.training, **{k: v for k, v in chosen.items() if v is not None})

    vocabulary = Vocabulary.from_sentences(pair.query for pair in train)
    clips = preset.grid["num_clips"]
    train_set = MomentDataset(train, store, vocabulary, clips)
    test_set = MomentDataset(test, store, vocabulary, clips)

    torch.manual_seed(args.seed)
    encoder: dict[str, Any] = {}
    if args.glove is not None:
        vectors, found = load_glove(args.glove).rows_for(vocabulary)
        print(f"GloVe: {found} of {len(vocabulary)} words found")
        encoder = {"word_channels": vectors.shape[1], "train_words": False}
    model = preset.build(
        vocabulary_size=len(vocabulary),
        clip_channels=store.feature_dim,
        encoder=encoder,
        **({"objective": args.objective} if args.objective else {}),
    )
    if args.glove is not None:
        model.encoder.load_word_vectors(vectors)
    print(f"model: preset {args.preset}, {model.num_parameters() / 1e6:.2f} million parameters")

    for count in args.steps or []:
        model.scheduler.set_timesteps(count)  # now, rather than after training
    device = None if args.device == "auto" else args.device
    trainer = Trainer(model, train_set, config, args.output, validation=test_set, device=device)
    if args.resume:
        trainer.resume()
    trainer.train()
    return trainer, train_set, test_set


def load_model(
    args: argparse.Namespace, test: AnnotationSet, store: FeatureStore
) -> tuple[MomentLocalizer, MomentDataset]:
    model = MomentLocalizer.from_pretrained(args.eval_only)
    vocabulary = Vocabulary.load(args.eval_only / "vocabulary.json")
    expected = model.config.encoder_config["clip_channels"]
    if store.feature_dim != expected:
        raise ConfigError(
            f"{args.eval_only}: expected features of {expected} channels, as in training, "
            f"got {store.feature_dim} from {store.description}."
        )
    if args.device == "auto" and torch.cuda.is_available():
        model.to("cuda")
    return model, MomentDataset(test, store, vocabulary, model.grid.num_clips)


def print_table(rows: dict[str, dict[str, float]], features: str) -> None:
    names = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    print(f"\n{features}; percent")
    print(" " * width, *(f"{name:>10}" for name in names))
    for name, metrics in rows.items():
        print(f"{name:<{width}}", *(f"{metrics[key]:>10.2f}" for key in names))


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    began = time.perf_counter()
    if args.output is None:
        data = "synthetic" if args.root is None else "charades"
        args.output = Path("runs") / f"{data}-{args.preset}-{args.seed}"
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    with written_beside(args.output / "arguments.json") as new:
        new.write_text(json.dumps(settings, indent=2) + "\n")
    train, test, store = load_data(args)

    rows: dict[str, dict[str, float]] = {}
    if args.eval_only is None:
        trainer, train_set, test_set = train_model(args, train, test, store)
        model = trainer.ema_model.eval()
        prior = fit_moment_prior(model.grid, train_set)
        rows["best constant"] = evaluate_prior(model.grid, prior, test_set)
        steps = args.steps or [model.config.num_inference_steps]
        raw = evaluate(trainer.raw_model, test_set, num_inference_steps=steps[0], seed=args.seed)
        rows[f"raw weights, steps {steps[0]}"] = raw.metrics
    else:
        model, test_set = load_model(args, test, store)
        steps = args.steps or [model.config.num_inference_steps]

    results: dict[int, Evaluation] = {}
    for count in steps:
        found = evaluate(model, test_set, num_inference_steps=count, seed=args.seed)
        results[count] = found
        rows[f"EMA weights, steps {count}" if args.eval_only is None else f"steps {count}"] = (
            found.metrics
        )
    print_table(rows, store.description)

    chosen = results[steps[0]]
    summary = {
        **chosen.metrics,
        "num_inference_steps": steps[0],
        "rows": rows,
        "features": store.description,
        "evaluated_on": str(test.report),
        "seed": args.seed,
        "arguments": settings,
        "seconds": time.perf_counter() - began,
        "queries_per_second": chosen.queries_per_second,
        **describe_run(str(Path(__file__).parent)),
    }
    if args.eval_only is None:
        with written_beside(args.output / "model") as folder:
            model.save_pretrained(folder)
            test_set.vocabulary.save(folder / "vocabulary.json")
    write_predictions(chosen.predictions, args.output / "predictions.jsonl")
    shown = range(0, len(test_set), max(1, len(test_set) // 4))[:4]
    figure = draw_queries(model, test_set, shown, num_inference_steps=steps[0], seed=args.seed)
    with written_beside(args.output / "maps.png") as new:
        figure.savefig(new)
    with written_beside(args.output / "metrics.json") as new:
        new.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\nwritten to {args.output}: metrics.json, predictions.jsonl, maps.png", end="")
    print(", model" if args.eval_only is None else "")


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
