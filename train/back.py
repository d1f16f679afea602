"""Runs train/model/back.py."""

import sys

from train.model.back import main


if __name__ == "__main__":
    sys.exit(main())
