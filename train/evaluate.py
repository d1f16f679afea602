"""Runs train/judging/evaluate.py."""

import sys

from train.judging.evaluate import main


if __name__ == "__main__":
    sys.exit(main())
