"""What edits draw into the front plane: how it is found, kept in little space, and gone on with after a kill."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from packing import pack_faces

from preim3d.detail import DetailNetwork
from preim3d.directions import ATTRIBUTES, Directions
from preim3d.pipeline import Preim3DPipeline
from preim3d.tuning import TEXELS
from train.editing import fronts
from train.editing.fronts import LABELS, Drawn, common_maps, regressed, with_fronts


MATERIAL = Path(__file__).parents[2] / "shared" / "heads"


def test_a_regression_tells_apart_what_labels_go_together():
    """Old people have both glasses and grey hair; each label gets its own share."""
    rng = np.random.default_rng(0)
    labels = rng.uniform(0, 1, (60, len(LABELS))).astype(np.float32)
    labels[:, 1] = labels[:, 0] + 0.1 * labels[:, 1]
    shares = rng.standard_normal((len(LABELS), 2 * 3 + 4 * 5 * 5)).astype(np.float32)
    known = np.concatenate([np.ones((60, 1), np.float32), labels], 1)
    found = 3 + labels @ shares
    drawn = regressed(known.T @ np.concatenate([known, found], 1), (2, 3), (4, 5, 5))
    assert list(drawn) == list(LABELS)
    for one, share in zip(drawn.values(), torch.from_numpy(shares)):
        assert torch.allclose(one.moved.flatten(), share[:6], atol=1e-2)
        assert torch.allclose(one.front.flatten(), share[6:], atol=1e-2)


def test_common_maps_are_the_nearest_sums():
    torch.manual_seed(0)
    maps, weights = torch.randn(3, 8, 8), torch.randn(5, 4, 3)
    given = torch.einsum("kcm,mhw->kchw", weights, maps)
    for count in (3, 9):
        found, shares = common_maps(given, count)
        assert found.shape == (count, 8, 8) and shares.shape == (5, 4, count)
        assert torch.allclose(torch.einsum("kcm,mhw->kchw", shares, found), given, atol=1e-4)
    found, shares = common_maps(given, 2)
    assert torch.allclose(found.std(dim=(1, 2), unbiased=False) ** 2 + found.mean((1, 2)) ** 2, torch.ones(2))
    left = torch.einsum("kcm,mhw->kchw", shares, found) - given
    assert 0 < left.norm() < 0.6 * given.norm()


def test_a_direction_draws_as_much_as_it_holds_of_what_was_found():
    torch.manual_seed(0)
    learned = Directions(("smile", "bald"), ("S", "B"), ("", ""), (0.8, None), ((-2, 2), (-3, 3)), 2, 3,
                         left_out={"lipstick": "Nobody sees it."})  # fmt: skip
    learned.vectors.normal_()
    aside = torch.randn(2, 3)
    aside /= aside.norm() / learned.vectors[0].norm()
    aside -= (aside * learned.vectors[0]).sum() / learned.vectors[0].square().sum() * learned.vectors[0]
    found = {
        "smile": Drawn(2 * learned.vectors[0] + aside, torch.randn(4, 8, 8)),
        "lipstick": Drawn(torch.randn(2, 3), torch.randn(4, 8, 8)),
    }
    directions = with_fronts(learned, found, ["lipstick"], 8).float()
    assert directions.names == ["smile", "bald", "lipstick"] and directions.config.left_out == {}
    assert directions.config.labels[2] == ATTRIBUTES["lipstick"].label
    assert torch.allclose(directions.offset({"lipstick": 2.0}), found["lipstick"].moved, atol=1e-2)
    assert torch.allclose(directions.front({"lipstick": 2.0}), found["lipstick"].front, atol=1e-2)
    whole = found["smile"].moved.square().sum() / (learned.vectors[0] * found["smile"].moved).sum()
    assert torch.allclose(directions.front({"smile": whole.item()}), found["smile"].front, atol=2e-2)
    assert directions.front({"bald": 1.0}) is None
    found["smile"] = found["smile"]._replace(moved=0.5 * learned.vectors[0])  # half as far as the direction goes
    most = with_fronts(learned, found, ["lipstick"], 8).float().front({"smile": 1.0})
    assert torch.allclose(most, found["smile"].front, atol=2e-2)
    # An offset of w that leads elsewhere than the direction is of something else, and so is its front.
    found["smile"] = found["smile"]._replace(moved=0.1 * learned.vectors[0] + aside)
    assert with_fronts(learned, found, ["lipstick"], 8).config.drawn == ["lipstick"]


@pytest.mark.skipif(not MATERIAL.is_dir(), reason="the CC0 head data (../shared/heads) is not here")
def test_a_killed_run_goes_on(tiny_weights, pipeline, tmp_path, monkeypatch, capsys):
    from train.heads.source import build_source

    build_source(MATERIAL / "mpfb", MATERIAL / "makehuman-assets", tmp_path / "source.npz")
    _, table = pack_faces(tmp_path / "photos", count=60)
    weights = tmp_path / "weights"
    shutil.copytree(tiny_weights, weights)
    given = ("--source", tmp_path / "source.npz", "--photos", tmp_path / "photos", "--labels", table)
    sizes = ("--heads", 2, "--count", 16, "--threads", 1, "--maps", 5)
    words = (*given, *sizes, "--weights", weights, "--out", tmp_path)
    assert run(fronts.main, *words) == 1
    assert "draws no detail" in capsys.readouterr().err
    torch.manual_seed(3)
    detail = DetailNetwork(plane_channels=8, embedding_size=6, widths=(8, 8))
    torch.nn.init.normal_(detail.last.weight, std=0.1)
    detail.save_pretrained(weights / "detail")
    assert run(fronts.main, *words, "--add", "smile") == 1
    assert "there is no pair for that, or a direction already" in capsys.readouterr().err
    assert run(fronts.main, *words, "--count", 5) == 1
    assert "too few" in capsys.readouterr().err

    two = {name: fronts.PAIRS[name] for name in ("lipstick", "goatee")}
    monkeypatch.setattr(fronts, "PAIRS", {"lipstick": two["lipstick"]})
    monkeypatch.setattr(fronts, "ONE_KIND", {})
    monkeypatch.setattr(fronts, "LEAST_COSINE", -1.0)  # these directions are random
    real, calls = fronts.Labelled.sums, []

    def stopped(labelled, first):
        if first >= 8:
            raise OSError("stopped")
        return real(labelled, first)

    monkeypatch.setattr(fronts, "SAVE_SECONDS", 0)
    monkeypatch.setattr(fronts.Labelled, "sums", stopped)
    assert run(fronts.main, *words, "--add", "lipstick") == 1
    monkeypatch.setattr(fronts.Labelled, "sums", lambda labelled, first: calls.append(first) or real(labelled, first))
    monkeypatch.setattr(fronts, "PAIRS", two)
    assert run(fronts.main, *words, "--add", "lipstick") == 0
    assert calls == [8, 12]
    assert run(fronts.main, *words, "--seed", 5, "--add", "lipstick") == 1
    assert "begun with another seed" in capsys.readouterr().err

    shutil.rmtree(weights / "directions")
    shutil.copytree(tmp_path / "directions", weights / "directions")
    edited = Preim3DPipeline.from_pretrained(weights)
    labelled = [name for name in pipeline.directions.names if ATTRIBUTES[name].celeba in LABELS]
    assert {"smile", "age", "gender", "mouth_open"} == set(labelled)
    assert set(edited.directions.config.drawn) == {*labelled, "goatee", "lipstick"}
    assert edited.directions.front({"goatee": 1.0}).shape == (8, TEXELS, TEXELS)
    assert edited.directions.front({"lipstick": 1.0}).abs().max() > 0
