"""Runs train/model/feedback.py."""

import sys

from train.model.feedback import main


if __name__ == "__main__":
    sys.exit(main())
