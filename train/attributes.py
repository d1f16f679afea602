"""Runs train/judging/attributes.py."""

import sys

from train.judging.attributes import main


if __name__ == "__main__":
    sys.exit(main())
