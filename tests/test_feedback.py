"""feedback.py and its stage: steps of w that bring what a picture lacks."""

import json
import shutil

import numpy as np
import pytest
import torch
from command_line import run
from conftest import tiny_identity
from packing import pack_faces
from PIL import Image
from safetensors.torch import save_file

from preim3d.camera import grid_cameras
from preim3d.efficientnet import EfficientNetLite0
from preim3d.feedback import Feedback, Photos, bring_nearer, compared_cells
from preim3d.identity import FaceIdentity
from preim3d.pipeline import Preim3DPipeline, load_component
from preim3d.weights import WeightsError
from train.model import feedback, feedback_pairs
from train.publishing import bundle


def test_colours_are_compared_where_the_person_is():
    person = torch.zeros(1, 1, 64, 64)
    person[..., 30:] = 1
    assert compared_cells(person, 16)[0, 0, 5].tolist() == [0] * 7 + [0] + [1] * 8


def test_a_regression_of_low_rank_finds_what_moves_whom():
    """Of 200 moves along 4 directions, whose effect on 30 numbers is linear, beside noise."""
    draw = torch.Generator().manual_seed(0)
    directions, effect = torch.randn(4, 50, generator=draw), torch.randn(50, 30, generator=draw)
    moves = torch.randn(200, 4, generator=draw) @ directions
    changes = moves @ effect
    read, write = feedback_pairs.regress(moves, changes + 0.5 * torch.randn(200, 30, generator=draw), 0.1, 4)
    assert read.shape == (4, 30) and write.shape == (50, 4)
    new = torch.randn(20, 4, generator=draw) @ directions
    found = new @ effect @ read.T @ write.T
    assert (found - new).norm() < 0.3 * new.norm()


def test_every_step_asks_for_what_is_still_lacking(pipeline):
    """Whose pictures are as they should be stays; a second step sees the picture after the first."""
    identity, generator = tiny_identity(), pipeline.generator
    w = torch.randn(1, generator.num_ws, 24, generator=torch.Generator().manual_seed(0))
    camera = grid_cameras(generator.config.pivot)[4:5]
    rays = generator.config.ray_resolution
    torch.manual_seed(0)
    sizes = dict(num_ws=generator.num_ws, w_dim=24, rank=3, embedding_size=6, cells=4, rays=rays)
    step, twice = (Feedback(**sizes, steps=steps).requires_grad_(False) for steps in (1, 2))
    person = torch.ones(1, 1, 8, 8)
    own = generator.render(generator.planes(w), camera, w).image
    networks = generator, identity
    step.read.weight[:, 6:] = 0  # coarse colours are of the picture before super-resolution
    step.read.bias.zero_(), step.write.bias.zero_()
    same = bring_nearer(w, Photos(own, person, camera), *networks, step)
    assert torch.allclose(same, w, atol=1e-4)
    crop = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    photo = Photos(crop, person, camera)
    once = bring_nearer(w, photo, *networks, step)
    assert (once - w).norm() > 1e-3
    twice.load_state_dict(step.state_dict())
    again = bring_nearer(once, photo, *networks, step)
    assert torch.allclose(bring_nearer(w, photo, *networks, twice), again, atol=1e-5)


