"""`tmapdiff train`: train a pipeline."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from tmapdiff._core.checks import message
from tmapdiff.cli import options
from tmapdiff.cli.data import DataOptions
from tmapdiff.cli.output import Output, report_results
from tmapdiff.errors import FileError

EXAMPLES = """
tmapdiff train --preset nano --output runs/first
tmapdiff train --root charades --features timeline --preset nano_tuned
tmapdiff train --root charades --features vgg16.h5 --preset large --holdout 0.1 --steps 1 --steps 5
tmapdiff train --root didemo --features average_fc7.h5
tmapdiff train --root qvhighlights --features clip.h5 --preset aligned \\
    --text-encoder openai/clip-vit-base-patch32 --protocol qvhighlights
tmapdiff train --root qvhighlights --features clip.h5 --preset aligned --negatives 0.2 \\
    --text-encoder openai/clip-vit-base-patch32
tmapdiff train --train train.jsonl --test val.jsonl --features clip/ --features slowfast/ \\
    --seconds-per-feature 2 --clip-seconds 4
"""

PresetName = Literal[
    "nano", "nano_tuned", "aligned", "tiny", "large", "paper", "best", "base"  # two former names
]
DecoderName = Literal[
    "transformer-xattn-ss", "transformer-xattn", "transformer-concat", "cnn-mul", "cnn-concat"
]


@dataclass(frozen=True)
class RecipeOptions:
    """Fields of `Recipe`."""

    preset: Annotated[
        PresetName,
        "Model size and training settings. best and base are former names of nano_tuned and large. "
        "large and paper have never been trained.",
    ] = "tiny"
    decoder: Annotated[DecoderName | None, "Decoder of Table 3. [default: the preset's]"] = None
    objective: Annotated[str | None, "Objective, see tmapdiff.losses. [default: the preset's]"] = (
        None
    )
    glove: Annotated[Path | None, "FILE", "GloVe vectors. [default: words are learned]"] = None
    clip_seconds: Annotated[
        float | None,
        "Duration of a clip in seconds: train on windows of long videos, evaluate on whole videos. "
        "[default: clips divide each video equally]",
    ] = None


@dataclass(frozen=True)
class TrainingOptions:
    """Fields of `TrainingConfig`; None means the preset's value."""

    epochs: Annotated[int | None, "Passes over the training queries. [default: the preset's]"] = (
        None
    )
    batch_size: Annotated[int | None, "Queries per training step. [default: the preset's]"] = None
    learning_rate: Annotated[float | None, "Highest learning rate. [default: the preset's]"] = None
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"] | None, "Precision of training. [default: the preset's]"
    ] = None
    activation_checkpointing: Annotated[
        bool, "Use less memory and more time, with equal results."
    ] = False
    compile: Annotated[bool, "Speed up training by torch.compile."] = False
    deterministic: Annotated[bool, "Make runs bit-identical, on GPUs too; slower."] = False
    negatives: Annotated[
        float | None,
        "Share of sentences, 0 to 0.9, trained on videos that they do not describe, drawn anew "
        "each epoch. Answers then give the probability that the video contains the moment; a tenth "
        "of the training videos is held out to calibrate it. [default: 0]",
    ] = None
    checkpoint_minutes: Annotated[
        float | None, "Minutes between checkpoints within an epoch. [default: 10]"
    ] = None


