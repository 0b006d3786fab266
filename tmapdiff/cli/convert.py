"""`tmapdiff convert`: copy features to another format."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tmapdiff.cli.options import refuse_idle
from tmapdiff.cli.output import Output, progress

EXAMPLES = """
tmapdiff convert vgg16.h5 vgg16/ --format npy
tmapdiff convert slowfast/ slowfast.h5 --seconds-per-feature 2
tmapdiff convert features.h5 features/ --format npz --json
tmapdiff convert timeline simulated.h5 --root charades --seed 1
"""


def convert(
    console: Output,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="An HDF5 file or folder of features; or 'timeline', with --root, for features "
            "simulated from Charades' action annotations.",
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="HDF5 file or folder to create or extend.")
    ],
    format: Annotated[
        Literal["hdf5", "npy", "npz", "pt"] | None,
        "Format of DST. [default: hdf5 for .h5 and .hdf5, otherwise npy]",
    ] = None,
    seconds_per_feature: Annotated[
        float | None, "Seconds between features, if SRC does not declare it."
    ] = None,
    root: Annotated[Path | None, "DIR", "Folder of Charades' annotations, for 'timeline'."] = None,
    seed: Annotated[int | None, "Seed of 'timeline'. [default: 0, as in train]"] = None,
) -> None:
    """Copy features to a store of another format, and verify them.

    Metadata such as the rate is kept, as attributes in HDF5 files and in attributes.json in
    folders. The same command resumes after any interruption.

    The exit code is 1 if the features of a video cannot be used.
    """
    is_simulated = source == "timeline"
    refuse_idle(
        ("--root", root and not is_simulated, "SRC timeline"),
        ("--seed", seed is not None and not is_simulated, "SRC timeline"),
        ("--seconds-per-feature", seconds_per_feature and is_simulated, "a store as SRC"),
    )
    if is_simulated and root is None:
        raise typer.BadParameter("pass the folder of Charades.", param_hint="'--root'")
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
    console.line(str(report))
    console.document(vars(report))
    if report.skipped:
        raise typer.Exit(1)
