"""Measure feature distances as the published script of this name; see --help."""

import sys

from ancra.distances import main

if __name__ == "__main__":
    sys.exit(main())
