"""Train and evaluate PART-T; see --help."""

import sys

from part.cli import train_eval_part_t

if __name__ == "__main__":
    sys.exit(train_eval_part_t())
