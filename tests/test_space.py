"""The rules of a Hugging Face Space that can be checked without one: its settings, and app.py imported as there."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version


README = (ROOT / "README.md").read_text("utf-8")
REQUIREMENTS = {}
for line in (ROOT / "requirements.txt").read_text().splitlines():
    REQUIREMENTS[Requirement(line).name] = Requirement(line)

# huggingface.co/docs/hub/spaces-config-reference; what else may stand there would ask visitors to log in, or ask for
# hardware that this page does not need.
SETTINGS = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"}
SETTINGS |= {"short_description", "tags", "models", "thumbnail", "pinned"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
ZEROGPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")  # huggingface.co/docs/hub/spaces-zerogpu
LONGEST_GPU_S = 30  # of the 120 a day that a visitor without an account has

# Imports app.py with no way out to a network, and tells what it finds.
IMPORT = """
import json, os, socket, sys
def no_way(*whatever): raise OSError("app.py asked for a network as it was imported")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_way
import spaces
durations = {}
def gpu(duration=None):
    return lambda function: durations.update({function.__name__: duration}) or function
spaces.GPU = gpu
before = set(sys.modules)
import app
import gradio
order = list(sys.modules)
queues = {}
for event in app.demo.fns.values():
    if event.concurrency_id == "gpu":
        queues.setdefault("gpu", set()).add(event.concurrency_limit)
print(json.dumps({
    "a page": isinstance(app.demo, gradio.Blocks),
    "launched": app.demo.is_running,
    "torch came with": "torch" not in before and order.index("spaces") < order.index("torch"),
    "waiting": app.demo._queue.max_size,
    "at once": [sorted(limits) for limits in queues.values()],
    "analytics": os.environ["GRADIO_ANALYTICS_ENABLED"],
    "device": str(app.pipeline.device),
    "durations": durations,
}))
"""


@pytest.fixture(scope="module")
def found(tiny_weights) -> dict:
    """What `IMPORT` tells, with the environment variables of a Space."""
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_ANALYTICS_ENABLED"}
    environment |= {"PREIM3D_WEIGHTS": str(tiny_weights), "PREIM3D_QUEUE_SIZE": "7", "PREIM3D_DEVICE": "cpu"}
    run = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_the_settings_are_those_a_space_knows():
    settings = yaml.safe_load(README.split("---")[1])
    assert README.startswith("---\n") and set(settings) <= SETTINGS
    assert settings["colorFrom"] in COLORS and settings["colorTo"] in COLORS
    assert not re.search(r"[\x00-\x7f]", settings["emoji"])
    assert settings["license"] == "apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()
    assert all(re.fullmatch(r"[a-z0-9-]+", tag) for tag in settings["tags"])
    # Written as text: 3.10 would be read as the number 3.1.
    assert isinstance(settings["python_version"], str) and isinstance(settings["sdk_version"], str)
    assert Version(settings["sdk_version"]) in REQUIREMENTS["gradio"].specifier


def test_the_requirements_suit_a_space():
    """Ranges from the package index, which leave the platform its own choice of torch and spaces."""
    assert not any(requirement.url for requirement in REQUIREMENTS.values())
    assert all(Version(version) in REQUIREMENTS["torch"].specifier for version in ZEROGPU_TORCH)
    assert {bound.operator for bound in REQUIREMENTS["spaces"].specifier} <= {">="}


def test_the_system_packages_are_names_one_a_line():
    """They are handed to apt-get install as they stand: no comments, no carriage returns."""
    lines = (ROOT / "packages.txt").read_bytes().decode("ascii").split("\n")
    assert lines.pop() == "" and all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", line) for line in lines)


def test_the_readme_says_how_to_put_it_there():
    """The Hub refuses a plain git push of pictures and weights; `hf upload` stores them as it wants them."""
    assert re.search(r"^hf upload \S+ \. \. --repo-type space$", README, re.MULTILINE)


def test_the_page_is_importable_without_a_network_and_without_being_opened(found):
    assert found["a page"] and not found["launched"] and found["analytics"] == "False"


def test_the_models_are_placed_at_import_after_spaces_saw_torch_come(found):
    assert found["device"] == "cpu" and found["torch came with"]


def test_the_queue_has_limits(found):
    """One head at a time; its length is what the environment said."""
    assert found["waiting"] == 7 and found["at once"] == [[1]]


def test_every_gpu_function_names_a_short_duration(found):
    assert found["durations"]
    assert all(0 < seconds <= LONGEST_GPU_S for seconds in found["durations"].values()), found["durations"]
