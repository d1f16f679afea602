"""A stage as a command: its parser, and how it ends when its user made a mistake."""

import argparse
import sys
from collections.abc import Callable


def command_parser(docstring: str, name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"python -m {name}", description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_command(name: str, command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """The exit status: 1 after a mistake of the user's or a loss that is no number, told in one sentence."""
    try:
        command(options)
    except (OSError, ValueError, FloatingPointError) as mistake:
        print(f"{name}: {mistake}", file=sys.stderr)
        return 1
    return 0
