"""Draw what feature_distance.py measured as the published script of this name; see --help."""

import sys

from ancra.histograms import main

if __name__ == "__main__":
    sys.exit(main())
