"""Draw the features of the test images as the published script of this name; see --help."""

import sys

from ancra.projection import main

if __name__ == "__main__":
    sys.exit(main())
