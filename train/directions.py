"""Runs train/editing/directions.py."""

import sys

from train.editing.directions import main


if __name__ == "__main__":
    sys.exit(main())
