"""detail.py and its stage: what the planes are tuned by, in one pass."""

import json
import shutil

import numpy as np
import pytest
import torch
from command_line import run
from packing import pack_faces
from PIL import Image
from safetensors.torch import save_file

from preim3d.camera import camera_from_angles, camera_rays
from preim3d.detail import CHANNELS, SEEN, DetailNetwork, at_texels, far_half_reflected, projected
from preim3d.edits import Plan
from preim3d.efficientnet import EfficientNetLite0
from preim3d.feedback import Photos
from preim3d.generator import RenderOutput
from preim3d.identity import FaceIdentity
from preim3d.page.examples import visit_example
from preim3d.pipeline import Preim3DPipeline, load_component
from preim3d.recipe import Recipe, load_recipe
from preim3d.tuning import TEXELS
from preim3d.weights import WeightsError
from train.model import detail
from train.publishing import bundle
from train.publishing.examples import make_example


def wall_seen(camera, z: float = 0.1, size: int = 64) -> tuple[RenderOutput, Photos]:
    """A wall at one z, opaque, and a photo of it whose colours are the wall's x, y and nothing."""
    origins, directions = camera_rays(camera, size)
    depth = (z - origins[..., 2]) / directions[..., 2]
    points = origins + depth[..., None] * directions
    colours = torch.stack([points[..., 0], points[..., 1], torch.zeros_like(depth)], 1).unflatten(2, (size, size))
    depth = depth.view(1, 1, size, size)
    opaque = torch.ones_like(depth)
    view = RenderOutput(-colours, -colours, -colours, depth, opaque)
    return view, Photos(colours, opaque, camera)


@pytest.mark.parametrize("yaw, pitch", [(0, 0), (0.5, 0), (-0.4, 0.3)])
def test_a_texel_is_looked_up_where_the_camera_sees_the_surface_above_it(yaw, pitch):
    view, photos = wall_seen(camera_from_angles(yaw, pitch)[None])
    planes = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    found = at_texels(planes, photos, view, box=0.8)
    assert found.shape == (1, CHANNELS + 4, TEXELS, TEXELS)
    axis = ((torch.arange(TEXELS) + 0.5) / TEXELS - 0.5) * 0.8
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    middle = (slice(TEXELS // 2 - 20, TEXELS // 2 + 20),) * 2  # what every one of the cameras sees
    photo, picture = found[0, 0:3], found[0, 3:6]
    for seen, true in ((photo[0], x), (photo[1], y), (picture[0], -x), (picture[1], -y)):
        assert (seen - true)[middle].abs().max() < 4e-3, "a texel is 6e-3 wide"
    person, opacity, surely = found[0, 6:9]
    assert (person[middle] > 0.99).all() and (opacity[middle] > 0.99).all() and (surely[middle] > 0.8).all()
    assert (found[0, 2 * SEEN][middle] - 0.1).abs().max() < 5e-3
    assert torch.equal(found[:, SEEN : 2 * SEEN], found[:, :SEEN].flip(-1))


def test_points_are_projected_to_the_rays_that_meet_them():
    camera = camera_from_angles(torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.2]))
    origins, directions = camera_rays(camera, 5)
    points = (origins + 2.5 * directions).transpose(1, 2).unflatten(2, (5, 5))
    centres = (torch.arange(5) + 0.5) / 5 * 2 - 1
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    assert torch.allclose(projected(points, camera), torch.stack([across, down], -1).expand(2, -1, -1, -1), atol=1e-5)


