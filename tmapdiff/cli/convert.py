"""`tmapdiff convert`: copy features to another format."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tmapdiff.cli.output import JsonOption, Output, progress

EXAMPLES = """
tmapdiff convert vgg16.h5 vgg16/ --format npy
tmapdiff convert slowfast/ slowfast.h5 --seconds-per-feature 2
tmapdiff convert features.h5 features/ --format npz --json
"""


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="An HDF5 file or folder of features.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="HDF5 file or folder to create or extend.")
    ],
    format: Annotated[
        Literal["hdf5", "npy", "npz", "pt"] | None,
        typer.Option(help="Format of DST. [default: hdf5 for .h5 and .hdf5, otherwise npy]"),
    ] = None,
    seconds_per_feature: Annotated[
        float | None,
        typer.Option(help="Seconds between features, if SRC does not declare it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy features to a store of another format, and verify them.

    Metadata such as the rate is kept, as attributes in HDF5 files and in attributes.json in
    folders. The same command resumes after any interruption.

    The exit code is 1 if the features of a video cannot be used.
    """
    with Output(as_json) as output:
        from tmapdiff.conversion import convert_features

        with progress("converting") as advance:
            report = convert_features(
                source,
                target,
                format=format,
                seconds_per_feature=seconds_per_feature,
                on_video=lambda video_id: advance(),
            )
        output.line(str(report))
        output.document(vars(report))
    if report.skipped:
        raise typer.Exit(1)
