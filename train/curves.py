"""Runs train/judging/curves.py."""

import sys

from train.judging.curves import main


if __name__ == "__main__":
    sys.exit(main())
