"""Runs train/editing/manifold.py."""

import sys

from train.editing.manifold import main


if __name__ == "__main__":
    sys.exit(main())
