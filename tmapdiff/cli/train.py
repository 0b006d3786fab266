"""`tmapdiff train`: from annotations and features to a pipeline."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from tmapdiff.cli import options
from tmapdiff.cli.evaluating import check_places, load_data, report
from tmapdiff.cli.output import JsonOption, Output

EXAMPLES = """
tmapdiff train --preset nano --output runs/first
tmapdiff train --root charades --features timeline --preset best
tmapdiff train --root charades --features vgg16.h5 --preset base --holdout 0.1 --steps 1 --steps 5
tmapdiff train --root didemo --features average_fc7.h5
tmapdiff train --train train.jsonl --test val.jsonl --features clip/ --features slowfast/ \\
    --seconds-per-feature 2 --clip-seconds 4
"""

PresetName = Literal["nano", "best", "tiny", "base", "paper"]
DecoderName = Literal[
    "transformer-xattn-ss", "transformer-xattn", "transformer-concat", "cnn-mul", "cnn-concat"
]


def train(
    context: typer.Context,
    dataset: options.DatasetOption = None,
    root: options.RootOption = None,
    train: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Queries to train on, in place of those of --root."),
    ] = None,
    test: options.TestOption = None,
    test_split: options.TestSplitOption = "test",
    features: options.FeaturesOption = None,
    seconds_per_feature: options.SecondsPerFeatureOption = None,
    frame_encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Saved frame encoder that made the features (extract --save-encoder), for the "
            "pipeline to take videos. [default: what the feature store says]",
        ),
    ] = None,
    preset: Annotated[PresetName, typer.Option(help="Size of the model, and how to train.")] = (
        "tiny"
    ),
    model: Annotated[
        Literal["diffusion", "deterministic", "ms2dtan", "prior", "oracle"],
        typer.Option(
            help="What to train, or a control: the same decoder as a plain regressor, the "
            "baseline, the best constant answer, or the true maps."
        ),
    ] = "diffusion",
    decoder: Annotated[
        DecoderName | None, typer.Option(help="Decoder of Table 3. [default: the preset's]")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="What is learned, see tmapdiff.losses. [default: the preset's]"),
    ] = None,
    glove: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="GloVe vectors. [default: words are learned]"),
    ] = None,
    clip_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds of a clip: train on windows of long videos, evaluate on whole ones. "
            "[default: clips divide each video equally]"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training queries. [default: the preset's]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Queries a training step. [default: the preset's]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate. [default: the preset's]")
    ] = None,
    steps: options.StepsOption = None,
    samples: options.SamplesOption = None,
    ranking: options.RankingOption = None,
    seed: options.SeedOption = 0,
    limit: options.LimitOption = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Share of the training videos, 0 to 1, to evaluate on in place of the test "
            "queries: for every choice that you make."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to write. [default: in runs/, named after the options]"
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --output; it may get more epochs."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --output.")
    ] = False,
    device: Annotated[
        Literal["auto", "cpu"], typer.Option(help="auto takes a GPU if there is one.")
    ] = "auto",
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"] | None,
        typer.Option(help="Arithmetic of training. [default: the preset's]"),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read data; 0 reads in this one.")] = (
        0
    ),
    activation_checkpointing: Annotated[
        bool,
        typer.Option("--activation-checkpointing", help="Less memory, more time, equal results."),
    ] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="Let torch.compile speed up training.")
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Two runs are equal to the bit, on a GPU too; slower."
        ),
    ] = False,
    checkpoint_minutes: Annotated[
        float | None,
        typer.Option(help="Minutes between checkpoints within an epoch. [default: 10]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a localizer, evaluate it, and save a pipeline that evaluate and localize read.

    Without data it makes up a small data set of scripted activities, and needs no download. On
    several processes: accelerate launch -m tmapdiff train ...

    Writes metrics.json, predictions.jsonl (a submission file of moment_detr), maps.png, checkpoints
    and the folder pipeline. If the feature store says which frame encoder made it, and that can be
    had, the pipeline takes videos; else it takes features.
    """
    untrained = model in ("prior", "oracle")
    made_up = root is None and train is None
    options.refuse_idle(
        ("--test", test is not None and made_up, "--train or --root"),
        (
            "--root",
            root and train and (test or holdout) and "timeline" not in (features or ()),
            options.USE_OF_ROOT,
        ),
        ("--features", features and made_up, "--train or --root"),
        ("--frame-encoder", frame_encoder and (made_up or untrained), "features of videos"),
        ("--seconds-per-feature", seconds_per_feature and not features, "--features"),
        ("--resume", resume and untrained, "a model to train"),
        ("--compile", compile and untrained, "a model to train"),
        ("--activation-checkpointing", activation_checkpointing and untrained, "a model to train"),
        ("--deterministic", deterministic and untrained, "a model to train"),
        ("--checkpoint-minutes", checkpoint_minutes is not None and untrained, "a model to train"),
        ("--decoder", decoder and (untrained or model == "ms2dtan"), "a model with such a decoder"),
        ("--steps", steps and model != "diffusion", "--model diffusion"),
        ("--samples", samples is not None and model != "diffusion", "--model diffusion"),
        ("--ranking", ranking and untrained, "a model to train"),
    )
    if resume and overwrite:
        raise typer.BadParameter("it does not go with --resume.", param_hint="'--overwrite'")
    if train is not None and test is None and root is None and holdout is None:
        raise typer.BadParameter("name --test, --root or --holdout, too.", param_hint="'--train'")
    options.require_features(features, made_up)
    place = train or root
    # What is held out is of the queries to train on: no others are needed.
    other = test or (root if holdout is None else None) or place
    with Output(as_json) as out:
        check_places(
            place,
            [] if other is None else [other],
            root=root,
            dataset=dataset,
            test_split=test_split,
            features=features,
            others={"--glove": glove, "--frame-encoder": frame_encoder},
        )
        from tmapdiff._core.checks import check_int
        from tmapdiff.recipes import (
            Reading,
            Recipe,
            check_run_folder,
            evaluate_control,
            evaluate_trained,
            find_frame_encoder,
            is_main_process,
        )

        began = time.perf_counter()
        out.is_muted = not is_main_process()
        if samples is not None:  # now, rather than after training
            check_int("--samples", "the number", samples, at_least=1)
        recipe = Recipe(
            preset=preset,
            model="diffusion" if model == "prior" or model == "oracle" else model,
            decoder=decoder,
            objective=objective,
            glove=glove,
            clip_seconds=clip_seconds,
            seed=seed,
            training={
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "mixed_precision": mixed_precision,
                "num_workers": workers,
                "activation_checkpointing": activation_checkpointing,
                "compile": compile,
                "deterministic": deterministic,
                "checkpoint_minutes": checkpoint_minutes,
            },
        )
        data = load_data(
            place,
            other,
            root=root,
            dataset=dataset,
            test_split=test_split,
            features=features,
            seconds_per_feature=seconds_per_feature,
            holdout=holdout,
            limit=limit,
        )
        out.line(str(data))
        sources = {
            "train": place,
            "test": other,
            "root": root,
            "dataset": dataset,
            "test_split": None if test_split == "test" else test_split,
            "features": features or None,
            "seconds_per_feature": seconds_per_feature,
            "holdout": holdout,
            "limit": limit,
        }
        control = model if untrained else None
        folder = output or recipe.default_folder(data.name, sources, control)
        files = ("checkpoints", "metrics.json", "predictions.jsonl", "maps.png", "pipeline")
        check_run_folder(
            folder,
            resume=resume,
            overwrite=overwrite,
            writes=("metrics.json",) if untrained else files,
        )

        reading = Reading(tuple(steps or ()), samples, ranking, seed, data.protocol)
        found = trained = None
        if model == "prior" or model == "oracle":
            results = evaluate_control(model, recipe, data)
        else:
            if not made_up and features != ["timeline"]:
                found = find_frame_encoder(data.store, frame_encoder)
            trained = recipe.train(
                data,
                folder,
                steps=reading.steps,
                device=None if device == "auto" else device,
                resume=resume,
                overwrite=overwrite,
                say=out.line,
            )
            results = evaluate_trained(trained, reading, data)
        if not is_main_process():
            return
        if trained is not None:
            trained.make_pipeline(found).save_pretrained(folder / "pipeline")
        if found is not None:
            out.line(found.remark)
        details = {
            "seed": seed,
            "seconds": time.perf_counter() - began,
            **options.given(context),
        }
        also = ("pipeline",) if trained else ()
        out.document(report(out, results, data, folder, details, also))
