"""All commands of `tmapdiff`."""

from importlib import import_module
from typing import Annotated

import typer

from tmapdiff._version import __version__
from tmapdiff.cli.options import as_command

# In the order of the help.
COMMANDS = (
    "train",
    "evaluate",
    "score",
    "localize",
    "localize_corpus",
    "extract",
    "inspect",
    "convert",
    "export",
    "demo",
)

app = typer.Typer(
    # Plain text reads well without a terminal, and keeps square brackets.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find the moment of a video that a sentence describes: diffusion over 2D temporal maps.",
    epilog="Exit codes: 0 success, 1 error or finding, 2 wrong usage, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tmapdiff {__version__}")
        raise typer.Exit


@app.callback()
def _tmapdiff(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


for _name in COMMANDS:
    _file = import_module(f"tmapdiff.cli.{_name}")
    # \b prevents wrapping of the examples.
    _add = app.command(epilog=f"Examples:\n\n\b\n{_file.EXAMPLES.strip()}")
    _add(as_command(getattr(_file, _name)))
