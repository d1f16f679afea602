"""The bundle stage: components in half precision and small files, a card with checksums, a folder that loads."""

import hashlib
import json

import numpy as np
import pytest
import torch
from command_line import run
from conftest import ROOT, tiny_identity
from safetensors.torch import load_file, save_file

from preim3d.directions import Directions
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.judge import IdentityJudge, Judge
from preim3d.pipeline import Preim3DPipeline
from preim3d.reader import HeadReader
from preim3d.weights import PERCEPTUAL, check_weights, perceptual_file
from train.publishing import bundle
from train.publishing.model_card import with_headlines


def test_a_bundle_loads_and_its_checksums_are_true(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(
        bundle, "FILE_LIMIT_MB", 0.02
    )  # the tiny networks must come in several files, as large ones do
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
    assert "| `generator_psnr_db` | 12.5 |" in card and "| Smile | 0.900 | 1.25 | 0.50 | - | - |" in card
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
        Preim3DPipeline.from_pretrained(out).head(np.zeros((1, 1)), space="origin")
    assert run(bundle.main, "--origin", origin, "--out", out) == 0
    pipeline = Preim3DPipeline.from_pretrained(out)
    w = np.zeros(learned.vectors.shape[1:], np.float32)
    moved, further = (pipeline.head(w, None, {"smile": 1}, space).w for space in ("inversion", "origin"))
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


def test_variances_beyond_half_precision_survive(tiny_weights, tmp_path):
    """Those of the first encoder trained on photos reach 40,000; 65,504 is half precision's end."""
    encoder = PortraitEncoder.from_pretrained(tiny_weights / "encoder")
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.running_var.fill_(1e6 + 1)
        norm.running_mean.fill_(-70_001)
    encoder.save_pretrained(tmp_path / "encoder")
    out = tmp_path / "out"
    assert (
        run(bundle.main, f"--generator={tiny_weights / 'generator'}", "--encoder", tmp_path / "encoder", "--out", out)
        == 0
    )
    again = Preim3DPipeline.from_pretrained(out).encoder
    for norm in again.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            assert (norm.running_var == 1e6 + 1).all() and (norm.running_mean == -70_001).all()
    state = load_file(next((out / "encoder").glob("*.safetensors")))
    assert {str(t.dtype) for name, t in state.items() if name.endswith("running_var")} == {"torch.float32"}
    assert state["linear.weight"].dtype == torch.float16
    assert torch.isfinite(again(torch.zeros(1, 3, 32, 32))).all()


def test_a_parameter_beyond_half_precision_is_told(tiny_weights, tmp_path, capsys):
    encoder = PortraitEncoder.from_pretrained(tiny_weights / "encoder")
    encoder.latent_average += 1e6
    encoder.save_pretrained(tmp_path / "encoder")
    words = f"--generator={tiny_weights / 'generator'}", "--encoder", tmp_path / "encoder", "--out", tmp_path / "out"
    assert run(bundle.main, *words) == 1
    assert "`latent_average` of the PortraitEncoder is too large" in capsys.readouterr().err


def test_the_largest_tensors_are_kept_in_eight_bits_and_their_directions_stay(tiny_weights, tmp_path, monkeypatch):
    """Directions learned with the networks before they were rounded belong to the rounded ones too."""
    monkeypatch.setattr(bundle, "HALF_LIMIT_MB", 0.01)
    out = tmp_path / "out"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    assert run(bundle.main, *parts, "--out", out) == 0
    before, after = (Preim3DPipeline.from_pretrained(folder) for folder in (tiny_weights, out))
    assert "smile" in after.directions.names
    assert after.directions.config.fingerprint != before.directions.config.fingerprint
    rounded = before.generator.average_planes.to(torch.float8_e4m3fn).float()
    assert torch.equal(after.generator.average_planes, rounded)
    assert run(bundle.main, *parts[:2], "--directions", out / "directions", "--out", out) == 0  # and once more


def test_what_edits_draw_is_kept_in_eight_bits():
    directions = Directions(("bald",), ("B",), ("",), (None,), ((-3, 3),), drawn=("bald",), front_shape=(2, 4, 8))
    torch.manual_seed(0)
    directions.front_maps.normal_()
    directions.front_weights.normal_()
    whole = directions.front({"bald": 2.0})
    kept = bundle.stored(directions)
    assert kept.front_maps.dtype == torch.float8_e4m3fn and kept.front_weights.dtype == torch.float16
    assert 0 < (kept.float().front({"bald": 2.0}) - whole).norm() < 0.04 * whole.norm()


def test_what_judges_comes_beside_the_pipeline(tiny_weights, tmp_path, monkeypatch):
    reader = HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 16, ("Smiling",), 4, (1.0,))
    reader.save_pretrained(tmp_path / "reader")
    state = {name: tensor for name, tensor in tiny_identity().state_dict().items()}
    save_file({"stem.conv.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    out = tmp_path / "weights" / "faces"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    assert run(bundle.main, *parts, "--identity", tmp_path / "other.safetensors", "--out", out) == 1
    monkeypatch.setattr(bundle, "from_dlib", lambda given: tiny_identity())
    save_file(state, tmp_path / "dlib.safetensors")
    save_file(EfficientNetLite0().state_dict(), tmp_path / "lite0.safetensors")
    words = "--identity", tmp_path / "dlib.safetensors", "--reader", tmp_path / "reader"
    assert run(bundle.main, *words, "--perceptual", tmp_path / "other.safetensors", "--out", out) == 1
    assert run(bundle.main, *words, "--perceptual", tmp_path / "lite0.safetensors", "--out", out) == 0
    check_weights(out)
    assert perceptual_file(out) == out / PERCEPTUAL and EfficientNetLite0.load(out / PERCEPTUAL)
    assert Judge(out.parent / "reader", IdentityJudge.of_weights(out)).identity is not None
    assert "identity/" in (out / "README.md").read_text()


def test_too_much_is_one_sentence(tiny_weights, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    monkeypatch.setattr(bundle, "WEIGHTS_LIMIT_MB", 0.01)
    assert run(bundle.main, *parts, "--out", out) == 1
    assert "0.01 are allowed; make one smaller: generator" in capsys.readouterr().err


@pytest.mark.parametrize(
    "black, sentence",
    [
        (0.5, "none by more than the 15% aimed at; least alike is Black (distance +5% against"),
        (0.7, "people whom FairFace labels Black (distance +22%), against the mean"),
    ],
)
def test_the_card_says_which_faces_come_back_less_alike(tiny_weights, tmp_path, black, sentence):
    out = tmp_path / "out"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    assert run(bundle.main, *parts, "--out", out) == 0
    groups = {"Black": {"n": 20, "identity_own": black}, "White": {"n": 20, "identity_own": 0.45}}
    measured = {"identity_own": 0.5, "protocol": "P.", "groups": groups}
    (out / "evaluation.json").write_text(json.dumps(measured))
    assert run(bundle.main, "--out", out) == 0
    card = (out / "README.md").read_text()
    assert sentence in card and "license: cc-by-4.0" in card and "Protocol: P." in card


def test_the_readme_gets_the_newest_figures_between_its_marks(tiny_weights, tmp_path, capsys):
    out, readme = tmp_path / "out", tmp_path / "README.md"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    assert run(bundle.main, *parts, "--out", out) == 0
    encoder = {"n": 50, "identity_own": 0.51, "identity_grid": 0.55, "nearest_of_20": 0.6, "person_psnr_db": 19.0}
    hybrid = encoder | {"identity_own": 0.123, "person_psnr_db": 25.04, "time_s": 41.3, "encoder": encoder}
    measured = {"identity_own": 0.4321, "nearest_of_20": 0.9, "n": 137, "protocol": "P.", "aa": {}}
    measured |= {"inversions": {"hybrid": hybrid}}
    (out / "evaluation.json").write_text(json.dumps(measured))
    readme.write_text("before\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nafter\n")
    for _ in range(2):
        assert run(bundle.main, "--out", out, "--readme", readme) == 0
        text = readme.read_text()
        assert text.startswith("before\n<!-- figures: begin -->") and text.endswith("<!-- figures: end -->\nafter\n")
        assert "on 137 held-out photos" in text and "0.432 | at most 0.42 |" in text and "old" not in text
        assert "on 50 of them" in text and "identity distance 0.12 (0.51)" in text and "25.0 (19.0) dB; 41 s" in text
    readme.write_text("none")
    assert run(bundle.main, "--out", out, "--readme", readme) == 1
    assert "lacks the marks" in capsys.readouterr().err and readme.read_text() == "none"


def test_the_projects_readme_has_the_marks():
    assert with_headlines((ROOT / "README.md").read_text("utf-8"), {"n": 1}).count("figures: begin") == 1
