"""Runs train/model/faces.py."""

import sys

from train.model.faces import main


if __name__ == "__main__":
    sys.exit(main())
