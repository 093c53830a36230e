"""`python -m maquette`: the same as the command `maquette`."""

import sys

from maquette.cli import main

if __name__ == "__main__":
    sys.exit(main())
