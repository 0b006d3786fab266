"""`python -m tmapdiff` runs the command `tmapdiff`."""

import sys

from tmapdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
