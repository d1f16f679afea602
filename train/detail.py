"""Runs train/model/detail.py."""

import sys

from train.model.detail import main


if __name__ == "__main__":
    sys.exit(main())
