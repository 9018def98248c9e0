"""Train as the published script of this name; see --help."""

import sys

from ancra.cli import train_preact_resnet_baseline

if __name__ == "__main__":
    sys.exit(train_preact_resnet_baseline())
