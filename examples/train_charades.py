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
    MapGrid,
    MomentDataset,
    MomentLocalizer,
    TmapdiffError,
    Trainer,
    Vocabulary,
    load_charades_sta,
    open_feature_store,
)
from tmapdiff._checks import check_int
from tmapdiff._files import written_beside
from tmapdiff.data import (
    AnnotationSet,
    FeatureStore,
    SyntheticActivities,
    load_glove,
    write_submission,
)
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.evaluation import (
    Evaluation,
    draw_queries,
    evaluate,
    evaluate_oracle,
    evaluate_prior,
    fit_moment_prior,
)
from tmapdiff.models import MS2DTAN, MapLocalizer
from tmapdiff.presets import DECODERS
from tmapdiff.provenance import describe_run

MODELS = ("diffusion", "deterministic", "ms2dtan", "prior", "oracle")
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
    add(
        "--model",
        choices=MODELS,
        default="diffusion",
        help="what to train, or a control: the same decoder as a plain regressor, the baseline, "
        "the best constant answer, or the true maps (default: diffusion)",
    )
    add("--decoder", choices=list(DECODERS), help="decoder of Table 3 (default: cnn-concat)")
    add("--objective", help="what is learned, see tmapdiff.losses (default: the model's)")
    add(
        "--clip-seconds",
        type=float,
        help="seconds of a clip: train on windows of long videos, test on whole ones "
        "(default: clips divide each video equally)",
    )
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
    add(
        "--samples",
        type=int,
        help="samples of each query that are averaged; each costs --steps passes of the decoder "
        "(default: the model's)",
    )
    add(
        "--ranking",
        choices=["nms", "expected-hits"],
        help="how moments are read off the maps (default: the model's)",
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
    add(
        "--activation-checkpointing",
        action="store_true",
        help="compute activations of the decoder anew for the gradient: less memory, more time, "
        "the same results",
    )
    add(
        "--compile",
        action="store_true",
        help="let torch.compile speed up training; results are rounded differently",
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


def make_datasets(
    args: argparse.Namespace,
    grid: MapGrid,
    vocabulary: Vocabulary,
    store: FeatureStore,
    *parts: AnnotationSet,
) -> list[MomentDataset]:
    """One dataset a part; the last is that to test on, with whole videos."""
    clips = {"clip_seconds": args.clip_seconds, "clip_multiple": grid.stride(grid.num_scales - 1)}
    return [
        MomentDataset(
            part,
            store,
            vocabulary,
            grid.num_clips,
            **clips,
            whole_videos=args.clip_seconds is not None and part is parts[-1],
        )
        for part in parts
    ]


def build_model(
    args: argparse.Namespace, vocabulary: Vocabulary, store: FeatureStore
) -> MapLocalizer:
    preset = PRESETS[args.preset]
    torch.manual_seed(args.seed)
    fields: dict[str, Any] = {
        "vocabulary_size": len(vocabulary),
        "clip_channels": store.feature_dim,
        **({"objective": args.objective} if args.objective else {}),
    }
    if args.glove is not None:
        vectors, found = load_glove(args.glove).rows_for(vocabulary)
        print(f"GloVe: {found} of {len(vocabulary)} words found")
        fields["encoder"] = {"word_channels": vectors.shape[1], "train_words": False}
    model: MapLocalizer
    if args.model == "ms2dtan":
        model = preset.build_ms2dtan(**fields)
    else:
        decoder = DECODERS[args.decoder] if args.decoder else {}
        model = preset.build(decoder=decoder, deterministic=args.model == "deterministic", **fields)
    if args.glove is not None:
        model.encoder.load_word_vectors(vectors)
    print(f"model: preset {args.preset}, {model.num_parameters() / 1e6:.2f} million parameters")
    return model


def train_model(
    args: argparse.Namespace, train: AnnotationSet, test: AnnotationSet, store: FeatureStore
) -> tuple[Trainer, MomentDataset, MomentDataset]:
    preset = PRESETS[args.preset]
    chosen = {
        "epochs": SYNTHETIC_EPOCHS if args.epochs is None and args.root is None else args.epochs,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
        "seed": args.seed,
        "activation_checkpointing": args.activation_checkpointing,
        "compile": args.compile,
    }
    config = replace(preset.training, **{k: v for k, v in chosen.items() if v is not None})

    vocabulary = Vocabulary.from_sentences(pair.query for pair in train)
    train_set, test_set = make_datasets(args, preset.make_grid(), vocabulary, store, train, test)
    model = build_model(args, vocabulary, store)
    for count in args.steps or []:
        if isinstance(model, MomentLocalizer):
            model.scheduler.set_timesteps(count)  # now, rather than after training
    device = None if args.device == "auto" else args.device
    trainer = Trainer(model, train_set, config, args.output, validation=test_set, device=device)
    if args.resume:
        trainer.resume()
    trainer.train()
    return trainer, train_set, test_set


def load_model(
    args: argparse.Namespace, test: AnnotationSet, store: FeatureStore
) -> tuple[MapLocalizer, MomentDataset]:
    kind = MS2DTAN if args.model == "ms2dtan" else MomentLocalizer
    model: MapLocalizer = kind.from_pretrained(args.eval_only)
    vocabulary = Vocabulary.load(args.eval_only / "vocabulary.json")
    expected = model.config.encoder_config["clip_channels"]
    if store.feature_dim != expected:
        raise ConfigError(
            f"{args.eval_only}: expected features of {expected} channels, as in training, "
            f"got {store.feature_dim} from {store.description}."
        )
    if args.device == "auto" and torch.cuda.is_available():
        model.to("cuda")
    return model, make_datasets(args, model.grid, vocabulary, store, test)[0]


def evaluate_control(
    args: argparse.Namespace, train: AnnotationSet, test: AnnotationSet, store: FeatureStore
) -> dict[str, float]:
    """Metrics of an answer that no model gives."""
    grid = PRESETS[args.preset].make_grid()
    vocabulary = Vocabulary.from_sentences(pair.query for pair in (*train, *test))
    train_set, test_set = make_datasets(args, grid, vocabulary, store, train, test)
    if args.model == "oracle":
        return evaluate_oracle(grid, test_set)
    return evaluate_prior(grid, fit_moment_prior(grid, train_set), test_set)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing, and numbers that would fail after training."""
    if args.samples is not None:
        check_int("--samples", "the number", args.samples, at_least=1)
    untrained = args.eval_only is not None or args.model in ("prior", "oracle")
    for option, given, needed in (
        ("--features", args.features != "timeline" and args.root is None, "--root"),
        ("--seconds-per-feature", args.seconds_per_feature and args.features == "timeline",
         "--features"),
        ("--resume", args.resume and untrained, "a model to train"),
        ("--activation-checkpointing", args.activation_checkpointing and untrained,
         "a model to train"),
        ("--compile", args.compile and untrained, "a model to train"),
        ("--decoder", args.decoder and args.model not in ("diffusion", "deterministic"),
         "--model diffusion or deterministic"),
        ("--steps", args.steps and args.model != "diffusion", "--model diffusion"),
        ("--samples", args.samples and args.model != "diffusion", "--model diffusion"),
        ("--ranking", args.ranking and args.model in ("prior", "oracle"), "a model that learns"),
        ("--eval-only", args.eval_only and args.model in ("prior", "oracle"), "a trained model"),
    ):  # fmt: skip
        if given:
            raise ArgumentError(f"{option}: expected {needed} with it, got none.")


def print_table(rows: dict[str, dict[str, float]], features: str) -> None:
    names = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    print(f"\n{features}; percent")
    print(" " * width, *(f"{name:>10}" for name in names))
    for name, metrics in rows.items():
        print(f"{name:<{width}}", *(f"{metrics[key]:>10.2f}" for key in names))


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    check_arguments(args)
    began = time.perf_counter()
    if args.output is None and args.eval_only is not None:
        args.output = args.eval_only.parent / "evaluation"
    elif args.output is None:
        data = "synthetic" if args.root is None else "charades"
        model_name = args.preset if args.model == "diffusion" else f"{args.preset}-{args.model}"
        args.output = Path("runs") / f"{data}-{model_name}-{args.seed}"
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    with written_beside(args.output / "arguments.json") as new:
        new.write_text(json.dumps(settings, indent=2) + "\n")
    train, test, store = load_data(args)

    rows: dict[str, dict[str, float]] = {}
    summary: dict[str, Any] = {
        "features": store.description,
        "evaluated_on": str(test.report),
        "seed": args.seed,
        "arguments": settings,
        **describe_run(str(Path(__file__).parent)),
    }
    if args.model in ("prior", "oracle"):
        rows[args.model] = evaluate_control(args, train, test, store)
        print_table(rows, store.description)
        summary = {**rows[args.model], "rows": rows, **summary}
        write_summary(args, summary, began)
        print(f"\nwritten to {args.output}: metrics.json")
        return

    label = ""
    if args.eval_only is None:
        trainer, train_set, test_set = train_model(args, train, test, store)
        model = trainer.ema_model.eval()
        if args.clip_seconds is None:  # a prior knows no longer videos
            prior = fit_moment_prior(model.grid, train_set)
            rows["best constant"] = evaluate_prior(model.grid, prior, test_set)
        label = "EMA weights, "
    else:
        model, test_set = load_model(args, test, store)
    default = model.config.num_inference_steps if model.is_generative else 1
    steps = args.steps or [default]
    reading = {"num_samples": args.samples, "ranking": args.ranking, "seed": args.seed}
    if args.eval_only is None:
        raw = evaluate(trainer.raw_model, test_set, num_inference_steps=steps[0], **reading)
        rows[f"raw weights, steps {steps[0]}"] = raw.metrics

    results: dict[int, Evaluation] = {}
    for count in steps:
        results[count] = evaluate(model, test_set, num_inference_steps=count, **reading)
        rows[f"{label}steps {count}"] = results[count].metrics
    print_table(rows, store.description)

    chosen = results[steps[0]]
    if args.eval_only is None:
        with written_beside(args.output / "model") as folder:
            model.save_pretrained(folder)
            test_set.vocabulary.save(folder / "vocabulary.json")
    write_submission(chosen.predictions, args.output / "predictions.jsonl")
    shown = range(0, len(test_set), max(1, len(test_set) // 4))[:4]
    count = steps[0] if model.is_generative else None
    figure = draw_queries(model, test_set, shown, num_inference_steps=count, seed=args.seed)
    with written_beside(args.output / "maps.png") as new:
        figure.savefig(new)
    found = {
        **chosen.metrics,
        "num_inference_steps": steps[0],
        "rows": rows,
        "queries_per_second": chosen.queries_per_second,
    }
    write_summary(args, {**found, **summary}, began)
    print(f"\nwritten to {args.output}: metrics.json, predictions.jsonl, maps.png", end="")
    print(", model" if args.eval_only is None else "")


def write_summary(args: argparse.Namespace, summary: dict[str, Any], began: float) -> None:
    summary["seconds"] = time.perf_counter() - began
    with written_beside(args.output / "metrics.json") as new:
        new.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
