"""The recipe names every stage, with options that the stage has."""

import re
import runpy
from pathlib import Path

import pytest

from train.recipe import ASIDE, STAGES, Stage, recipe


ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [
    command.replace("\\\n", " ").split()
    for stage in (*STAGES, *ASIDE)
    for command in re.split(r"(?<!\\)\n", stage.command)
]


def test_every_stage_is_in_the_recipe():
    stages = {p.stem for p in (ROOT / "train").glob("*.py") if '\nif __name__ == "__main__":' in p.read_text()}
    assert {words[2].removeprefix("train.") for words in COMMANDS} == stages - {"__main__"} | {"heads"}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[2:5]))
def test_a_command_has_options_that_exist(words):
    name = words[2].removeprefix("train.")
    sources = ROOT / "train" / (f"{name}/__main__.py" if name == "heads" else f"{name}.py"), ROOT / "train/options.py"
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
    text = recipe()
    assert text.count("2 CPU cores: ") == len(STAGES) + len(ASIDE) and "GPU (estimate): " in text
    assert Stage("", "", "", 1, tflop=2400, steps=10).gpu_minutes == 2
    assert Stage("", "", "", 1, tflop=1, steps=4000).gpu_minutes == 2
    assert Stage("", "", "", 1).gpu_minutes is None


def test_python_m_train_prints_it(capsys):
    runpy.run_module("train", run_name="__main__")
    assert recipe() in capsys.readouterr().out
