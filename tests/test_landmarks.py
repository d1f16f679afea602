"""landmarks.py and its training: box -> five points."""

from pathlib import Path

import numpy as np
import pytest
import torch

from preim3d.align import TEMPLATE
from preim3d.landmarks import MIRRORED, LandmarkNetwork, gaussian_heatmaps


torch.manual_seed(0)
FRONTAL = torch.tensor(TEMPLATE[:, :2] * [1, -1], dtype=torch.float32)  # in a box of two template units


@pytest.fixture
def network():
    return LandmarkNetwork(input_size=32, widths=(4, 8, 8, 8)).eval()


def test_shapes_and_ranges(network):
    read = network(torch.rand(3, 1, 32, 32))
    assert read.points.shape == (3, 5, 2) and read.points.abs().max() < 1
    assert read.face_logit.shape == (3,)
    assert read.heatmaps.shape == (3, 5, 8, 8)
    assert torch.allclose(read.heatmaps.exp().sum((2, 3)), torch.ones(3, 5))


def test_brightness_and_contrast_do_not_matter(network):
    faces = torch.rand(2, 1, 32, 32)
    assert torch.allclose(network(faces).points, network(0.2 * faces + 0.7).points, atol=1e-3)


def test_even_grey_is_finite(network):
    points, face_logit, disagreement = network.read(torch.full((1, 1, 32, 32), 0.5))
    assert points.isfinite().all() and face_logit.isfinite().all() and disagreement.isfinite().all()


def test_a_mirrored_face_has_mirrored_points(network):
    faces = torch.rand(2, 1, 32, 32)
    points, face_logit, disagreement = network.read(faces)
    mirrored = network.read(faces.flip(3))
    assert torch.allclose(mirrored[0][:, list(MIRRORED)] * torch.tensor([-1.0, 1.0]), points, atol=1e-5)
    assert torch.allclose(mirrored[1], face_logit, atol=1e-5) and torch.allclose(mirrored[2], disagreement, atol=1e-5)


def test_the_mean_of_the_wanted_heatmap_is_the_point():
    points = torch.rand(4, 5, 2) - 0.5
    maps = gaussian_heatmaps(points, 16)
    centres = (torch.arange(16) + 0.5) / 8 - 1
    x, y = (maps.sum(2) * centres).sum(2), (maps.sum(3) * centres).sum(2)
    assert torch.allclose(torch.stack([x, y], 2), points, atol=0.01)


def test_half_precision_on_disk_is_float32_in_memory(network, tmp_path):
    network.half().save_pretrained(tmp_path)
    loaded = LandmarkNetwork.from_pretrained(str(tmp_path), local_files_only=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.config.input_size == 32


# ---------------------------------------------------------------------------------------------------------------------
# Training.

landmarks = pytest.importorskip("train.landmarks")


@pytest.fixture
def heads(tmp_path) -> Path:
    """A heads dataset of two 'photos' a head: white discs at the five points of a transparent picture."""
    size, rng = 160, np.random.default_rng(0)
    points = np.empty((3, 2, 5, 2), np.float32)
    photos = np.zeros((3, 2, size, size, 4), np.uint8)
    axis = np.arange(size) + 0.5
    for head in range(3):
        for view in range(2):
            points[head, view] = FRONTAL.numpy() * rng.uniform(45, 55) + 80 + rng.normal(0, 3, (5, 2))
            for x, y in points[head, view]:
                photos[head, view, np.hypot(axis - x, axis[:, None] - y) < 4] = 255
    camera = np.zeros((3, 2, 25), np.float32)
    camera[..., 11] = 2.7
    arrays = {"photos": photos, "photo_points": points, "photo_cameras": camera, "done": np.array([1, 0, 1], np.uint8)}
    for name in ("images", "cameras", "depth", *arrays):
        np.save(tmp_path / f"{name}.npy", arrays.get(name, np.zeros(3)))
    np.savez(tmp_path / "heads.npz", z=np.zeros((3, 1)), features=0, attributes=0, attribute_names=[])
    return tmp_path


def test_points_move_with_the_pixels(heads):
    faces = landmarks.Faces(heads)
    assert len(faces) == 4  # the head that is not done is left out
    boxes = landmarks.jitter(4, torch.Generator().manual_seed(1), zoom=0.3, shift=0.3, turn_deg=30)
    rgba, points = faces.batch(np.arange(4), boxes, 128)
    axis = (torch.arange(128) + 0.5) / 64 - 1
    for opacity, five in zip(rgba[:, 3], points):
        for x, y in five:
            near = opacity * ((axis - x).abs() < 0.09) * ((axis - y).abs() < 0.09)[:, None]
            assert near.sum() > 20
            found = torch.stack([(near * axis).sum(), (near * axis[:, None]).sum()]) / near.sum()
            assert (found - torch.stack([x, y])).norm() < 0.02


def test_the_right_box_holds_the_template(heads):
    faces = landmarks.Faces(heads)
    _, points = faces.batch(np.arange(4), torch.eye(3).repeat(4, 1, 1), 64)
    assert (points - FRONTAL).abs().max() < 0.25


def test_photo_like_pictures(heads):
    rgba, _ = landmarks.Faces(heads).batch(np.array([0, 1, 2, 3] * 4), torch.eye(3).repeat(16, 1, 1), 64)
    pictures = landmarks.Pictures()
    first = landmarks.photo_like(rgba, pictures, torch.Generator().manual_seed(5))
    again = landmarks.photo_like(rgba, pictures, torch.Generator().manual_seed(5))
    assert first.shape == (16, 1, 64, 64) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again)
    assert first.std(0).mean() > 0.05  # the same four pictures look different each time


def test_misses_are_far_from_the_face():
    boxes = landmarks.misses(200, torch.Generator().manual_seed(0))
    size = boxes[:, :2, 0].norm(dim=1)
    aside = boxes[:, :2, 2].norm(dim=1)
    upside_down = boxes[:, 0, 0] < 0
    assert ((aside > 1) | (size < 0.5) | (size > 2) | upside_down).all()


def test_a_short_training_writes_a_network_that_loads(heads, tmp_path, capsys):
    landmarks.train(heads, heads, tmp_path / "network", minutes=0.03, seed=0, batch=8)
    network = LandmarkNetwork.from_pretrained(str(tmp_path / "network"), local_files_only=True)
    assert network.config.input_size == 64
    assert "photo-like: mean" in capsys.readouterr().out