def train(
    context: typer.Context,
    console: Output,
    data_options: DataOptions,
    recipe_options: RecipeOptions,
    training_options: TrainingOptions,
    train: Annotated[
        Path | None, "FILE", "Queries to train on, instead of those of --root."
    ] = None,
    test: Annotated[
        Path | None, "FILE", "Queries to evaluate on, instead of those of --root."
    ] = None,
    holdout: Annotated[
        float | None,
        "Share of the training videos, 0 to 1, to evaluate on instead of the test queries. Use it "
        "for all tuning.",
    ] = None,
    frame_encoder: Annotated[
        Path | None,
        "DIR",
        "Saved frame encoder of the features (extract --save-encoder), so that the pipeline "
        "accepts videos. [default: the one recorded in the feature store]",
    ] = None,
    text_encoder: Annotated[
        str | None,
        "NAME",
        "Text encoder of transformers that embeds sentences: folder, or name on the hub. For "
        "--preset aligned and --model similarity, the features must be in its space. [default: "
        "words are learned]",
    ] = None,
    model: Annotated[
        Literal["diffusion", "deterministic", "ms2dtan", "similarity", "prior", "oracle"],
        "Model to train, or a control. deterministic: the same decoder as a regressor; ms2dtan: "
        "the baseline; similarity: fitted similarities of clips and sentence; prior: the best "
        "constant answer; oracle: the true maps.",
    ] = "diffusion",
    steps: options.SeveralStepsOption = None,
    samples: options.SamplesOption = None,
    ranking: options.RankingOption = None,
    seed: options.SeedOption = 0,
    output: Annotated[
        Path | None, "DIR", "Folder to write. [default: in runs/, named after the options]"
    ] = None,
    resume: Annotated[bool, "Continue the run in --output; it may get more epochs."] = False,
    overwrite: Annotated[bool, "Replace the run in --output."] = False,
    device: Annotated[Literal["auto", "cpu"], "auto uses a GPU if there is one."] = "auto",
    workers: Annotated[int, "Data-loading processes; 0 uses this one."] = 0,
) -> None:
    """Train a localizer, evaluate it, and save a pipeline for evaluate and localize.

    Without data, it generates a small dataset of scripted activities. For several processes, run:
    accelerate launch -m tmapdiff train ...

    Writes metrics.json, predictions.jsonl (a submission file of moment_detr), maps.png, checkpoints
    and the folder pipeline. The pipeline accepts videos if the feature store records its frame
    encoder and this can be loaded, and otherwise features.
    """
    untrained = model in ("prior", "oracle")
    made_up = data_options.root is None and train is None
    simulated = made_up or data_options.features == ["timeline"]
    of_network = {
        f"--{name.replace('_', '-')}": one for name, one in vars(training_options).items()
    }
    of_network |= {"--objective": recipe_options.objective, "--workers": workers}
    of_training = {**of_network, "--resume": resume, "--ranking": ranking}
    of_training |= {"--glove": recipe_options.glove}
    del of_network["--batch-size"], of_network["--negatives"]
    is_fitted, no_decoder = model == "similarity", untrained or model in ("ms2dtan", "similarity")
    options.refuse_idle(
        *((name, one and untrained, "a model to train") for name, one in of_training.items()),
        *((name, one and is_fitted, "a network to train") for name, one in of_network.items()),
        ("--test", test is not None and made_up, "--train or --root"),
        ("--frame-encoder", frame_encoder and (simulated or untrained), "features of videos"),
        ("--text-encoder", text_encoder and untrained, "a model to train"),
        ("--decoder", recipe_options.decoder and no_decoder, "a model with such a decoder"),
        ("--steps", steps and model != "diffusion", "--model diffusion"),
        ("--samples", samples is not None and model != "diffusion", "--model diffusion"),
    )
    if resume and overwrite:
        raise typer.BadParameter("it cannot be combined with --resume.", param_hint="'--overwrite'")
    if not made_up and not (test or data_options.root or holdout is not None):
        text = "it also needs --test, --root or --holdout."
        raise typer.BadParameter(text, param_hint="'--train'")
    train_place = train or data_options.root
    # With --holdout, the training queries suffice.
    test_place = test or (data_options.root if holdout is None else None) or train_place
    data_options.check(train_place, [] if test_place is None else [test_place], "--train")
    places = {"--glove": recipe_options.glove, "--frame-encoder": frame_encoder}
    for option, place in places.items():
        if place is not None and not place.exists():
            raise FileError(message(option, "an existing path", f"nothing at {place}"))
    from tmapdiff import recipes
    from tmapdiff._core.files import written_beside

    began = time.perf_counter()
    console.is_muted = not recipes.is_main_process()
    sampling = recipes.SamplingOptions(tuple(steps or ()), samples, ranking, seed)
    recipe = recipes.Recipe(
        model="diffusion" if model == "prior" or model == "oracle" else model,
        seed=seed,
        training={**vars(training_options), "num_workers": workers},
        **vars(recipe_options),
    )
    data = data_options.load(train_place, test_place, holdout)
    sentences = None
    if text_encoder is not None:
        from tmapdiff.models import TransformersTextEncoder

        sentences = TransformersTextEncoder(text_encoder)
        data = data.encode_queries(sentences)
    console.line(str(data))
    if output is None:
        sources = {**vars(data_options), "train": train_place, "test": test_place}
        sources |= {
            "holdout": holdout,
            "text_encoder": text_encoder,
            "features": data_options.features or None,
        }
        if data_options.test_split == "test":
            del sources["test_split"]
        output = recipe.default_folder(data.name, sources, model if untrained else None)
    writes = ("metrics.json",) if untrained else recipes.RUN_FILES
    recipes.check_run_folder(output, resume=resume, overwrite=overwrite, writes=writes)
    asked = options.given(context)
    if recipes.is_main_process():  # before training, which may be interrupted
        with written_beside(output / "arguments.json") as new:
            new.write_text(json.dumps(asked, indent=2) + "\n")

    match = trained = None
    if model == "prior" or model == "oracle":
        results = recipes.evaluate_control(model, recipe, data)
    else:
        if not simulated:
            match = recipes.find_frame_encoder(data.store, frame_encoder)
        trained = recipe.train(
            data,
            output,
            steps=sampling.steps,
            device=None if device == "auto" else device,
            resume=resume,
            overwrite=overwrite,
            say=console.line,
        )
        results = recipes.evaluate_trained(trained, sampling, data)
    if not recipes.is_main_process():
        return
    if trained is not None:
        trained.make_pipeline(match, sentences).save_pretrained(output / "pipeline")
    if match is not None:
        console.line(match.remark)
    details = {"seed": seed, "seconds": time.perf_counter() - began, **asked}
    also_written = ("pipeline",) if trained else ()
    console.document(report_results(console, results, data, output, details, also_written))
