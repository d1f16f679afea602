"""Runs train/judging/vote.py."""

import sys

from train.judging.vote import main


if __name__ == "__main__":
    sys.exit(main())
