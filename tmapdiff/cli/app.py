"""All commands of `tmapdiff`."""

from importlib import import_module
from typing import Annotated

import typer

from tmapdiff._version import __version__
from tmapdiff.cli.options import as_command

# In the order of the help. Each is a file here, with a function of its name and with EXAMPLES.
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
    # Plain text: reads well without a terminal, and square brackets are what they are.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find the moment of a video that a sentence describes: diffusion over 2D temporal maps.",
    epilog="Exit codes: 0 all is well, 1 an error or a finding, 2 wrong usage, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tmapdiff {__version__}")
        raise typer.Exit


@app.callback()
def _tmapdiff(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    pass


for _name in COMMANDS:
    _file = import_module(f"tmapdiff.cli.{_name}")
    # The \b keeps the lines of the examples as they are.
    _add = app.command(epilog=f"Examples:\n\n\b\n{_file.EXAMPLES.strip()}")
    _add(as_command(getattr(_file, _name)))
