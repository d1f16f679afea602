"""The list names every stage, with options that the stage has."""

import re
import runpy
from pathlib import Path

import pytest

from train.stages import ASIDE, STAGES, Stage, stage_list


ROOT = Path(__file__).resolve().parent.parent
NO_STAGES = "__init__", "__main__", "stages"
COMMANDS = [
    command.replace("\\\n", " ").split()
    for stage in (*STAGES, *ASIDE)
    for command in re.split(r"(?<!\\)\n", stage.command)
]
STAGE_FILES = {path.stem: path for path in (ROOT / "train").glob("*.py") if path.stem not in NO_STAGES} | {
    path.parent.name: path for path in (ROOT / "train").glob("*/__main__.py")
}
STAGE_FILE = """\
{doc}

import sys

from {module} import main


if __name__ == "__main__":
    sys.exit(main())
"""


def stage_room(path: Path) -> Path:
    """Where the stage is that a file runs: in a room, but for `train.heads`, which is its room's __main__.py."""
    imported = re.search(r"^from (train\.\w+\.\w+) import main$", path.read_text(), re.MULTILINE)
    return ROOT.joinpath(*imported[1].split(".")).with_suffix(".py") if imported else path


def test_every_stage_is_in_the_list():
    assert {words[2].removeprefix("train.") for words in COMMANDS} == set(STAGE_FILES)


def test_a_stages_file_only_runs_it():
    """Whatever is imported from it would be there twice where it is run."""
    for name, path in STAGE_FILES.items():
        if name != "heads":
            room = stage_room(path)
            doc = f'"""Runs {room.relative_to(ROOT)}."""'
            module = ".".join(room.relative_to(ROOT).with_suffix("").parts)
            assert path.read_text() == STAGE_FILE.format(doc=doc, module=module), path
            assert "\ndef main(" in room.read_text() and "\nif __name__ " not in room.read_text(), room


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[2:5]))
def test_a_command_has_options_that_exist(words):
    sources = stage_room(STAGE_FILES[words[2].removeprefix("train.")]), ROOT / "train" / "loop" / "options.py"
    # Read, not run: importing every stage anew would take minutes.
    known = set(re.findall(r'"(--[a-z][a-z0-9-]*)"', "".join(path.read_text() for path in sources)))
    assert {word for word in words if word.startswith("--")} <= known


def test_what_a_stage_needs_was_made_before():
    made = ""
    for words in COMMANDS:
        for given in (word for word in words if word.startswith(("runs/", "dataset/", "heads_source"))):
            folder = "/".join(given.split("/")[:2])
            option = words[words.index(given) - 1]
            if option in ("--out", "--run"):
                made += f" {folder}"
            assert folder.split(".json")[0] in made, (words, given)


def test_minutes_are_told_and_estimates_called_so():
    text = stage_list()
    assert text.count("2 CPU cores: ") == len(STAGES) + len(ASIDE) and "GPU (estimate): " in text
    assert Stage("", "", "", 1, tflop=2400, steps=10).gpu_minutes == 2
    assert Stage("", "", "", 1, tflop=1, steps=4000).gpu_minutes == 2
    assert Stage("", "", "", 1).gpu_minutes is None


def test_python_m_train_prints_it(capsys):
    runpy.run_module("train", run_name="__main__")
    assert stage_list() in capsys.readouterr().out
