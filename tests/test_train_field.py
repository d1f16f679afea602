"""Rays, points and patches of rendered heads: they agree with the truth, and a generator learns from them."""

import numpy as np
import pytest
import torch
from balls import BALL, TINY_GENERATOR, make_balls

from preim3d.camera import FOCAL, camera_from_angles
from preim3d.generator import TriPlaneGenerator
from train.heads.dataset import HeadsDataset
from train.model.field_batches import Pinhole, draw_batch
from train.model.field_losses import LOSS_WEIGHTS, losses


@pytest.fixture
def balls(tmp_path):
    return make_balls(tmp_path)


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


def test_losses_fall_and_every_term_is_finite(balls):
    data, rng = HeadsDataset(balls), np.random.default_rng(0)
    torch.manual_seed(0)
    network = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    history = []
    for _ in range(60):
        batch = draw_batch([(data, head) for head in rng.integers(0, 6, 4)], rng, 64, 64, 2, 12, 16)
        terms = losses(network, batch, network.mapping(batch.z))
        assert set(terms) == set(LOSS_WEIGHTS) and all(torch.isfinite(value) for value in terms.values())
        loss = sum(LOSS_WEIGHTS[name] * value for name, value in terms.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-5:]) < 0.8 * np.mean(history[:5])
