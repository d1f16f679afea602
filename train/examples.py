"""Runs train/publishing/examples.py."""

import sys

from train.publishing.examples import main


if __name__ == "__main__":
    sys.exit(main())
