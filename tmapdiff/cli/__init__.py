"""The command line `tmapdiff`.

A command is a file here with a function of the file's name, of whose parameters typer makes
options, and with `EXAMPLES` for its help; `app.COMMANDS` lists them. Importing these files stays
light: what a command needs is imported inside of it.
"""

from tmapdiff.cli.entry import main

__all__ = ["main"]
