"""train/inversion/z_encoder.py: where the encoder to Z starts, what it learns, and a run that is killed; tiny
networks, coloured squares for photos."""

import json

import numpy as np
import pytest
import torch
from balls import TINY_GENERATOR
from command_line import run
from safetensors.torch import load_file
from test_real_photos import pack
from test_train_faces import TINY_ENCODER

from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.stylegan2 import second_moment_norm
from train.inversion import z_encoder
from train.inversion.z_encoder import ZInversion, coarse_planes, linear_inverse, start_encoder
from train.model import face_batches, faces
from train.model.face_batches import FaceBatches
from train.photos.real_photos import RealPhotos


FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    generator = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR).eval().requires_grad_(False)
    encoder = PortraitEncoder(num_ws=generator.num_ws, w_dim=16, **TINY_ENCODER).eval().requires_grad_(False)
    encoder.latent_average.normal_()  # rows that differ, as those of a trained encoder do
    return generator, encoder


@pytest.fixture
def inputs(tmp_path, networks, monkeypatch):
    """A folder with weights and photos."""
    monkeypatch.setattr(faces, "REPORTED", 2)
    (tmp_path / "photos").mkdir()
    pack(tmp_path / "photos", 6)
    for network, name in zip(networks, ("generator", "encoder")):
        network.save_pretrained(tmp_path / "weights" / name)
    # As many blocks as dlib's, of which some are compared.
    FaceIdentity(4, [(4, False)] * 12, 8).save_pretrained(tmp_path / "weights" / "identity")
    return tmp_path


def words(inputs, out, *more, steps=3) -> list:
    return [
        "--weights", inputs / "weights", "--photos", inputs / "photos", "--out", out, "--batch", 2,
        "--threads", 1, "--steps", steps, *more,
    ]  # fmt: skip


def test_the_inverse_of_a_linear_mapping_is_exact(networks):
    generator = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR).requires_grad_(False)
    first, second = generator.backbone.mapping.fc0, generator.backbone.mapping.fc1
    # Biases so large that no unit of either layer is ever on its other slope.
    first.bias.fill_(2000.0)
    second.weight.abs_()
    inverse, shift = linear_inverse(generator)
    z = second_moment_norm(torch.randn(7, 5))
    assert torch.allclose(generator.mapping(z)[:, 0] @ inverse.t() + shift, z, atol=1e-2)
    assert second.weight.shape == (16, 16) and inverse.shape == (5, 16)


def test_the_encoder_starts_from_the_mean_of_the_rows(networks):
    generator, encoder = networks
    crops = torch.rand(3, 3, 64, 64) * 2 - 1
    inverse, shift = linear_inverse(generator)
    started = start_encoder(encoder, generator).eval()
    wanted = encoder(crops).mean(1) @ inverse.t() + shift
    assert torch.allclose(started(crops)[:, 0], wanted, atol=1e-4)
    ws = ZInversion(started, generator)(crops)
    assert ws.shape == (3, generator.num_ws, 16) and torch.equal(ws[:, 0], ws[:, -1])


def test_coarse_planes_are_what_the_first_blocks_draw(networks):
    synthesis = networks[0].backbone.synthesis
    ws = torch.randn(2, synthesis.num_ws, 16)
    assert torch.allclose(coarse_planes(synthesis, ws, 16), synthesis(ws), atol=1e-5)
    coarse = coarse_planes(synthesis, ws, 8)
    assert coarse.shape == (2, 24, 8, 8)
    ws[:, 5:] += 1  # rows that only later blocks read: 4 px read rows 0 and 1, 8 px rows 1 to 3
    assert torch.equal(coarse_planes(synthesis, ws, 8), coarse)


