"""Train and evaluate PART; see --help."""

import sys

from part.cli import train_eval_part

if __name__ == "__main__":
    sys.exit(train_eval_part())
