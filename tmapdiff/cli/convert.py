"""`tmapdiff convert`: from one feature store to another."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tmapdiff.cli.options import refuse_idle
from tmapdiff.cli.output import JsonOption, Output, progress

EXAMPLES = """
tmapdiff convert vgg16.h5 vgg16/ --format npy
tmapdiff convert slowfast/ slowfast.h5 --seconds-per-feature 2
tmapdiff convert features.h5 features/ --format npz --json
tmapdiff convert timeline simulated.h5 --root charades --seed 1
"""


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="An HDF5 file, or a folder of features; or 'timeline', with --root: features "
            "simulated from Charades' action annotations.",
        ),
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
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of Charades' annotations, for 'timeline'."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of 'timeline'. [default: 0, as train takes]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy features to a store of another format, and read them back.

    What the store says of itself, such as its rate, is kept: in HDF5 as attributes, in folders in a
    file attributes.json. A store of simulated features says so. Interrupted, even killed, the same
    command goes on where it was.

    The exit code is 1 if the features of a video cannot be used.
    """
    is_simulated = source == "timeline"
    refuse_idle(
        ("--root", root and not is_simulated, "SRC timeline"),
        ("--seed", seed is not None and not is_simulated, "SRC timeline"),
        ("--seconds-per-feature", seconds_per_feature and is_simulated, "a store as SRC"),
    )
    if is_simulated and root is None:
        raise typer.BadParameter("name the folder of Charades.", param_hint="'--root'")
    with Output(as_json) as output:
        store: Any = source
        if root is not None:
            from tmapdiff.data.charades import check_charades_actions

            check_charades_actions(root)
            from tmapdiff.data import ActionTimelineFeatures

            store = ActionTimelineFeatures.from_charades(root, seed=seed or 0)
        from tmapdiff.conversion import convert_features

        with progress("converting") as advance:
            report = convert_features(
                store,
                target,
                format=format,
                seconds_per_feature=seconds_per_feature,
                on_video=lambda video_id: advance(),
            )
        output.line(str(report))
        output.document(vars(report))
    if report.skipped:
        raise typer.Exit(1)
