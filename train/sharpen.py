"""Runs train/model/sharpen.py."""

import sys

from train.model.sharpen import main


if __name__ == "__main__":
    sys.exit(main())