@pytest.fixture(scope="module")
def learned(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("feedback")
    pack_faces(folder / "photos", count=12)
    save_file(EfficientNetLite0().state_dict(), folder / "lite0.safetensors")
    # As many blocks as dlib's, of which some are compared.
    FaceIdentity(4, ((4, False),) * 11 + ((8, True),), 6).save_pretrained(folder / "dlib")
    judges = ("--lite0", folder / "lite0.safetensors", "--identity", folder / "dlib")
    small = ("--rank", 4, "--cells", 4, "--rays", 8, "--held", 2, "--batch", 2, "--threads", 1, "--save-seconds", 0)
    asked = ("--weights", tiny_weights, "--photos", folder / "photos", *judges, *small)
    assert run(feedback.main, *asked, "--out", folder / "at-once", "--pairs", 12, "--steps", 4) == 0
    return folder, asked


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(learned, monkeypatch):
    folder, asked = learned
    out, whole = folder / "in-pieces", feedback.Descent.step

    def stopped_before(number):
        def step(descent, done, share):
            if done == number:
                raise OSError("stopped")
            return whole(descent, done, share)

        monkeypatch.setattr(feedback.Descent, "step", step)

    for pairs, number in ((6, 0), (12, 0), (12, 2)):
        stopped_before(number)
        assert run(feedback.main, *asked, "--out", out, "--pairs", pairs, "--steps", 4) == 1
    stopped_before(None)
    assert run(feedback.main, *asked, "--out", out, "--pairs", 12, "--steps", 4) == 0

    one, two = (np.load(place / "pairs.npz") for place in (folder / "at-once", out))
    assert len(one["moves"]) == 12
    for name in ("moves", "embeddings", "colours"):
        assert np.array_equal(one[name], two[name]), name
    one, two = (load_component(Feedback, place / "feedback", torch.float32) for place in (folder / "at-once", out))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_a_report_tells_what_each_part_brings(learned):
    report = json.loads((learned[0] / "at-once" / "report.json").read_text())
    assert report["pairs_drawn"] == 12 and report["n"] == 2 and report["steps"] == 4
    told = [report[name] for name in ("encoder", "pairs", "photos")]
    assert all(set(one) == {"identity_own", "identity_frontal", "person_psnr_db", "lite0"} for one in told)
    assert len({one["person_psnr_db"] for one in told}) > 1
    # Photos, the encoder's pictures, and those after either step.
    (sheet,) = (learned[0] / "at-once" / "sheets").iterdir()
    width, height = Image.open(sheet).size
    assert width / height == 2 / 4


def test_it_is_bundled_with_the_networks_that_it_was_learned_with(learned, tiny_weights, tmp_path, capsys):
    out, of_stage = tmp_path / "bundle", learned[0] / "at-once" / "feedback"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    assert run(bundle.main, *parts, "--out", out) == 0
    assert run(bundle.main, "--feedback", of_stage, "--out", out) == 0
    listed = (out / "README.md").read_text()
    assert "feedback/diffusion_pytorch_model.safetensors" in listed
    # Directions may change without it, other networks may not.
    assert run(bundle.main, "--directions", tiny_weights / "directions", "--out", out) == 0
    assert (out / "feedback").is_dir()
    assert run(bundle.main, *parts, "--out", out) == 0
    assert not (out / "feedback").exists()
    config = of_stage / "config.json"
    other = shutil.copytree(of_stage, tmp_path / "other") / "config.json"
    other.write_text(json.dumps(json.loads(config.read_text()) | {"fingerprint": "another"}))
    assert run(bundle.main, "--feedback", other.parent, "--out", out) == 1
    assert "learned with another encoder or generator" in capsys.readouterr().err


def test_the_pipeline_takes_its_steps(learned, tiny_weights, tmp_path):
    folder = shutil.copytree(tiny_weights, tmp_path / "weights")
    shutil.copytree(learned[0] / "at-once" / "feedback", folder / "feedback")
    plain, pipeline = (Preim3DPipeline.from_pretrained(place) for place in (tiny_weights, folder))
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    if pipeline.aligner is None:
        pytest.skip("weights/faces/landmarks is not there, so nobody says where a crop was taken from")
    w = pipeline.encode(crop)
    assert (w - plain.encode(crop)).abs().max() > 1e-4 and torch.equal(w, pipeline.encode(crop))

    # Saved with all its parts; refused beside other networks.
    pipeline.save_pretrained(tmp_path / "again")
    assert torch.equal(Preim3DPipeline.from_pretrained(tmp_path / "again").encode(crop), w)
    config = folder / "feedback" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fingerprint": "another"}))
    with pytest.raises(WeightsError, match="feedback was learned with another encoder"):
        Preim3DPipeline.from_pretrained(folder)
