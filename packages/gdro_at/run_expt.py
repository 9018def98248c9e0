"""Train and test as the published script of this name; see --help."""

import sys

from gdro_at.cli import run_expt

if __name__ == "__main__":
    sys.exit(run_expt())
