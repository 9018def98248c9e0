"""The proof of concept of PART's Figure 1; see --help."""

import sys

from part.regional import main

if __name__ == "__main__":
    sys.exit(main())
