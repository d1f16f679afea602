"""The generator's training: rays and points agree with renders, growing keeps the picture, a run resumes."""

import sys

import numpy as np
import pytest
import torch

from preim3d.camera import FOCAL, camera_from_angles
from preim3d.generator import TriPlaneGenerator
from train import generator as stage
from train.field_batches import Pinhole, draw_batch
from train.field_losses import LOSS_WEIGHTS, losses
from train.heads.dataset import FRONT_VIEWS, ROUND_VIEWS, HeadsDataset
from train.heads.sampler import Z_DIM
from train.muon import Muon, orthogonalised
from train.picture_metric import visibility


SIZE, BALL = 32, 0.2  # pixels, and the radius of the ball that stands in for every head
TINY = {
    "w_dim": 16, "mapping_layers": 2, "c_dim": 0, "plane_channels": 8, "channel_base": 256, "channel_max": 16,
    "mean_planes": True,
    "decoder_hidden": 16, "image_resolution": 32, "ray_resolution": 16, "superresolution_input": 16,
    "superresolution_blocks": [{"in": 8, "out": 8, "up": True}], "superresolution_clamp": None, "box_warp": 0.8,
    "ray_start": 2.28, "ray_end": 3.08, "coarse_samples": 6, "fine_samples": 6, "plane_axes": "fixed",
    "background": 0.82,
}  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(stage, "SIZES", TINY)
    monkeypatch.setattr(stage, "FIRST_PLANE_RESOLUTION", 8)
    monkeypatch.setattr(stage, "GROW_AT", {16: 0.5})


@pytest.fixture
def balls(tmp_path):
    """A data set of red balls of known depth, in the layout that train.heads writes."""
    heads, views = 6, FRONT_VIEWS + ROUND_VIEWS
    rng = np.random.default_rng(0)
    images = np.zeros((heads, views, SIZE, SIZE, 4), np.uint8)
    depth = np.zeros((heads, views, SIZE, SIZE), np.float16)
    cameras = np.zeros((heads, views, 25), np.float32)
    for head in range(heads):
        for view in range(views):
            cameras[head, view] = camera_from_angles(*rng.uniform(-0.5, 0.5, 2))
            camera = Pinhole(cameras[head, view])
            v, u = np.mgrid[0:SIZE, 0:SIZE].reshape(2, -1)
            rays = camera.directions((u + 0.5) / SIZE, (v + 0.5) / SIZE)
            b = rays @ camera.origin
            hit = b**2 - camera.origin @ camera.origin + BALL**2
            distance = np.where(hit > 0, -b - np.sqrt(np.maximum(hit, 0)), 0)
            depth[head, view] = (distance * (rays @ camera.forward)).reshape(SIZE, SIZE)
            images[head, view, ..., 0] = 200
            images[head, view, ..., 3] = 255 * (hit > 0).reshape(SIZE, SIZE)
    for name, array in {"images": images, "depth": depth, "cameras": cameras, "done": np.ones(heads, np.uint8),
                        "photos": images, "photo_cameras": cameras,
                        "photo_points": np.zeros((heads, views, 5, 2), np.float32)}.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "heads.npz", z=np.zeros((heads, Z_DIM), np.float32),
             features=rng.standard_normal((heads, 5)).astype(np.float32),
             attributes=np.zeros((heads, 2), np.float32), attribute_names=np.array(["Male", "Young"]),
             seed=0)  # fmt: skip
    return tmp_path


def test_rays_and_points_lie_on_the_surface(balls):
    data = HeadsDataset(balls)
    batch = draw_batch(
        [(data, head) for head in range(4)],
        np.random.default_rng(1),
        rays=64,
        points=64,
        patches=2,
        patch_rays=8,
        ray_resolution=16,
    )
    assert torch.allclose(
        batch.points.norm(dim=-1), torch.tensor(BALL), atol=2e-3
    )  # depth is stored in half precision
    assert batch.empty_points.shape == (4, 16, 3) and (batch.empty_points.norm(dim=-1) > BALL).all()
    hit = batch.ray_depths > 0
    places = batch.ray_origins + batch.ray_depths[..., None] * batch.ray_directions
    assert 0.2 < hit.float().mean() < 1 and torch.allclose(places[hit].norm(dim=-1), torch.tensor(BALL), atol=2e-3)
    red, grey = torch.tensor([200 / 255, 0, 0]), torch.full((3,), 0.82)
    assert torch.allclose(batch.ray_colors[hit], red.expand(int(hit.sum()), 3), atol=1e-3)
    assert torch.allclose(batch.ray_colors[~hit], grey.expand(int((~hit).sum()), 3), atol=1e-3)
    assert batch.patch_images.shape == (2, 3, 16, 16) and batch.patch_origins.shape == (2, 64, 3)