def test_the_far_half_of_a_face_that_looks_far_aside_is_a_reflection():
    offset = torch.randn(1, 2, TEXELS, TEXELS, generator=torch.Generator().manual_seed(0))
    left, right = slice(0, TEXELS // 2 - 5), slice(TEXELS // 2 + 5, TEXELS)
    for yaw, kept, far in ((0.7, right, left), (-0.7, left, right)):  # a camera at +x sees the half at +x
        found = far_half_reflected(offset, camera_from_angles(yaw, 0.1)[None], 0.8)
        assert torch.equal(found[..., kept], offset[..., kept])
        assert torch.allclose(found[..., far], offset.flip(-1)[..., far])
    assert torch.equal(far_half_reflected(offset, camera_from_angles(0.3, 0.1)[None], 0.8), offset)


def test_a_network_that_has_not_learned_adds_nothing():
    torch.manual_seed(0)
    network = DetailNetwork(plane_channels=4, embedding_size=6)
    offset = network(torch.randn(1, CHANNELS + 4, TEXELS, TEXELS), torch.randn(1, 12))
    assert offset.shape == (1, 4, TEXELS, TEXELS) and not offset.any()


@pytest.fixture(scope="module")
def learned(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detail")
    pack_faces(folder / "photos", count=12)
    save_file(EfficientNetLite0().state_dict(), folder / "lite0.safetensors")
    # As many blocks as dlib's, of which some are compared.
    FaceIdentity(4, ((4, False),) * 11 + ((8, True),), 6).save_pretrained(folder / "dlib")
    judges = ("--lite0", folder / "lite0.safetensors", "--identity", folder / "dlib")
    small = ("--rays", 8, "--held", 2, "--batch", 2, "--kept", 3, "--threads", 1, "--save-seconds", 0, "--sheets", 1)
    asked = ("--weights", tiny_weights, "--photos", folder / "photos", *judges, *small, "--steps", 5)
    assert run(detail.main, *asked, "--out", folder / "at-once") == 0
    return folder, asked


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(learned, monkeypatch):
    folder, asked = learned
    out, whole = folder / "in-pieces", detail.Descent.step

    def stopped_before(number):
        def step(descent, done, share):
            if done == number:
                raise OSError("stopped")
            return whole(descent, done, share)

        monkeypatch.setattr(detail.Descent, "step", step)

    for number in (1, 4):
        stopped_before(number)
        assert run(detail.main, *asked, "--out", out) == 1
    stopped_before(None)
    assert run(detail.main, *asked, "--out", out) == 0
    one, two = (load_component(DetailNetwork, place / "detail", torch.float32) for place in (folder / "at-once", out))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_its_report_compares_heads_with_and_without_it(learned):
    report = json.loads((learned[0] / "at-once" / "report.json").read_text())
    assert report["n"] == 2 and report["steps"] == 5
    told = [report[name] for name in ("feedback", "detail")]
    assert all(set(one) == {"identity_own", "identity_frontal", "person_psnr_db", "lite0"} for one in told)
    assert told[0] != told[1]


def test_what_faces_that_look_aside_hide_is_compared_with_their_other_half(learned, tiny_weights):
    """Of two photos one looks aside: the term counts half of it, and moves the planes of that head alone."""
    folder, _ = learned
    args = detail.parser().parse_args([
        *("--weights", str(tiny_weights), "--photos", str(folder / "photos"), "--identity", str(folder / "dlib")),
        *("--lite0", str(folder / "lite0.safetensors"), "--out", "unused", "--rays", "8", "--device", "cpu"),
        *("--steps", "1"),
    ])  # fmt: skip
    networks, photos = detail.Networks(args), detail.RealPhotos(args.photos)
    descent = detail.Descent(DetailNetwork(plane_channels=networks.generator.config.plane_channels, embedding_size=6),
                             networks, detail.Shelf(networks, None, photos, args), args)  # fmt: skip
    made = [descent.shelf.head(number) for number in (0, 1)]
    batch, w, planes = detail.together(made)
    batch.pose = torch.tensor([[0.6, 0.0], [0.0, 0.0]])
    planes = planes.requires_grad_()
    descent.far_half(torch.tensor([True, False]), batch, w, planes).backward()
    assert planes.grad[0].any() and not planes.grad[1].any()


def test_it_is_bundled_with_the_networks_that_it_was_learned_with(learned, tiny_weights, tmp_path, capsys):
    out, of_stage = tmp_path / "bundle", learned[0] / "at-once" / "detail"
    parts = [f"--{name}={tiny_weights / name}" for name in ("generator", "encoder", "directions")]
    assert run(bundle.main, *parts, "--out", out) == 0
    assert run(bundle.main, "--detail", of_stage, "--out", out) == 0
    assert "detail/diffusion_pytorch_model.safetensors" in (out / "README.md").read_text()
    assert run(bundle.main, *parts, "--out", out) == 0
    assert not (out / "detail").exists()
    config = of_stage / "config.json"
    other = shutil.copytree(of_stage, tmp_path / "other") / "config.json"
    other.write_text(json.dumps(json.loads(config.read_text()) | {"fingerprint": "another"}))
    assert run(bundle.main, "--detail", other.parent, "--out", out) == 1
    assert "learned with another encoder or generator" in capsys.readouterr().err


def test_the_pipeline_tunes_its_heads(learned, tiny_weights, tmp_path):
    folder = shutil.copytree(tiny_weights, tmp_path / "weights")
    shutil.copytree(learned[0] / "at-once" / "detail", folder / "detail")
    shutil.copytree(learned[0] / "dlib", folder / "identity", dirs_exist_ok=True)
    plain, pipeline = (Preim3DPipeline.from_pretrained(place) for place in (tiny_weights, folder))
    if pipeline.aligner is None:
        pytest.skip("weights/faces/landmarks is not there, so nobody says where a crop was taken from")
    rng = np.random.default_rng(0)
    crops = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(2)]
    heads = list(pipeline.reconstruct(*crops))
    assert [len(heads), heads[0].w.shape[0]] == [2, 1]
    for crop, head in zip(crops, heads):
        (alone,) = pipeline.reconstruct(crop)
        assert torch.allclose(alone.w, head.w, atol=1e-5) and head.tuning.offset.any()
        (untuned,) = plain.reconstruct(crop)
        assert untuned.tuning is None and torch.allclose(untuned.w, head.w, atol=1e-5)
        again = pipeline.head(head.w, head.tuning)
        assert pipeline.views(again) == pipeline.views(head) != pipeline.views(untuned)

    # All of it in one call, which edits the tuned head; and a recipe gives it back.
    output = pipeline(crop=crops[0], strengths={pipeline.directions.names[0]: 1.0}, mesh=True)
    assert output.views == pipeline.views(heads[0]) and output.edited_views != output.views
    text = Recipe(output.w, Plan(), tuning=output.tuning).dumps(pipeline.directions.config.fingerprint)
    recipe = load_recipe(text, pipeline.directions)
    assert pipeline.views(pipeline.head(recipe.w, recipe.tuning)) == output.views

    # An example of the page, likewise.
    make_example(pipeline, crops[0], tmp_path / "example")
    visitor = visit_example(tmp_path / "example")
    assert np.array_equal(visitor.tuning.offset, output.tuning.offset) and np.allclose(visitor.w, output.w)

    # Saved with all its parts; refused beside other networks.
    pipeline.save_pretrained(tmp_path / "again")
    (again,) = Preim3DPipeline.from_pretrained(tmp_path / "again").reconstruct(crops[0])
    assert pipeline.views(again) == output.views
    config = folder / "detail" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"fingerprint": "another"}))
    with pytest.raises(WeightsError, match="detail was learned with another encoder"):
        Preim3DPipeline.from_pretrained(folder)


def test_a_head_that_fails_leaves_the_others(pipeline, monkeypatch):
    whole, asked = Preim3DPipeline._detailed, []

    def failing(self, w, photo):
        asked.append(w)
        if len(asked) == 1:
            raise RuntimeError("broken")
        return whole(self, w, photo)

    monkeypatch.setattr(Preim3DPipeline, "_detailed", failing)
    heads = pipeline.reconstruct(*(Image.new("RGB", (64, 64), colour) for colour in ("red", "green")))
    with pytest.raises(RuntimeError, match="broken"):
        next(heads)
    assert next(heads).w.shape[0] == 1
