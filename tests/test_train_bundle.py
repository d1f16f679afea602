"""The bundle stage: components in half precision and small files, a card with checksums, a folder that loads."""

import hashlib
import json

import numpy as np
import pytest
import torch
from command_line import run

from preim3d.directions import Directions
from preim3d.encoder import PortraitEncoder
from preim3d.pipeline import Preim3DPipeline
from train import bundle


def test_a_bundle_loads_and_its_checksums_are_true(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "FILE_LIMIT", "20KB")  # the tiny networks must come in several files, as large ones do
    out = tmp_path / "bundle"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    assert run(bundle.main, *parts, "--out", out) == 0
    assert list((out / "encoder").glob("*.index.json"))
    assert str(tiny_weights) not in (out / "encoder" / "config.json").read_text()
    whole, bundled = (Preim3DPipeline.from_pretrained(folder) for folder in (tiny_weights, out))
    for before, after in zip(whole.generator.parameters(), bundled.generator.parameters()):
        assert after.dtype == before.dtype and (after - before).abs().max() <= 1e-3 * before.abs().max() + 1e-6

    config = json.loads((out / "directions" / "config.json").read_text())
    (out / "directions" / "config.json").write_text(json.dumps(config | {"left_out": {"chubby": "Not seen."}}))
    (out / "evaluation.json").write_text(
        json.dumps({"generator_psnr_db": 12.5, "aa": {"smile": 1.25}, "ad": {"smile": 0.5}, "protocol": "P."})
    )
    assert run(bundle.main, "--out", out) == 0
    card = (out / "README.md").read_text()
    assert "No slider for `chubby`: Not seen." in card
    assert "| `generator_psnr_db` | 12.5 |" in card and "| Smile | 0.900 | 1.25 | 0.50 | - |" in card
    listed = dict(line.split("  ")[::-1] for line in card.split("```")[1].strip().splitlines())
    for name, checksum in listed.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == checksum
    assert "model_index.json" in listed and len(listed) > 8


def test_a_missing_component_is_one_sentence(tmp_path, capsys):
    assert run(bundle.main, "--generator", tmp_path / "none", "--out", tmp_path / "out") == 1
    assert "holds no component; give one with --" in capsys.readouterr().err


def test_networks_are_bundled_before_they_have_directions(tiny_weights, tmp_path, capsys):
    out, other = tmp_path / "bundle", tmp_path / "other"
    pair = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder")]
    assert run(bundle.main, *pair, "--out", out) == 0
    assert Preim3DPipeline.from_pretrained(out).directions.names == []
    assert run(bundle.main, "--directions", tiny_weights / "directions", "--out", out) == 0
    assert "smile" in Preim3DPipeline.from_pretrained(out).directions.names
    # Directions of another pair are never taken: given, they are a mistake; lying there, they go.
    encoder = PortraitEncoder.from_pretrained(tiny_weights / "encoder")
    encoder.latent_average += 1
    encoder.save_pretrained(other)
    assert run(bundle.main, "--encoder", other, "--directions", tiny_weights / "directions", "--out", out) == 1
    assert "was learned with another encoder" in capsys.readouterr().err
    assert run(bundle.main, "--encoder", other, "--out", out) == 0
    assert Preim3DPipeline.from_pretrained(out).directions.names == []


def test_directions_of_the_original_space_come_beside_the_others(tiny_weights, tmp_path, capsys):
    out, origin = tmp_path / "bundle", tmp_path / "origin"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    # Those of the inversion manifold are not taken for them.
    assert run(bundle.main, *parts, "--origin", tiny_weights / "directions", "--out", out) == 1
    assert "not learned in the original space" in capsys.readouterr().err

    learned = Directions.from_pretrained(tiny_weights / "directions")
    other = Directions(**public(learned.config) | {"space": "origin"})
    other.vectors.copy_(2 * learned.vectors)
    other.save_pretrained(origin)
    assert run(bundle.main, *parts, "--out", out) == 0
    assert Preim3DPipeline.from_pretrained(out).origin_directions is None
    with pytest.raises(ValueError, match="no directions of the original space"):
        Preim3DPipeline.from_pretrained(out).edit(np.zeros((1, 1)), {}, "origin")
    assert run(bundle.main, "--origin", origin, "--out", out) == 0
    pipeline = Preim3DPipeline.from_pretrained(out)
    w = np.zeros(learned.vectors.shape[1:], np.float32)
    moved, further = (pipeline.edit(w, {"smile": 1}, space) for space in ("inversion", "origin"))
    assert moved.abs().max() > 0 and torch.allclose(further, 2 * moved, rtol=1e-2)
    # They stay with the bundle when it is written again, and go with the networks that they belong to.
    assert run(bundle.main, *parts, "--out", out) == 0
    assert Preim3DPipeline.from_pretrained(out).origin_directions is not None
    encoder = PortraitEncoder.from_pretrained(tiny_weights / "encoder")
    encoder.latent_average += 1
    encoder.save_pretrained(tmp_path / "other")
    assert run(bundle.main, "--encoder", tmp_path / "other", "--out", out) == 0
    assert not (out / "origin_directions").exists()


def public(config) -> dict:
    return {key: value for key, value in config.items() if not key.startswith("_")}
