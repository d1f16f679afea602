"""The rules of the house that a program can check: the test line, which way imports go, sizes, what a Space needs."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
LARGEST_FILE_MB = 10  # a Space refuses larger ones without Git LFS
LARGEST_WEIGHTS_MB = 80


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def imports_of(path: Path) -> set[str]:
    """Top-level names of every package that a file imports."""
    return {name.partition(".")[0] for name in modules_of(path)}


@cache
def modules_of(path: Path) -> set[str]:
    """Dotted names of all that a file imports; of `from a import b` a.b, whatever b is."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_ci_runs_exactly_the_readmes_test_line():
    line = "pip install -r requirements.txt -r train/requirements.txt -r tests/requirements.txt && python -m pytest"
    assert f"```sh\n{line}\n```" in README
    assert (ROOT / ".ci" / "run").read_text().rstrip().splitlines()[-1] == line


def test_ruff_finds_nothing():
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_the_library_imports_neither_page_nor_training():
    """All of it but preim3d/page, which only app.py imports; train/judging/vote.py is a page of its own."""
    for path in (ROOT / "preim3d").glob("*.py"):
        assert not imports_of(path) & {"gradio", "spaces", "train", "app"}, path
    for path in (ROOT / "train").rglob("*.py"):
        pages = set() if path.name == "vote.py" else {"gradio"}
        assert not imports_of(path) & {"spaces", "app", *pages}, path


def test_imports_between_the_rooms_of_train_go_one_way():
    """As train/__init__.py draws it; nothing imports the files that run a stage, nor their list but what prints it."""
    import train

    rooms = re.search(r"^ +(loop <- .*)$", train.__doc__, re.MULTILINE)[1].split(" <- ")
    assert set(rooms) == {path.parent.name for path in (ROOT / "train").glob("*/__init__.py")}
    assert all(re.search(rf"^    {room}/ ", train.__doc__, re.MULTILINE) for room in rooms)
    for path in (ROOT / "train").glob("*/*.py"):
        allowed = rooms[: rooms.index(path.parent.name) + 1]
        assert {name.split(".")[1] for name in modules_of(path) if name.startswith("train.")} <= {*allowed}, path
    for path in (ROOT / "tests").glob("*.py"):
        named = {name.split(".")[1] for name in modules_of(path) if name.startswith("train.")}
        assert named <= {*rooms, "stages"}, path


def test_the_page_imports_spaces_first():
    statements = ast.parse((ROOT / "app.py").read_text("utf-8")).body
    first = next(node for node in statements if isinstance(node, ast.Import | ast.ImportFrom))
    assert first.names[0].name == "spaces"


def test_no_file_is_too_large_for_a_space():
    for path in tracked():
        assert path.stat().st_size <= LARGEST_FILE_MB * 1e6, path
    weights = sum(path.stat().st_size for path in tracked() if path.is_relative_to(ROOT / "weights"))
    assert weights <= LARGEST_WEIGHTS_MB * 1e6


def test_the_readme_is_a_spaces_front_matter():
    front = yaml.safe_load(README.split("---")[1])
    assert front["sdk"] == "gradio" and front["python_version"] == "3.12" and (ROOT / front["app_file"]).is_file()
    requirements = (ROOT / "requirements.txt").read_text()
    low, high = re.search(r"gradio>=([\d.]+),<(\d+)", requirements).groups()
    assert low in front["sdk_version"] and int(front["sdk_version"].partition(".")[0]) < int(high)
    assert len(front["short_description"]) <= 60
    assert (ROOT / "packages.txt").read_text().split() == ["libgl1", "libglib2.0-0"]


def test_every_file_on_the_readmes_map_is_there():
    for name in re.findall(r"^  (\w+\.py)", README, re.MULTILINE):
        assert (ROOT / "preim3d" / name).is_file(), name


def test_the_weights_are_credited_and_their_licence_said():
    """Code and weights have different licences: the front matter tells the code's."""
    assert yaml.safe_load(README.split("---")[1])["license"] == "apache-2.0" and "CC BY 4.0" in README
    credits = (ROOT / "weights" / "README.md").read_text("utf-8")
    for source in ("FairFace", "unitedstates/images", "18F", "London Set", "webmorphR", "MPFB2", "dlib", "CC BY 4.0"):
        assert source in credits, source


def test_the_bundled_weights_are_whole_and_their_examples_current():
    from preim3d.weights import BUNDLED, check_weights, read_json

    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip("weights/faces is not there, or not yet whole")
    check_weights(BUNDLED)
    fingerprint = read_json(BUNDLED / "directions" / "config.json")["fingerprint"]
    for result in BUNDLED.glob("examples/*/result.json"):
        assert read_json(result)["weights"] == fingerprint, f"make {result.parent} again with python -m train.examples"
