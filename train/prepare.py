"""Runs train/photos/prepare.py."""

import sys

from train.photos.prepare import main


if __name__ == "__main__":
    sys.exit(main())