def test_pinhole_is_the_renderer_s_camera():
    from preim3d.camera import camera_rays

    camera = camera_from_angles(0.3, -0.4, focal=FOCAL / 1.25)
    origins, directions = camera_rays(camera[None], 8)
    place = (np.arange(8) + 0.5) / 8
    ours = Pinhole(camera.numpy()).directions(np.tile(place, 8), np.repeat(place, 8))
    assert np.allclose(ours, directions[0], atol=1e-5) and np.allclose(
        Pinhole(camera.numpy()).origin, origins[0, 0], atol=1e-6
    )


def test_growing_keeps_the_planes():
    torch.manual_seed(0)
    network, average, _ = stage.start(torch.ones(5), plane_resolution=8, device="cpu")
    torch.nn.init.normal_(network.average_planes)
    z = torch.randn(2, 5)
    before = network.planes(network.mapping(z))
    large, large_average, _ = stage.grow(network, average, 16, "cpu")
    after = large.planes(large.mapping(z))
    assert large.config.plane_resolution == 16 and after.shape[-1] == 16
    # Away from the border, where the two ways of upsampling differ, the new planes are the old ones, finer.
    finer = torch.nn.functional.interpolate(before.flatten(1, 2), scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(after.flatten(1, 2)[..., 2:-2, 2:-2], finer[..., 2:-2, 2:-2], atol=1e-4)


def test_losses_fall_and_every_term_is_finite(balls):
    data, rng = HeadsDataset(balls), np.random.default_rng(0)
    torch.manual_seed(0)
    network, _, optimizers = stage.start(torch.ones(5), 16, "cpu")
    history = []
    for _ in range(60):
        terms = losses(network, draw_batch([(data, head) for head in rng.integers(0, 6, 4)], rng, 64, 64, 2, 12, 16))
        assert set(terms) == set(LOSS_WEIGHTS) and all(torch.isfinite(value) for value in terms.values())
        loss = sum(LOSS_WEIGHTS[name] * value for name, value in terms.items())
        network.zero_grad()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])


def test_a_small_feature_counts_by_where_it_shows():
    rng = torch.Generator().manual_seed(0)
    codes = torch.randn(400, 3, generator=rng)
    pictures = 0.1 * torch.randn(400, 3, 16, 16, generator=rng)
    pictures += 0.1 * codes[:, 0, None, None, None]  # shows everywhere, a little
    pictures[..., :5, :5] += codes[:, 1, None, None, None]  # shows in a corner, strongly
    everywhere, corner, nowhere = visibility(codes, pictures).tolist()
    assert corner > everywhere > 3 * nowhere


def test_muon_moves_every_direction_alike():
    torch.manual_seed(0)
    skewed = torch.randn(12, 6) @ torch.diag(torch.logspace(0, -2, 6))
    for matrix in (skewed, skewed.T):
        values = torch.linalg.svdvals(orthogonalised(matrix).float())
        assert values.min() > 0.4 and values.max() < 1.4, values
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    kernel.grad = torch.randn_like(kernel)
    Muon([kernel], lr=0.1).step()
    # A step has the root mean square of Adam's, and goes downhill.
    assert 0.1 < kernel.detach().square().mean().sqrt() / 0.02 < 1.5 and (kernel * kernel.grad).sum() < 0


