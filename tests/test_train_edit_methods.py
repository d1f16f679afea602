"""The comparison of ways of editing: on tiny networks from end to end, and its search where the answer is known."""

import json

import numpy as np
import pytest
import torch
from command_line import run
from packing import pack_faces

from preim3d.directions import ATTRIBUTES, Directions, fingerprint
from preim3d.style_channels import StyleChannels
from preim3d.style_flow import StyleFlow
from train.editing import edit_methods
from train.editing.calibration import Effect
from train.editing.edit_methods import cell, equal_point, pick, table
from train.judging.attributes import HeadReader


def test_the_strength_of_equal_altering_is_found():
    # AA grows evenly: the second strength is right.
    asked = []

    def even(strength):
        asked.append(strength)
        return strength, 0.2 * strength, 0.1 * strength, 0.3 * strength

    assert equal_point(even, 0.5) == pytest.approx({"strength": 2.5, "aa": 0.5, "ad": 0.25, "distance": 0.75})
    assert asked == [1.0, 2.5]
    # One that bends is interpolated between what was measured.
    found = equal_point(lambda s: (s, s**2, s, 0.0), 0.5)
    assert found["aa"] == pytest.approx(0.5) and found["strength"] == pytest.approx(0.5**0.5, abs=0.1)
    # One that never gets there is shown where it gets furthest, and one that goes the wrong way as no edit.
    found = equal_point(lambda s: (s, 0.02 * s, 0.0, 0.0), 0.5)
    assert found["aa"] == pytest.approx(0.1) and found["strength"] == edit_methods.MOST_STRENGTH
    assert equal_point(lambda s: (s, -s, s, s), 0.5)["aa"] == 0


class LinearTrial:
    """Stands where EditTrial does: logits that depend on w by a known matrix [A, D]."""

    def __init__(self, reader, slopes):
        self.reader, self.slopes = reader, slopes

    def effect(self, offset):
        return Effect(self.slopes @ offset.flatten(), 0.0)


NAMES = tuple(ATTRIBUTES[key].celeba for key in ("age", "smile", "gender", "eyeglasses", "hat"))


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, NAMES, 5).eval()


def test_unnamed_directions_stand_for_what_they_alter_most(reader):
    slopes = torch.tensor([[0.0, 2.0], [-3.0, 1.0], [0.5, 0.4], [0.1, -0.2], [9.0, 9.0]])
    directions = Directions(("pca_1", "pca_2"), ("a", "b"), 2 * ("Unnamed",), (None, None), 2 * ((-3, 3),), 1, 2)
    directions.vectors.copy_(torch.eye(2)[:, None])
    # Youth grows along the second, so age does backwards.
    assert pick(LinearTrial(reader, slopes), directions) == {
        "age": ("pca_2", -1), "smile": ("pca_1", -1), "gender": ("pca_1", 1), "eyeglasses": ("pca_2", -1),
    }  # fmt: skip


def test_a_line_of_the_table():
    found = {"aa": 0.5, "ad": 0.25, "distance": 0.3}
    row = {key: found for key in edit_methods.EQUAL_EDITS}
    whole, part = table({"A": row, "B": {"smile": found | {"aa": 0.0}}}, 0.5).splitlines()[2:]
    assert whole == "| A | 0.50 / 0.25 / 0.30 | 0.50 / 0.25 / 0.30 | 0.50 / 0.25 / 0.30 | 0.50 / 0.25 / 0.30 | 0.50 |"
    assert part == "| B | - | alters nothing | - | - | - |" and cell(None) == "-"


@pytest.fixture(scope="module")
def folder(tiny_weights, pipeline, reader, tmp_path_factory):
    """A folder with photos, latents, the classifier and one way of each kind."""
    torch.manual_seed(1)
    folder, generator = tmp_path_factory.mktemp("methods"), pipeline.generator
    pack_faces(folder / "photos", count=12)
    reader.save_pretrained(folder / "reader")
    w = torch.randn(20, generator.num_ws, 24)
    np.savez(folder / "latents.npz", w=w.numpy(), logits=w[:, 0, :5].numpy(), attribute_names=np.array(NAMES))
    pair = fingerprint(pipeline.encoder, generator)
    sizes = generator.backbone.synthesis.style_sizes
    channels = StyleChannels(("smile", "age"), tuple(sizes), tuple(sizes.values()), fingerprint=pair)
    channels.vectors.normal_()
    flow = StyleFlow(("smile", "age", "gender"), generator.num_ws, 24, size=2, width=4, fingerprint=pair)
    for block in flow.flows:
        block.last.modulation.weight.data.normal_()
    flow.axes.copy_(torch.eye(flow.axes.shape[1])[:2])
    unnamed = Directions(("pca_1",), ("a",), ("Unnamed",), (None,), ((-3, 3),), generator.num_ws, 24, fingerprint=pair)
    unnamed.vectors.normal_()
    for name, learned in {"channels": channels, "flow": flow, "pca": unnamed}.items():
        learned.save_pretrained(folder / name)
    unnamed.register_to_config(fingerprint="of another pair")
    unnamed.save_pretrained(folder / "foreign")
    return folder


