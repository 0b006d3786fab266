"""`tmapdiff evaluate`: how good a pipeline's answers are."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tmapdiff.cli import options
from tmapdiff.cli.devices import DeviceOption, find_device
from tmapdiff.cli.evaluating import check_places, load_data, report
from tmapdiff.cli.output import JsonOption, Output

EXAMPLES = """
tmapdiff evaluate runs/first/pipeline
tmapdiff evaluate runs/vgg/pipeline --root charades --features vgg16.h5 --steps 1 --steps 10
tmapdiff evaluate user/pipeline --test val.jsonl --features clip.h5 --output answers --json
tmapdiff evaluate user/pipeline --test val.jsonl --test test.jsonl --features clip.h5 \\
    --ranking nms --ranking expected-hits
"""


class RankingName(str, Enum):
    """As `tmapdiff.models.Ranking`: typer takes no list of literals."""

    NMS = "nms"
    EXPECTED_HITS = "expected-hits"


def evaluate(
    context: typer.Context,
    pipeline: Annotated[
        str,
        typer.Argument(metavar="PIPELINE", help="Folder of a pipeline, or name on the hub."),
    ],
    dataset: options.DatasetOption = None,
    root: options.RootOption = None,
    test: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Queries to evaluate on, in place of those of --root; given several times, each "
            "has results of its own, in a folder of its name in --output.",
        ),
    ] = None,
    test_split: options.TestSplitOption = "test",
    features: options.FeaturesOption = None,
    seconds_per_feature: options.SecondsPerFeatureOption = None,
    steps: options.StepsOption = None,
    samples: options.SamplesOption = None,
    ranking: Annotated[
        list[RankingName] | None,
        typer.Option(
            help="How moments are read off the maps; given several times, each is evaluated, and "
            "the predictions of the first are written. [default: the model's]",
            show_default=False,
        ),
    ] = None,
    seed: options.SeedOption = 0,
    limit: options.LimitOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to write. [default: the folder evaluation beside that of the pipeline]",
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a pipeline on annotated queries.

    Without data it evaluates on the made-up activities that train makes up.

    Writes metrics.json, predictions.jsonl (a submission file of moment_detr) and maps.png.
    """
    made_up = root is None and not test
    options.refuse_idle(
        ("--features", features and made_up, "--test or --root"),
        ("--root", root and test and "timeline" not in (features or ()), options.USE_OF_ROOT),
        ("--seconds-per-feature", seconds_per_feature and not features, "--features"),
    )
    options.require_features(features, made_up)
    places = test or ([] if root is None else [root])
    rankings: list[Any] = list(dict.fromkeys(one.value for one in ranking or ()))
    names = _names(places)
    folder = output or Path(pipeline).parent / "evaluation"
    with Output(as_json) as out:
        check_places(
            None,
            places,
            root=root,
            dataset=dataset,
            test_split=test_split,
            features=features,
        )
        from tmapdiff.pipelines import MomentLocalizationPipeline
        from tmapdiff.recipes import Reading, evaluate_localizer, make_pipeline_test_set

        loaded = MomentLocalizationPipeline.from_pretrained(pipeline).to(find_device(device))
        documents = {}
        queries: list[Path | None] = [*places] or [None]
        for name, place in zip(names, queries, strict=True):
            began = time.perf_counter()
            data = load_data(
                None,
                place,
                root=root,
                dataset=dataset,
                test_split=test_split,
                features=features,
                seconds_per_feature=seconds_per_feature,
                limit=limit,
            )
            out.line(str(data))
            test_set = make_pipeline_test_set(loaded, data)
            reading = Reading(tuple(steps or ()), samples, None, seed, data.protocol)
            readings = [replace(reading, ranking=one) for one in rankings] or [reading]
            found = [
                evaluate_localizer(
                    loaded.localizer,
                    test_set,
                    one,
                    label=f"{one.ranking}, " if len(readings) > 1 else "",
                )
                for one in readings
            ]
            rows = {row: metrics for one in found for row, metrics in one.rows.items()}
            details = {
                "pipeline": pipeline,
                "seed": seed,
                "seconds": time.perf_counter() - began,
                **options.given(context),
            }
            results = replace(found[0], rows=rows)
            documents[name] = report(out, results, data, folder / name, details)
        several = {"tests": documents, "output": folder}
        out.document(several if len(documents) > 1 else documents[names[0]])


def _names(places: Sequence[Path]) -> list[str]:
    """Name the subfolder of each test's results; of a single test it is the folder itself.

    Raises:
        BadParameter: If two would have the same name.
    """
    if len(places) < 2:
        return [""]
    stems = [place.stem for place in places]
    if max(Counter(stems).values()) > 1:
        stems = [f"{place.resolve().parent.name}-{place.stem}" for place in places]
    if max(Counter(stems).values()) > 1:
        raise typer.BadParameter("name files of different names.", param_hint="'--test'")
    return stems
