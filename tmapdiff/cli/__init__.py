"""The command line `tmapdiff`.

Each command in `app.COMMANDS` is a file here, with a function of that name, whose parameters become
options, and `EXAMPLES` for its help. Heavy imports are inside the functions.
"""

from tmapdiff.cli.entry import main

__all__ = ["main"]
