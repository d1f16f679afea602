"""Runs train/editing/pairs.py."""

import sys

from train.editing.pairs import main


if __name__ == "__main__":
    sys.exit(main())
