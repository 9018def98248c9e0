"""Attack a trained network as the published script of this name; see --help."""

import sys

from ancra.white_attack import main

if __name__ == "__main__":
    sys.exit(main())
