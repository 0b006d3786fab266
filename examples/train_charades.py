"""Train a moment localizer on Charades-STA, evaluate it, and write down everything about it.

    python examples/train_charades.py
    python examples/train_charades.py --root path/to/charades --preset tiny
    accelerate launch --num_processes 4 examples/train_charades.py --root path/to/charades

Without --root it makes up a small data set of scripted activities, and needs no download. With
--root it reads charades_sta_{train,test}.txt and Charades_v1_{train,test}.csv from that folder.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tmapdiff import spin_briefly

spin_briefly()  # before torch is imported

from accelerate import Accelerator

from tmapdiff import PRESETS, MomentLocalizer, TmapdiffError, Vocabulary
from tmapdiff._core.checks import check_int
from tmapdiff._core.files import written_beside
from tmapdiff.errors import ArgumentError, ConfigError
from tmapdiff.models import MS2DTAN, MapLocalizer
from tmapdiff.presets import DECODERS
from tmapdiff.provenance import describe_run
from tmapdiff.recipes import (
    RUN_FILES,
    SYNTHETIC_EPOCHS,
    LocalizationData,
    Reading,
    Recipe,
    Results,
    check_run_folder,
    evaluate_control,
    evaluate_localizer,
    evaluate_trained,
    is_main_process,
    make_test_set,
)

TRAINED = ("diffusion", "deterministic", "ms2dtan")
MODELS = (*TRAINED, "prior", "oracle")


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
        help="an HDF5 file, a folder of .npy, .npz or .pt files, or 'timeline': features simulated "
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
    add("--output", type=Path, help="folder to write to (default: in runs, named after options)")
    add(
        "--resume", action="store_true", help="continue the run in --output; it may get more epochs"
    )
    add("--overwrite", action="store_true", help="replace the run in --output")
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
    add(
        "--deterministic",
        action="store_true",
        help="two runs are equal to the bit, on a GPU too; slower",
    )
    add("--eval-only", type=Path, metavar="MODEL_DIR", help="evaluate this model; train nothing")
    return parser.parse_args(arguments)


def load_data(args: argparse.Namespace) -> LocalizationData:
    if args.root is None:
        data = LocalizationData.make_up()
    else:
        data = LocalizationData.load(
            args.root,
            format="charades-sta",
            features=[args.features],
            seconds_per_feature=args.seconds_per_feature,
        )
    if args.holdout is not None:
        data = data.hold_out(args.holdout)
    data = data.with_features_only()
    return data if args.limit is None else data.limit(args.limit)


def make_recipe(args: argparse.Namespace) -> Recipe:
    return Recipe(
        preset=args.preset,
        model=args.model if args.model in TRAINED else "diffusion",
        decoder=args.decoder,
        objective=args.objective,
        glove=args.glove,
        clip_seconds=args.clip_seconds,
        seed=args.seed,
        training={
            "epochs": args.epochs,
            "batch_size": args.batch_size,
            "mixed_precision": args.mixed_precision,
            "activation_checkpointing": args.activation_checkpointing,
            "compile": args.compile,
            "deterministic": args.deterministic,
        },
    )


def evaluate_saved(args: argparse.Namespace, data: LocalizationData, reading: Reading) -> Results:
    kind = MS2DTAN if args.model == "ms2dtan" else MomentLocalizer
    model: MapLocalizer = kind.from_pretrained(args.eval_only)
    vocabulary = Vocabulary.load(args.eval_only / "vocabulary.json")
    expected = model.config.encoder_config["clip_channels"]
    if data.store.feature_dim != expected:
        raise ConfigError(
            f"{args.eval_only}: expected features of {expected} channels, as in training, "
            f"got {data.store.feature_dim} from {data.store.description}."
        )
    accelerator = Accelerator(cpu=args.device == "cpu")
    model.to(accelerator.device)
    test_set = make_test_set(data.test, data.store, model.grid, vocabulary, args.clip_seconds)
    return evaluate_localizer(model, test_set, reading, accelerator=accelerator)


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
        ("--overwrite", args.overwrite and args.eval_only, "a run"),
        ("--activation-checkpointing", args.activation_checkpointing and untrained,
         "a model to train"),
        ("--compile", args.compile and untrained, "a model to train"),
        ("--deterministic", args.deterministic and untrained, "a model to train"),
        ("--decoder", args.decoder and args.model not in ("diffusion", "deterministic"),
         "--model diffusion or deterministic"),
        ("--steps", args.steps and args.model != "diffusion", "--model diffusion"),
        ("--samples", args.samples and args.model != "diffusion", "--model diffusion"),
        ("--ranking", args.ranking and args.model in ("prior", "oracle"), "a model that learns"),
        ("--eval-only", args.eval_only and args.model in ("prior", "oracle"), "a trained model"),
    ):  # fmt: skip
        if given:
            raise ArgumentError(f"{option}: expected {needed} with it, got none.")


def print_table(rows: Mapping[str, Mapping[str, float]], features: str) -> None:
    names = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    print(f"\n{features}; percent")
    print(" " * width, *(f"{name:>10}" for name in names))
    for name, metrics in rows.items():
        print(f"{name:<{width}}", *(f"{metrics[key]:>10.2f}" for key in names))


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    check_arguments(args)
    began, recipe = time.perf_counter(), make_recipe(args)
    if args.output is None and args.eval_only is not None:
        args.output = args.eval_only.parent / "evaluation"
    elif args.output is None:
        sources = {
            "train": args.root,
            "features": None if args.root is None else [args.features],
            "seconds_per_feature": args.seconds_per_feature,
            "holdout": args.holdout,
            "limit": args.limit,
        }
        name = "synthetic" if args.root is None else "charades"
        control = None if args.model in TRAINED else args.model
        args.output = recipe.default_folder(name, sources, control)
    if args.eval_only is None:
        writes = RUN_FILES if args.model in TRAINED else ("metrics.json",)
        check_run_folder(args.output, resume=args.resume, overwrite=args.overwrite, writes=writes)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    if is_main_process():
        with written_beside(args.output / "arguments.json") as new:
            new.write_text(json.dumps(settings, indent=2) + "\n")
    data = load_data(args)
    say = print if is_main_process() else lambda line: None
    say(data)

    reading = Reading(tuple(args.steps or ()), args.samples, args.ranking, args.seed)
    saved: list[str] = []
    if args.model in ("prior", "oracle"):
        results = evaluate_control(args.model, recipe, data)
    elif args.eval_only is not None:
        results = evaluate_saved(args, data, reading)
    else:
        trained = recipe.train(
            data,
            args.output,
            steps=reading.steps,
            device=None if args.device == "auto" else args.device,
            resume=args.resume,
            overwrite=args.overwrite,
            say=say,
        )
        results = evaluate_trained(trained, reading, data)
        if not is_main_process():
            return
        trained.save_model(args.output / "model")
        trained.make_pipeline().save_pretrained(args.output / "pipeline")
        saved = ["model", "pipeline"]
    if not is_main_process():
        return
    print_table(results.rows, data.store.description)
    details = {
        "features": data.store.description,
        "evaluated_on": str(data.test.report),
        "seed": args.seed,
        "arguments": settings,
        **describe_run(str(Path(__file__).parent)),
        "seconds": time.perf_counter() - began,
    }
    names = [*results.write(args.output, details), *saved]
    print(f"\nwritten to {args.output}: {', '.join(names)}")


if __name__ == "__main__":
    try:
        main()
    except TmapdiffError as error:
        sys.exit(f"error: {error}")
