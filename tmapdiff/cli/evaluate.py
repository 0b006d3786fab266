"""`tmapdiff evaluate`: compute metrics of a pipeline."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tmapdiff.cli import options
from tmapdiff.cli.data import DataOptions
from tmapdiff.cli.output import Output, report_results

EXAMPLES = """
tmapdiff evaluate runs/first/pipeline
tmapdiff evaluate runs/vgg/pipeline --root charades --features vgg16.h5 --steps 1 --steps 10
tmapdiff evaluate user/pipeline --test val.jsonl --features clip.h5 --output answers --json
tmapdiff evaluate user/pipeline --test val.jsonl --test test.jsonl --features clip.h5 \\
    --ranking nms --ranking expected-hits
tmapdiff evaluate user/pipeline --test val.jsonl --features clip.h5 --answer set --samples 8
"""


def evaluate(
    context: typer.Context,
    console: Output,
    pipeline: options.PipelineArgument,
    data_options: DataOptions,
    test: Annotated[
        list[Path] | None,
        "FILE",
        "Queries to evaluate on, instead of those of --root. Can be repeated; each file gets its "
        "own subfolder of --output.",
    ] = None,
    steps: options.SeveralStepsOption = None,
    samples: options.SamplesOption = None,
    ranking: Annotated[
        list[str] | None,
        typer.Option(
            help="How moments are read from maps: nms, expected-hits or nms-then-expected-hits. "
            "Can be repeated; predictions are those of the first. [default: the model's]",
            show_default=False,
        ),
    ] = None,
    answer: options.AnswerOption = "ranked",
    seed: options.SeedOption = 0,
    output: Annotated[
        Path | None, "DIR", "Folder to write. [default: evaluation, next to the pipeline]"
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], "Number format of weights and maps."
    ] = "float32",
) -> None:
    """Evaluate a pipeline on annotated queries.

    Without data, it uses the synthetic activities of train. For several processes, run: accelerate
    launch -m tmapdiff evaluate ...

    With --answer set, there are also metrics of sets: F1, the mean error of the count, and the
    share of exact sets.

    Writes metrics.json, predictions.jsonl (a submission file of moment_detr) and maps.png.
    """
    options.refuse_idle(("--ranking", ranking and answer == "set", "--answer ranked"))
    places = test or ([] if data_options.root is None else [data_options.root])
    names = _names(places)
    folder = output or Path(pipeline).parent / "evaluation"
    data_options.check(None, places, "--test")
    import torch

    from tmapdiff import recipes
    from tmapdiff.pipelines import MomentLocalizationPipeline

    console.is_muted = not recipes.is_main_process()
    accelerator, place_of_model = None, options.find_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # each process has the device of its rank
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device == "cpu")
        place_of_model = accelerator.device
    rankings: list[Any] = list(dict.fromkeys(ranking or ()))
    ways = [
        recipes.SamplingOptions(tuple(steps or ()), samples, choice, seed, answer)
        for choice in rankings or [None]
    ]
    loaded = MomentLocalizationPipeline.from_pretrained(pipeline)
    if dtype != "float32":  # keep the digest of unconverted weights
        getattr(loaded.frame_encoder, "fingerprint", "")
    loaded.to(place_of_model, getattr(torch, dtype))
    documents = {}
    queries: list[Path | None] = [*places] or [None]
    for name, place in zip(names, queries, strict=True):
        began = time.perf_counter()
        data = data_options.load(None, place)
        console.line(str(data))
        test_set = recipes.make_pipeline_test_set(loaded, data)
        each = [
            recipes.evaluate_localizer(
                loaded.localizer,
                test_set,
                sampling,
                protocol=data.protocol,
                label=f"{sampling.ranking}, " if len(ways) > 1 else "",
                accelerator=accelerator,
            )
            for sampling in ways
        ]
        if not recipes.is_main_process():
            continue
        rows = {row: metrics for results in each for row, metrics in results.rows.items()}
        seconds = time.perf_counter() - began
        details = {"pipeline": pipeline, "seed": seed, "seconds": seconds}
        details |= options.given(context)
        results = replace(each[0], rows=rows)
        documents[name] = report_results(console, results, data, folder / name, details)
    several = {"tests": documents, "output": folder}
    console.document(several if len(names) > 1 else documents.get("", {}))


def _names(places: Sequence[Path]) -> list[str]:
    """Return the subfolder of each test's results, empty for a single test."""
    if len(places) < 2:
        return [""]
    stems = [place.stem for place in places]
    if max(Counter(stems).values()) > 1:
        stems = [f"{place.resolve().parent.name}-{place.stem}" for place in places]
    if max(Counter(stems).values()) > 1:
        raise typer.BadParameter("pass files with different names.", param_hint="'--test'")
    return stems
