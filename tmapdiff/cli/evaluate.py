"""`tmapdiff evaluate`: how good a pipeline's answers are."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tmapdiff.cli import options
from tmapdiff.cli.devices import DeviceOption, find_device
from tmapdiff.cli.evaluating import load_data, report
from tmapdiff.cli.output import JsonOption, Output

EXAMPLES = """
tmapdiff evaluate runs/first/pipeline
tmapdiff evaluate runs/vgg/pipeline --root charades --features vgg16.h5 --steps 1 --steps 10
tmapdiff evaluate user/pipeline --test val.jsonl --features clip.h5 --output answers --json
"""


def evaluate(
    pipeline: Annotated[
        str,
        typer.Argument(metavar="PIPELINE", help="Folder of a pipeline, or name on the hub."),
    ],
    dataset: options.DatasetOption = None,
    root: options.RootOption = None,
    test: options.TestOption = None,
    test_split: options.TestSplitOption = "test",
    features: options.FeaturesOption = None,
    seconds_per_feature: options.SecondsPerFeatureOption = None,
    steps: options.StepsOption = None,
    samples: options.SamplesOption = None,
    ranking: options.RankingOption = None,
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
    made_up = root is None and test is None
    options.refuse_idle(
        ("--features", features and made_up, "--test or --root"),
        ("--seconds-per-feature", seconds_per_feature and not features, "--features"),
    )
    options.require_features(features, made_up)
    with Output(as_json) as out:
        from tmapdiff.pipelines import MomentLocalizationPipeline
        from tmapdiff.recipes import Reading, evaluate_localizer, make_pipeline_test_set

        began = time.perf_counter()
        loaded = MomentLocalizationPipeline.from_pretrained(pipeline).to(find_device(device))
        data = load_data(
            None,
            test or root,
            dataset=dataset,
            test_split=test_split,
            features=features,
            seconds_per_feature=seconds_per_feature,
            limit=limit,
        )
        out.line(str(data))
        reading = Reading(tuple(steps or ()), samples, ranking, seed, data.protocol)
        test_set = make_pipeline_test_set(loaded, data)
        results = evaluate_localizer(loaded.localizer, test_set, reading)
        details = {"pipeline": pipeline, "seed": seed, "seconds": time.perf_counter() - began}
        report(out, results, data, output or Path(pipeline).parent / "evaluation", details)
