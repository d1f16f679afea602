"""Runs train/pictures/generator.py."""

import sys

from train.pictures.generator import main


if __name__ == "__main__":
    sys.exit(main())
