"""landmarks.py and face_mesh.py: box -> five points; box -> 120 points, angles, the person."""

import pytest
import torch

from preim3d.face_mesh import FaceMesh
from preim3d.landmarks import MIRRORED, LandmarkNetwork, gaussian_heatmaps


torch.manual_seed(0)


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


@pytest.fixture
def mesh():
    network = FaceMesh(input_size=32, widths=(4, 8, 8, 8), points=12, hidden=8).eval()
    network.five.copy_(torch.rand(5, 12))
    network.five /= network.five.sum(1, keepdim=True)
    return network


def test_the_meshs_shapes_and_ranges(mesh):
    read = mesh(torch.rand(3, 3, 32, 32))
    assert read.points.shape == (3, 12, 3) and read.points[..., :2].abs().max() < 1
    assert read.angles.shape == (3, 2) and read.person.shape == (3, 1, 16, 16)
    assert torch.allclose(read.heatmaps.exp().sum((2, 3)), torch.ones(3, 12))


def test_the_five_points_are_weighted_means(mesh):
    points = torch.rand(2, 12, 3)
    moved = points * 0.5 + 0.25
    assert torch.allclose(mesh.five_points(moved), mesh.five_points(points) * 0.5 + 0.25, atol=1e-6)


def test_a_mirrored_face_has_the_opposite_yaw(mesh):
    faces = torch.rand(2, 3, 32, 32)
    five, angles, disagreement, reading = mesh.read(faces)
    turned_five, turned_angles, turned_disagreement, turned = mesh.read(faces.flip(3))
    assert torch.allclose(turned_disagreement, disagreement, atol=1e-5)
    sign = torch.tensor([-1.0, 1.0])
    assert torch.allclose(turned_angles * sign, angles, atol=1e-5)
    assert torch.allclose(turned_five[:, list(MIRRORED)] * sign, five, atol=1e-5)
    assert torch.allclose(turned.person.flip(3), reading.person, atol=1e-4)


def test_the_meshs_brightness_does_not_matter_and_even_grey_is_finite(mesh):
    faces = torch.rand(2, 3, 32, 32)
    assert torch.allclose(mesh(faces).points, mesh(0.2 * faces + 0.7).points, atol=1e-3)
    assert all(part.isfinite().all() for part in mesh(torch.full((1, 3, 32, 32), 0.5)))
