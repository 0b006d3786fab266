"""Options that several commands have."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import typer

from tmapdiff._core.numbers import parse_integer, parse_number
from tmapdiff.cli.output import plain

Command = TypeVar("Command", bound=Callable[..., Any])

FormatName = Literal["charades-sta", "didemo", "activitynet", "tacos", "vslnet", "moment-jsonl"]
SplitName = Literal["train", "val", "test"]

DatasetOption = Annotated[
    FormatName | None,
    typer.Option(help="Format of the annotations. [default: found by names and contents]"),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the data set, with its files named as published; for 'timeline', that of "
        "Charades.",
    ),
]
TestOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Queries to evaluate on, in place of those of --root."),
]
TestSplitOption = Annotated[SplitName, typer.Option(help="The part of --root to evaluate on.")]
FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STORE",
        help="An HDF5 file, or a folder of .npy, .npz or .pt files; several are put side by side. "
        "For Charades-STA also 'timeline': features simulated from its action annotations.",
    ),
]
SecondsPerFeatureOption = Annotated[
    float | None,
    typer.Option(help="Seconds from one feature to the next, of stores that do not say it."),
]
StepsOption = Annotated[
    list[int] | None,
    typer.Option(
        help="Denoising steps; given several times, each is evaluated, and the predictions of the "
        "first are written. [default: the model's]",
        show_default=False,
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option(help="Samples of each query that are averaged. [default: the model's]"),
]
RankingOption = Annotated[
    Literal["nms", "expected-hits"] | None,
    typer.Option(help="How moments are read off the maps. [default: the model's]"),
]
SeedOption = Annotated[int, typer.Option(help="Seed of all that is drawn.")]
LimitOption = Annotated[
    int | None, typer.Option(help="Use the first queries only, so many of each part.")
]


USE_OF_ROOT = "queries to take from it, or --features timeline"


def with_plain_numbers(command: Command) -> Command:
    """Let the numbers of a command be read as those of files are: typer takes `1_0` for 10."""
    for hint in get_type_hints(command, include_extras=True).values():
        kind, *about = get_args(hint) or (hint,)
        kinds = [kind, *get_args(kind), *(one for part in get_args(kind) for one in get_args(part))]
        for number in (int, float):
            if number in kinds:
                for info in about:
                    info.parser = partial(_read_number, number)
                    info.metavar = info.metavar or f"<{number.__name__}>"
    return command


def _read_number(kind: type, given: Any) -> Any:
    if not isinstance(given, str):  # what it is by default
        return given
    number = parse_integer(given) if kind is int else parse_number(given)
    if number is None:
        what = "integer" if kind is int else "number"
        raise typer.BadParameter(f"{given!r} is not a valid {what}.")
    return number


def refuse_idle(*options: tuple[str, object, str]) -> None:
    """Refuse options that would do nothing.

    Args:
        *options: Name of an option, whether it is given in vain, and what it needs.
    """
    for name, in_vain, needed in options:
        if in_vain:
            raise typer.BadParameter(f"it does nothing without {needed}.", param_hint=f"'{name}'")


def given(context: typer.Context) -> dict[str, Any]:
    """Return the command and all its options, for people who ask later what was run."""
    values = {name: value for name, value in context.params.items() if name != "as_json"}
    return {"command": context.info_name, "options": plain(values)}


def require_features(features: Sequence[str] | None, made_up: bool) -> None:
    """Refuse annotations of real videos, without what is to be seen of them."""
    if not made_up and not features:
        raise typer.BadParameter("name the features of the videos.", param_hint="'--features'")