def test_generated_heads_get_another_background_and_stay_as_they_are(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(face_batches, "as_taken", lambda images, draws: images)
    pack(tmp_path)
    batches = FaceBatches(RealPhotos(tmp_path), None, networks[0], 64, "cpu")
    batches.partial = batches.partial[:0]  # no windows
    images, opacity = torch.full((2, 3, 64, 64), 2 * 0.82 - 1), torch.zeros(2, 1, 64, 64)
    images[..., :32], opacity[..., :32] = 0.3, 1
    seen = batches.as_photos(images, opacity, 0.82, np.random.default_rng(0), torch.Generator().manual_seed(0))
    assert torch.allclose(seen[..., :32], torch.tensor(0.3))
    assert (seen[..., 32:] - (2 * 0.82 - 1)).abs().mean() > 0.05


def test_a_killed_run_goes_on_as_if_it_had_not_been(inputs, monkeypatch):
    more = ("--pictures", 1, "--save-seconds", 0)
    assert run(z_encoder.main, *words(inputs, inputs / "whole", *more)) == 0
    step = z_encoder.ZRun.step

    def killed(self, number, share):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number, share)

    monkeypatch.setattr(z_encoder.ZRun, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(z_encoder.main, *words(inputs, inputs / "killed", *more))
    monkeypatch.setattr(z_encoder.ZRun, "step", step)
    assert run(z_encoder.main, *words(inputs, inputs / "killed", *more)) == 0
    first, second = (load_file(inputs / name / "encoder" / FILE) for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    before = load_file(inputs / "weights" / "encoder" / FILE)
    learned = {name for name in first if not torch.equal(first[name], before[name])}
    assert learned == {"linear.weight", "linear.bias", "latent_average"}  # the body is that of the weights
    report = json.loads((inputs / "whole" / "report.json").read_text())
    assert report["steps"] == 3 and {"identity_own", "identity_frontal", "person_psnr_db"} <= set(report)
    assert list((inputs / "whole" / "sheets").glob("*.png"))


def test_planes_and_z_come_nearer(inputs, monkeypatch):
    seen = []

    def step(self, number, share, taken=z_encoder.ZRun.step):
        terms = taken(self, number, share)
        seen.append({name: term.item() for name, term in terms.items()})
        return terms

    monkeypatch.setattr(z_encoder.ZRun, "step", step)
    monkeypatch.setattr(z_encoder, "report_photos", lambda *_: ({}, [torch.zeros(1, 3, 8, 8)]))
    more = ("--generated", 0, "--rate", 0.15, "--body-rate", 1e-3)
    assert run(z_encoder.main, *words(inputs, inputs / "planes", *more, steps=14)) == 0
    planes = [terms["planes"] for terms in seen]
    assert np.mean(planes[-3:]) < 0.85 * np.mean(planes[:2]) and set(seen[0]) == {"planes", "radius", "gradient"}
    before, after = (load_file(inputs / name / "encoder" / FILE) for name in ("weights", "planes"))
    assert not torch.equal(before["body.0.res_layer.1.weight"], after["body.0.res_layer.1.weight"])
    assert torch.equal(before["input_layer.1.running_mean"], after["input_layer.1.running_mean"])
    seen.clear()
    monkeypatch.setitem(z_encoder.LOSS_WEIGHTS, "planes", 0.0)
    more = ("--generated", 6, "--batch", 1, "--rate", 0.1, "--body-rate", 1e-2)
    assert run(z_encoder.main, *words(inputs, inputs / "z", *more, steps=10)) == 0
    z = [terms["z"] for terms in seen]
    assert np.mean(z[-3:]) < np.mean(z[:2]) and "planes" in seen[0]


def test_mistakes_are_one_sentence(inputs, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run(z_encoder.main, *words(inputs, inputs / "out", "--pictures", 3))
    assert "--pictures are some of the --batch 2 photos; 3 are not" in capsys.readouterr().err
    monkeypatch.setattr(z_encoder.ZRun, "plane_error", lambda *_: torch.tensor(float("nan")))
    assert run(z_encoder.main, *words(inputs, inputs / "out")) == 1
    assert "Step 1: the loss term `planes` is nan." in capsys.readouterr().err
    assert not (inputs / "out" / "encoder").exists()
