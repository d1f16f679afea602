"""The sheets of photos, reconstructions and edits; the examples of the page."""

import json
import shutil

import numpy as np
import pytest
from command_line import run
from PIL import Image
from test_real_photos import pack

from preim3d.page.examples import find_examples, visit_example
from preim3d.weights import read_json
from train.publishing import examples, showcase


@pytest.fixture
def packed(tmp_path):
    """Four packed photos; the first two may be shown."""
    folder = tmp_path / "packed"
    folder.mkdir()
    pack(folder, 4)
    with np.load(folder / "photos.npz") as arrays:
        names = np.array(["congress1/a", "congress1/b", "ff/1", "congress1/c"])
        pose = np.radians([[10, -5], [0, 0], [0, 0], [0, 0]]).astype(np.float32)
        np.savez(
            folder / "photos.npz", **{**arrays, "name": names, "held": np.array([1, 1, 1, 0], bool), "pose": pose}
        )
    return folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("preim3d.inversion.STEPS", {"hybrid": 2})


def test_examples_are_what_the_page_shows(tiny_weights, packed, tmp_path):
    weights = shutil.copytree(tiny_weights, tmp_path / "weights")
    (weights / "examples" / "portrait-9").mkdir(parents=True)  # of an earlier run
    assert run(examples.main, "--photos", packed, "--rows", 1, 0, "--weights", weights) == 0
    found = find_examples(weights, read_json(weights / "directions" / "config.json")["fingerprint"])
    assert [folder.name for folder in found] == ["portrait-1", "portrait-2"]
    visitor = visit_example(found[1])
    assert visitor.tuning is None and visitor.w.dtype == np.float32
    assert visitor.crop.size == (512, 512) and visitor.front.size == (32, 32)
    assert np.abs(np.array(visitor.crop)[256, 100].astype(int) - [200, 20, 10]).max() <= 3
    told = json.dumps(json.loads((found[0] / "result.json").read_text()))
    assert "congress" not in told and (found[0] / "head.glb").read_bytes()[:4] == b"glTF"
    assert not (weights / "examples" / "portrait-9").exists()


@pytest.mark.parametrize(
    "row, sentence", [(2, "not in the public domain"), (3, "was trained with"), (4, "no photo 4: there are 4")]
)
def test_what_may_not_be_shown_is_refused(tiny_weights, packed, capsys, row, sentence):
    assert run(examples.main, "--photos", packed, "--rows", row, "--weights", tiny_weights) == 1
    assert sentence in capsys.readouterr().err
    assert not (tiny_weights / "examples").exists()
    words = "--packed", packed, "--rows", row, "--weights", tiny_weights, "--out", packed / "sheet.png"
    assert run(showcase.main, *words) == 1
    assert sentence in capsys.readouterr().err


def test_a_teaser_shows_one_face_in_three_blocks(tiny_weights, packed, tmp_path):
    out = tmp_path / "teaser.png"
    words = "--packed", packed, "--rows", 0, 1, "--weights", tiny_weights, "--teaser", "--cell", 64, "--out", out
    assert run(showcase.main, *words) == 0
    with Image.open(out) as sheet:
        assert sheet.height == 3 * 64 + 4 and sheet.width > 3 * sheet.height


def test_a_sheet_has_a_row_per_face_and_a_cell_per_edit(tiny_weights, portrait, tmp_path):
    out = tmp_path / "sheet.png"
    assert (
        run(
            showcase.main,
            portrait,
            "--weights",
            tiny_weights,
            "--out",
            out,
            "--edits",
            "smile=2",
            "age=-1",
            "--cell",
            64,
        )
        == 0
    )
    sheet = Image.open(out)
    assert sheet.width >= 6 * 64 and sheet.height < 2 * 64


def test_mistakes_are_one_sentence(tiny_weights, portrait, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    for edit, words in (("smile", "write NAME=STRENGTH"), ("smyle=1", "smile")):
        assert run(showcase.main, portrait, "--weights", tiny_weights, "--out", out, "--edits", edit) == 1
        assert words in capsys.readouterr().err
    assert run(showcase.main, tmp_path / "none.png", "--weights", tiny_weights, "--out", out) == 1
    assert run(showcase.main, "--weights", tiny_weights, "--out", out) == 1
    assert "no photo to show" in capsys.readouterr().err
    assert not out.exists()
