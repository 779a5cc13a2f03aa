"""`python -m cyclelight`: the program `lightning`, where scripts are not on the path."""

import sys

from cyclelight.cli import main

if __name__ == "__main__":
    sys.exit(main())
