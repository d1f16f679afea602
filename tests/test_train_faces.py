"""The joint training of generator and encoder: tiny networks, balls for heads, coloured squares for photos."""

import json

import numpy as np
import pytest
import torch
from balls import TINY_GENERATOR, make_balls
from safetensors.torch import load_file
from test_real_photos import pack

from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from train.heads.dataset import HeadsDataset
from train.loop.ahead import Ahead
from train.model import face_batches, faces
from train.model.face_batches import FaceBatches, LearnedCameras, PhotoBatch, Recolouring
from train.photos.real_photos import RealPhotos


TINY_ENCODER = {
    "input_size": 64, "units": (1, 1, 1, 1), "depths": (16, 16, 16, 16), "stem_stride": 2, "pool": 2,
    "feature_dim": 16,
}  # fmt: skip


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A folder with heads, photos and an identity network, and networks that are quick to train."""
    monkeypatch.setattr(faces, "GENERATOR", TINY_GENERATOR)
    monkeypatch.setattr(faces, "ENCODER", TINY_ENCODER)
    monkeypatch.setattr(faces, "REPORTED", 2)
    for name in ("heads", "photos"):
        (tmp_path / name).mkdir()
    make_balls(tmp_path / "heads")
    pack(tmp_path / "photos", 6)
    torch.manual_seed(0)
    # As many blocks as dlib's, of which some are compared.
    FaceIdentity(4, [(4, False)] * 12, 8).save_pretrained(tmp_path / "identity")
    return tmp_path


def words(inputs, out, *more, steps=4) -> list[str]:
    return [str(word) for word in (
        "--photos", inputs / "photos", "--heads", inputs / "heads", "--identity", inputs / "identity",
        "--out", out, "--batch", 2, "--head-batch", 2, "--rays", 16, "--points", 16, "--patches", 1,
        "--precision", "float32", "--threads", 1, "--sheets", 1, "--steps", steps, *more,
    )]  # fmt: skip


def test_a_run_makes_both_networks_and_a_report(inputs, tmp_path):
    assert faces.main(words(inputs, tmp_path / "out")) == 0
    generator = TriPlaneGenerator.from_pretrained(tmp_path / "out" / "generator")
    encoder = PortraitEncoder.from_pretrained(tmp_path / "out" / "encoder")
    assert generator.w_avg.abs().sum() > 0 and encoder(torch.zeros(1, 3, 64, 64)).shape == (1, generator.num_ws, 16)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"] == 4 and {"identity_own", "identity_frontal", "person_psnr_db"} <= set(report)
    assert list((tmp_path / "out" / "sheets").glob("*.png"))


def test_a_killed_run_goes_on_as_if_it_had_not_been(inputs, tmp_path, monkeypatch):
    assert faces.main(words(inputs, tmp_path / "whole", "--save-seconds", 0)) == 0
    step = faces.FacesRun.step

    def killed(self, number, share):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number, share)

    monkeypatch.setattr(faces.FacesRun, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        faces.main(words(inputs, tmp_path / "killed", "--save-seconds", 0))
    monkeypatch.setattr(faces.FacesRun, "step", step)
    assert faces.main(words(inputs, tmp_path / "killed", "--save-seconds", 0)) == 0
    for name in ("generator", "encoder"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        first, second = load_file(tmp_path / "whole" / file), load_file(tmp_path / "killed" / file)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_batches_drawn_ahead_are_the_same(inputs, tmp_path, monkeypatch):
    assert faces.main(words(inputs, tmp_path / "one", steps=6)) == 0
    monkeypatch.setattr(faces, "Ahead", lambda draw, steps: Ahead(draw, 2))
    assert faces.main(words(inputs, tmp_path / "two", steps=6)) == 0
    file = "encoder/diffusion_pytorch_model.safetensors"
    one, two = (load_file(tmp_path / run / file) for run in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_batch_that_cannot_be_drawn_says_why():
    def draw(number, way):
        if number == 2:
            raise OSError("the disk is gone")
        return number, way

    ahead = Ahead(draw, 3)
    assert ahead.take(0, True) == (0, True) and ahead.take(1, False) == (1, False)
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(2, False)


def test_only_the_encoder_learns_and_its_norms_stay(inputs, tmp_path):
    assert faces.main(words(inputs, tmp_path / "start", steps=1)) == 0
    more = ("--start", tmp_path / "start", "--generator-rate", 0, "--freeze-norms", "--encoder-rate", 1e-2)
    assert faces.main(words(inputs, tmp_path / "next", *more)) == 0
    file = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(tmp_path / run / "generator" / file) for run in ("start", "next"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = (load_file(tmp_path / run / "encoder" / file) for run in ("start", "next"))
    assert all(torch.allclose(before[name], after[name]) for name in before if "running_" in name)
    assert not torch.equal(before["linear.weight"], after["linear.weight"])


def test_photos_alone_teach_what_is_light_to_learn(inputs, tmp_path):
    assert faces.main(words(inputs, tmp_path / "start", steps=1)) == 0
    alone = words(inputs, tmp_path / "next", "--start", tmp_path / "start", "--aside-share", 0, "--light")
    place = alone.index("--heads")
    del alone[place : place + 2]
    assert faces.main(alone) == 0
    file = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(tmp_path / run / "generator" / file) for run in ("start", "next"))
    learned = {name for name in before if not torch.equal(before[name], after[name])}
    synthesis = "backbone.synthesis.b16"
    assert {"decoder.net.0.weight", "average_planes", f"{synthesis}.torgb.weight"} <= learned
    assert f"{synthesis}.conv1.affine.weight" in learned and f"{synthesis}.conv1.weight" not in learned
    assert not any("mapping" in name for name in learned)  # photos have no z, and w's mean stays
    before, after = (load_file(tmp_path / run / "encoder" / file) for run in ("start", "next"))
    learned = {name for name in before if not torch.equal(before[name], after[name]) and "running" not in name}
    assert "linear.weight" in learned and not any(name.startswith(("body", "input")) and name.endswith("weight")
                                                  for name in learned)  # fmt: skip


def test_a_run_goes_on_from_a_generator_with_a_back(inputs, tmp_path):
    assert faces.main(words(inputs, tmp_path / "start", steps=1)) == 0
    generator = TriPlaneGenerator.from_pretrained(tmp_path / "start" / "generator")
    backed = TriPlaneGenerator.from_config(dict(generator.config) | {"has_back": True})
    backed.load_state_dict(generator.state_dict(), strict=False)
    backed.save_pretrained(tmp_path / "backed" / "generator")
    (tmp_path / "start" / "encoder").rename(tmp_path / "backed" / "encoder")
    assert faces.main(words(inputs, tmp_path / "out", "--start", tmp_path / "backed", steps=1)) == 0
    assert not TriPlaneGenerator.from_pretrained(tmp_path / "out" / "generator").config.has_back


def test_a_number_that_is_none_ends_the_run_by_name(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(faces.face_losses, "relief", lambda *_: torch.tensor(float("nan")))
    assert faces.main(words(inputs, tmp_path / "out")) == 1
    assert "Step 2: the loss term `relief` is nan." in capsys.readouterr().err
    assert not (tmp_path / "out" / "generator").exists()


def test_mistakes_are_one_sentence(inputs, tmp_path, capsys):
    torch.manual_seed(0)
    TriPlaneGenerator(z_dim=7, **TINY_GENERATOR).save_pretrained(tmp_path / "other" / "generator")
    PortraitEncoder(num_ws=8, w_dim=16, **TINY_ENCODER).save_pretrained(tmp_path / "other" / "encoder")
    assert faces.main(words(inputs, tmp_path / "out", "--start", tmp_path / "other")) == 1
    assert "has 5 features a head, the generator's z has 7" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        faces.main(words(inputs, tmp_path / "out", "--freeze-norms"))
    assert "give it" in capsys.readouterr().err
    alone = words(inputs, tmp_path / "out")
    place = alone.index("--heads")
    del alone[place : place + 2]
    with pytest.raises(SystemExit):
        faces.main(alone)
    assert "give --heads or --start" in capsys.readouterr().err


def test_mirrored_photos_are_seen_from_the_other_side(inputs):
    generator = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR)
    photos = RealPhotos(inputs / "photos")
    batches = FaceBatches(photos, HeadsDataset(inputs / "heads"), generator, 64, "cpu")
    photos.pose[:] = (0.3, 0.1)
    photos.landmarks[..., 0] = 10
    batch = batches.draw_photos(16, np.random.default_rng(0), torch.Generator().manual_seed(0))
    flipped = batch.mirrored < 0
    assert 0 < flipped.sum() < 16 and torch.allclose(batch.pose[:, 0], 0.3 * batch.mirrored)
    assert torch.allclose(batch.landmarks[flipped, :, 0], torch.tensor(64 - 2.5))
    # The person is the left half, or the right one in a mirror.
    assert (batch.person[flipped][..., 40:].mean() > 0.8) and batch.person[~flipped][..., 40:].mean() == 0


def test_a_camera_is_learned(inputs):
    config = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR).config
    cameras = LearnedCameras(3)
    nothing = torch.zeros(1, 1, 4, 4)
    batch = PhotoBatch(np.array([2]), torch.tensor([-1.0]), *[nothing] * 4, nothing, torch.zeros(1, 2))
    for _ in range(40):
        camera, offsets = cameras.of(batch, config)
        (camera[:, 3] - 0.2).square().sum().backward()  # it ought to stand a little to the right
        cameras.learn(batch.rows, offsets.grad, 1.0)
    assert abs(cameras.of(batch, config)[0][0, 3] - 0.2) < 0.03
    assert cameras.offsets[2, 0] < 0 and cameras.offsets[:2].abs().sum() == 0


def test_recolouring_keeps_what_it_is_told_to():
    change = Recolouring.draw(4, torch.Generator().manual_seed(0), share=1.0).keep(2)
    colours = torch.rand(4, 3, 5)
    changed = change(colours)
    assert torch.allclose(changed[:2], colours[:2], atol=1e-3) and (changed[2:] - colours[2:]).abs().max() > 0.02
    assert torch.allclose(change(colours[..., None])[..., 0], changed)


def test_photos_kept_on_the_device_are_the_same(inputs, monkeypatch):
    photos, heads = RealPhotos(inputs / "photos"), HeadsDataset(inputs / "heads")
    generator = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR)

    def drawn(batches):
        return batches.draw_photos(6, np.random.default_rng(0), torch.Generator().manual_seed(0))

    decoded = FaceBatches(photos, heads, generator, 64, "cpu")
    monkeypatch.setattr(face_batches, "room_on", lambda device: 10 * len(photos) * 256 * 256 * 4)
    monkeypatch.setattr(face_batches, "DECODED_AT_A_TIME", 5)
    kept = FaceBatches(photos, heads, generator, 64, "cpu")
    assert decoded.kept is None and kept.kept.shape == (len(photos), 256, 256, 4)
    for name, tensor in vars(drawn(decoded)).items():
        assert torch.equal(tensor, getattr(drawn(kept), name))
    monkeypatch.setattr(face_batches, "room_on", lambda device: len(photos) * 256 * 256 * 4)
    assert FaceBatches(photos, heads, generator, 64, "cpu").kept is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_makes_its_batches_itself(inputs):
    photos, heads = RealPhotos(inputs / "photos"), HeadsDataset(inputs / "heads")
    generator = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR)
    here, there = (FaceBatches(photos, heads, generator, 64, device) for device in ("cpu", "cuda"))
    assert there.kept.device.type == "cuda"

    def drawn(batches, seed):
        rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        return batches.draw_photos(6, rng, draws), batches.draw_heads(3, 8, 8, 1, rng, draws)

    (ours, our_heads), (theirs, their_heads), (again, _) = drawn(here, 0), drawn(there, 0), drawn(there, 0)
    assert torch.equal(theirs.inputs, again.inputs)
    # All but the noise is drawn on the host.
    assert (theirs.inputs.cpu() - ours.inputs).abs().mean() < 0.05
    for name in ("rows", "mirrored", "targets", "compared", "landmarks", "pose"):
        torch.testing.assert_close(getattr(theirs, name).cpu(), getattr(ours, name), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(their_heads.field.ray_colors.cpu(), our_heads.field.ray_colors, atol=1e-3, rtol=1e-3)
