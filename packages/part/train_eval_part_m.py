"""Train and evaluate PART-M; see --help."""

import sys

from part.cli import train_eval_part_m

if __name__ == "__main__":
    sys.exit(train_eval_part_m())
