"""Runs train/photos/landmarks.py."""

import sys

from train.photos.landmarks import main


if __name__ == "__main__":
    sys.exit(main())
