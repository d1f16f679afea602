"""Runs train/photos/packing.py."""

import sys

from train.photos.packing import main


if __name__ == "__main__":
    sys.exit(main())
