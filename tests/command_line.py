"""Runs a stage as from the command line."""

import sys
from collections.abc import Callable


def run(main: Callable[[], int | None], *words) -> int:
    """The exit status of `main`, given these words (paths and numbers too) as arguments."""
    argv, sys.argv = sys.argv, ["stage", *map(str, words)]
    try:
        return main() or 0
    finally:
        sys.argv = argv
