"""The options that several stages share, and how a stage that has them is run."""

import argparse
from collections.abc import Callable

import torch

from preim3d.device import find_device
from preim3d.options import more_than_nothing, whole_number
from train.loop.command import command_parser, run_command


def stage_parser(docstring: str, name: str, seed: bool = True) -> argparse.ArgumentParser:
    """A parser with --threads, --device and, unless the stage has seeds of its own, --seed."""
    parser = command_parser(docstring, name)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    if seed:
        parser.add_argument("--seed", type=int, default=0)
    return parser


def training_parser(docstring: str, name: str) -> argparse.ArgumentParser:
    """A parser for a stage that trains: `stage_parser` with a budget and --save-seconds."""
    parser = stage_parser(docstring, name)
    parser.add_argument(
        "--minutes", type=more_than_nothing, help="time budget; a resumed run counts what it spent before"
    )
    parser.add_argument("--steps", type=whole_number(1), help="or a budget of steps")
    parser.add_argument("--save-seconds", type=float, default=120, help="time between checkpoints")
    return parser


def check_budget(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """The options, if they say when to stop."""
    if options.minutes is None and options.steps is None:
        parser.error("give a budget: --minutes or --steps")
    return options


def budget(options: argparse.Namespace) -> dict[str, float | int | None]:
    """What `Training.run` takes of the options of a `training_parser`."""
    return {"minutes": options.minutes, "steps": options.steps, "save_seconds": options.save_seconds}


def run_stage(name: str, stage: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """`run_command` with the options of a `stage_parser`: on so many threads, on a device that is there."""
    torch.set_num_threads(options.threads)

    def on_device(options: argparse.Namespace) -> None:
        options.device = str(find_device(options.device))
        stage(options)

    return run_command(name, on_device, options)
