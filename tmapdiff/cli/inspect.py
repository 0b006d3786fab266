"""`tmapdiff inspect`: summarize files and find problems in them."""

from pathlib import Path
from typing import Annotated

import typer

from tmapdiff.cli.options import DatasetOption, SecondsPerFeatureOption
from tmapdiff.cli.output import Output, progress

EXAMPLES = """
tmapdiff inspect charades/
tmapdiff inspect vgg16.h5 --against charades/
tmapdiff inspect train.jsonl --against val.jsonl
tmapdiff inspect videos/ --against annotations.jsonl --json
tmapdiff inspect runs/vgg/pipeline --against vgg16.h5
"""


def inspect(
    console: Output,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="Annotations (a file or the folder of a dataset), a feature store, a video or a "
            "folder of videos, or a pipeline.",
        ),
    ],
    against: Annotated[
        Path | None, "PATH", "Another such path, to check that both fit together."
    ] = None,
    dataset: DatasetOption = None,
    seconds_per_feature: SecondsPerFeatureOption = None,
) -> None:
    """Summarize a file or folder, and find problems in it.

    Reads every feature, video frame and weight. With --against, also finds ids that are in one path
    only, features that do not fit the durations, moments after the end, and features that a
    pipeline cannot take.

    The exit code is 1 if there is a problem.
    """
    from tmapdiff.inspection import inspect as inspect_place

    with progress("reading") as advance:
        found = inspect_place(
            path,
            against,
            format=dataset,
            seconds_per_feature=seconds_per_feature,
            on_item=advance,
        )
    console.line(f"{found.path}: {found.kind}")
    columns = found.facts.values()
    rows = dict.fromkeys(name for facts in columns for name in facts)
    shown = ([name, *(_shown(facts.get(name)) for facts in columns)] for name in rows)
    console.table(["", *found.facts], shown)
    for finding in found.findings:
        console.line(str(finding))
    count = len(found.findings)
    console.line(f"{count} finding{'s' * (count > 1)}" if count else "nothing is wrong")
    console.document(vars(found))
    if found.findings:
        raise typer.Exit(1)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value}"
