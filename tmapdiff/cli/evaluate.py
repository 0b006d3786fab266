"""`tmapdiff evaluate`: how good a pipeline's answers are."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tmapdiff.cli.devices import DeviceOption, find_device
from tmapdiff.cli.options import (
    DatasetOption,
    FeaturesOption,
    LimitOption,
    RankingOption,
    RootOption,
    SamplesOption,
    SecondsPerFeatureOption,
    SeedOption,
    StepsOption,
    TestOption,
    TestSplitOption,
    refuse_idle,
)
from tmapdiff.cli.output import JsonOption, Output, metrics_table

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
    dataset: DatasetOption = None,
    root: RootOption = None,
    test: TestOption = None,
    test_split: TestSplitOption = "test",
    features: FeaturesOption = None,
    seconds_per_feature: SecondsPerFeatureOption = None,
    steps: StepsOption = None,
    samples: SamplesOption = None,
    ranking: RankingOption = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
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
    refuse_idle(
        ("--features", features and made_up, "--test or --root"),
        ("--seconds-per-feature", seconds_per_feature and not features, "--features"),
    )
    if not made_up and not features:
        raise typer.BadParameter("name the features of the videos.", param_hint="'--features'")
    with Output(as_json) as out:
        from tmapdiff.pipelines import MomentLocalizationPipeline
        from tmapdiff.provenance import describe_run
        from tmapdiff.recipes import (
            LocalizationData,
            Reading,
            evaluate_localizer,
            make_pipeline_test_set,
        )

        began = time.perf_counter()
        loaded = MomentLocalizationPipeline.from_pretrained(pipeline).to(find_device(device))
        if made_up:
            data = LocalizationData.make_up("didemo" if dataset == "didemo" else "rank")
        else:
            data = LocalizationData.load(
                None,
                test or root,
                features=features or (),
                format=dataset,
                test_split=test_split,
                seconds_per_feature=seconds_per_feature,
            )
        data = data.with_features_only()
        if limit is not None:
            data = data.limit(limit)
        out.line(str(data))
        reading = Reading(tuple(steps or ()), samples, ranking, seed, data.protocol)
        test_set = make_pipeline_test_set(loaded, data)
        results = evaluate_localizer(loaded.localizer, test_set, reading)
        metrics_table(out, results.rows, f"{data.store.description}; percent")
        folder = output or Path(pipeline).parent / "evaluation"
        details = {
            "pipeline": pipeline,
            "features": data.store.description,
            "evaluated_on": str(data.test.report),
            "seed": seed,
            **describe_run(),
            "seconds": time.perf_counter() - began,
        }
        names = results.write(folder, details)
        out.line(f"written to {folder}: {', '.join(names)}")
        out.document({**results.summary(), **details, "output": folder, "files": names})
