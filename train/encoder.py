"""Runs train/inversion/encoder.py."""

import sys

from train.inversion.encoder import main


if __name__ == "__main__":
    sys.exit(main())
