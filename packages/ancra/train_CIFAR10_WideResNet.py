"""Train as the published script of this name; see --help."""

import sys

from ancra.cli import train_cifar10_wide_resnet

if __name__ == "__main__":
    sys.exit(train_cifar10_wide_resnet())
