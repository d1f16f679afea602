"""The bundle stage: components in half precision and small files, a card with checksums, a folder that loads."""

import hashlib
import json

from command_line import run

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
