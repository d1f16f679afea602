"""Runs train/pictures/encoder.py."""

import sys

from train.pictures.encoder import main


if __name__ == "__main__":
    sys.exit(main())
