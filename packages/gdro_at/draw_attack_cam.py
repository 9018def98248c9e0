"""Draw where attacks act in images, of several networks side by side; see --help."""

import sys

from gdro_at.draw import main

if __name__ == "__main__":
    sys.exit(main())
