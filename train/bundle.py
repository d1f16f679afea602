"""Runs train/publishing/bundle.py."""

import sys

from train.publishing.bundle import main


if __name__ == "__main__":
    sys.exit(main())
