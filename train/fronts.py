"""Runs train/editing/fronts.py."""

import sys

from train.editing.fronts import main


if __name__ == "__main__":
    sys.exit(main())
