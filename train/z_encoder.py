"""Runs train/inversion/z_encoder.py."""

import sys

from train.inversion.z_encoder import main


if __name__ == "__main__":
    sys.exit(main())