@pytest.fixture
def compared(tiny_weights, folder, tmp_path):
    """Runs the stage and gives what it wrote."""

    def compare(*ways, status=0, **changed):
        options = {
            "weights": tiny_weights, "reader": folder / "reader", "photos": folder / "photos", "count": 2,
            "latents": folder / "latents.npz", "out": tmp_path / "out.json", "threads": 1, "picked": 1,
        } | changed  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        assert run(edit_methods.main, *words, *ways) == status
        return json.loads((tmp_path / "out.json").read_text()) if status == 0 else None

    return compare


def test_all_kinds_are_compared_and_a_killed_run_goes_on(
    compared, tiny_weights, folder, tmp_path, monkeypatch, capsys
):
    svm, pca = f"SVM={tiny_weights / 'directions'}", f"PCA={folder / 'pca'}"
    others = f"StyleSpace={folder / 'channels'}", f"StyleFlow={folder / 'flow'}"
    whole = compared(svm, pca, *others)
    assert {name: list(found["edits"]) for name, found in whole["methods"].items()} == {
        "SVM": ["age", "smile", "gender", "eyeglasses"], "PCA": ["age", "smile", "gender", "eyeglasses"],
        "StyleSpace": ["age", "smile"], "StyleFlow": ["age", "smile", "gender"],
    }  # fmt: skip
    figures = [edit for found in whole["methods"].values() for edit in found["edits"].values()]
    assert all(np.isfinite(edit["ad"]) and edit["ad"] >= 0 for edit in figures) and whole["n"] == 2
    assert sum(edit["aa"] > 0 for edit in figures) > 4 and whole["methods"]["PCA"]["edits"]["age"]["picked"] == "pca_1"
    assert (tmp_path / "out.md").read_text() in capsys.readouterr().out
    # The table shows what was asked for now; what was measured is not measured again.
    kept = dict(whole, methods={name: whole["methods"][name] for name in ("SVM", "StyleFlow")})
    del kept["methods"]["StyleFlow"]["edits"]["smile"]
    (tmp_path / "out.json").write_text(json.dumps(kept))
    asked, point = [], edit_methods.JudgedPhotos.point
    monkeypatch.setattr(
        edit_methods.JudgedPhotos, "point", lambda heads, way, key, s: asked.append(key) or point(heads, way, key, s)
    )
    again = compared(svm, others[1])
    assert set(asked) == {"smile"} and again["seconds"] >= kept["seconds"]
    again = again["methods"]["StyleFlow"]["edits"]["smile"]
    assert again == pytest.approx(compared(*others)["methods"]["StyleFlow"]["edits"]["smile"])


def test_mistakes_are_one_sentence(compared, tiny_weights, folder, tmp_path, capsys):
    svm = f"SVM={tiny_weights / 'directions'}"

    def complaint(*ways, **changed):
        compared(*ways, status=1, **changed)
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("train.edit_methods: ")
        return said

    assert "was learned with another encoder or generator" in complaint(f"PCA={folder / 'foreign'}")
    assert "holds a HeadReader, not what `python -m train.directions` makes" in complaint(f"PCA={folder / 'reader'}")
    assert "none" in complaint(f"PCA={folder / 'none'}") and "latents" in complaint(svm, latents=tmp_path / "latents")
    about = {"n": 2, "seed": 1, "level": 0.5, "fingerprint": "", "seconds": 1, "methods": {}}
    (tmp_path / "out.json").write_text(json.dumps(about))
    assert "was begun with another seed" in complaint(svm)
    for changed in ({"count": 1}, {"level": "much"}):
        with pytest.raises(SystemExit):
            compared(svm, **changed)
    with pytest.raises(SystemExit):
        compared("a folder")
    assert "is not of the form NAME=FOLDER" in capsys.readouterr().err
