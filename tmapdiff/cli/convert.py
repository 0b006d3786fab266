"""`tmapdiff convert`: from one feature store to another."""

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
        Path, typer.Argument(metavar="SRC", help="An HDF5 file, or a folder of features.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="HDF5 file or folder to make or add to.")
    ],
    format: Annotated[
        Literal["hdf5", "npy", "npz", "pt"] | None,
        typer.Option(help="Format of DST. [default: hdf5 if it ends with .h5 or .hdf5, else npy]"),
    ] = None,
    seconds_per_feature: Annotated[
        float | None,
        typer.Option(help="Seconds from one feature to the next, if SRC does not say it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy features to a store of another format, and read them back.

    What the store says of itself, such as its rate, is kept: in HDF5 as attributes, in folders in a
    file attributes.json. Interrupted, even killed, the same command goes on where it was.

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
