"""Runs train/editing/edit_methods.py."""

import sys

from train.editing.edit_methods import main


if __name__ == "__main__":
    sys.exit(main())
