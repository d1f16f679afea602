"""Words of a command line, or of the environment, as paths and numbers; argparse tells what is wrong with them."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def given_path(text: str) -> Path:
    """A path; an empty one would be the current folder, which nobody named."""
    if not text.strip():
        raise ArgumentTypeError("no name is given; if you mean the current folder, write a dot")
    return Path(text)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads a whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            allowed = f"from {least} to {most}" if most is not None else f"from {least} up"
            raise ArgumentTypeError(f"it must be a whole number {allowed}, not {text!r}")
        return number

    return read


def more_than_nothing(text: str) -> float:
    """A number greater than 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"it must be a number greater than 0, not {text!r}")
    return number
