"""`python -m tmapdiff` is the command line `tmapdiff`."""

import sys

from tmapdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
