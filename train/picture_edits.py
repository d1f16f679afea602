"""Runs train/pictures/edits.py."""

import sys

from train.pictures.edits import main


if __name__ == "__main__":
    sys.exit(main())
