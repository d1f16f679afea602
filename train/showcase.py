"""Runs train/publishing/showcase.py."""

import sys

from train.publishing.showcase import main


if __name__ == "__main__":
    sys.exit(main())
