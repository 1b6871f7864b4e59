"""``python -m medadv``: the command line, which lives with the benchmarks."""

import sys

from medadv.benchmarks.cli import main

if __name__ == "__main__":
    sys.exit(main())