def test_muon_reaches_a_minimum_that_is_steep_in_one_direction_only():
    torch.manual_seed(0)
    target, scales = torch.randn(5, 7), torch.logspace(0, -2, 7)
    weight = torch.nn.Parameter(torch.zeros(5, 7))
    optimizer = Muon([weight], lr=0.3)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
        weight.grad = (weight.detach() - target) * scales
        optimizer.step()
    assert (weight - target).abs().max() < 0.05


def run(*arguments) -> int:
    argv, sys.argv = sys.argv, ["train.generator", *map(str, arguments)]
    try:
        return stage.main()
    finally:
        sys.argv = argv


def test_a_run_grows_resumes_and_writes_the_component(balls, tmp_path):
    common = ("--data", balls, "--held-out", balls, "--run", tmp_path / "run", "--batch", 2, "--planes", 16,
              "--rays", 16, "--points", 16, "--patches", 1, "--patch-rays", 12, "--threads", 1,
              "--precision", "float32")  # fmt: skip
    assert run(*common, "--steps", 4) == 0
    assert run(*common, "--steps", 8) == 0  # goes on from step 4
    generator = TriPlaneGenerator.from_pretrained(tmp_path / "run" / "generator")
    for name, weight in generator.superresolution.named_parameters():
        assert not name.endswith("affine.weight") or not weight.any()  # the same for all heads
    assert generator.config.plane_resolution == 16 and float(generator.w_avg.abs().sum()) > 0
    assert (tmp_path / "run" / "held_out.png").is_file()
    # Another run may go on from what this one made, with patches at once.
    again = [tmp_path / "again" if part == tmp_path / "run" else part for part in common]
    assert run(*again, "--steps", 1, "--start", tmp_path / "run" / "generator") == 0
    assert (tmp_path / "again" / "generator" / "config.json").is_file()


def test_a_kept_mapping_stays_while_the_rest_learns_and_grows(balls, tmp_path):
    def run_to(steps, *more):
        small = ("--batch", 2, "--rays", 16, "--points", 16, "--patches", 1, "--patch-rays", 12, "--threads", 1)
        assert run("--data", balls, "--run", tmp_path / "run", "--steps", steps, *small, *more) == 0
        made = TriPlaneGenerator.from_pretrained(tmp_path / "run" / "generator")
        return made.mapping(torch.ones(1, made.config.z_dim)), made.decoder.net[0].weight, made.config.plane_resolution

    w, decoder, planes = run_to(2, "--planes", 8)
    kept_w, learned_decoder, grown_planes = run_to(6, "--planes", 16, "--keep-mapping")
    assert (
        torch.equal(kept_w[:, 0], w[:, 0])
        and not torch.equal(learned_decoder, decoder)
        and (planes, grown_planes) == (8, 16)
    )
    assert not torch.equal(run_to(8, "--planes", 16)[0][:, 0], w[:, 0])


def test_a_run_goes_on_at_another_size_of_pictures(balls, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    smaller = {"image_resolution": 16, "ray_resolution": 8, "superresolution_input": 8}
    old = TriPlaneGenerator(z_dim=5, plane_resolution=16, **TINY | smaller)
    old.save_pretrained(tmp_path / "old")
    words = ("--data", balls, "--patch-data", balls, "--start", tmp_path / "old", "--run", tmp_path / "run",
             "--batch", 2, "--planes", 16, "--rays", 16, "--points", 16, "--patches", 1, "--patch-rays", 12,
             "--threads", 1, "--precision", "float32", "--steps", 1)  # fmt: skip
    assert run(*words) == 0
    made = TriPlaneGenerator.from_pretrained(tmp_path / "run" / "generator")
    assert made.config.image_resolution == 32 and made.config.ray_resolution == 16
    assert "patches" in capsys.readouterr().err  # at once, not in the second half of the run

    monkeypatch.setattr(stage, "SIZES", TINY | {"image_resolution": 64})
    assert run(*words) == 1
    assert f"{balls} holds renders of 32 px, but patches are cut from 64 px ones" in capsys.readouterr().err


def test_missing_data_is_one_sentence(tmp_path, capsys):
    assert run("--data", tmp_path, "--run", tmp_path, "--steps", 1) == 1
    assert "make it with `python -m train.heads render" in capsys.readouterr().err
