"""train/inversion: losses.py, schedules.py, rounds.py: losses, weights, cameras against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from conftest import ball_generator
from torch import nn

from preim3d.camera import angles_from_camera, camera_from_angles
from train.inversion import losses, rounds, schedules
from train.inversion.rounds import Batch, GeneratedImages, Objective, sample_latents, surround_cameras


class FirstPixel(nn.Module):
    """An 'identity network' that looks at the first pixel's colour."""

    def forward(self, images):
        return images[:, :, 0, 0]


def picture(red, green, blue):
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(1, 3, 4, 4)


def test_pixel_loss_is_the_mean_square():
    assert losses.pixel_loss(picture(0.5, 0.0, 0.0), picture(0.0, 0.0, 0.0)).item() == pytest.approx(0.25 / 3)


def test_latent_norm_loss_sums_the_squares_of_one_w():  # Eq. 4
    w, truth = torch.full((2, 3, 4), 2.0), torch.zeros(2, 3, 4)
    assert losses.latent_norm_loss(w, truth).item() == 3 * 4 * 4.0


def test_identity_loss_is_one_minus_the_cosine():  # Eq. 5
    seen, truth = picture(1.0, 1.0, 0.0), picture(3.0, 0.0, 0.0)
    assert losses.identity_loss(FirstPixel(), seen, truth).item() == pytest.approx(1 - math.sqrt(0.5))
    assert losses.identity_loss(FirstPixel(), truth, truth).item() == pytest.approx(0)


def test_surround_identity_loss_averages_over_the_views():  # Eq. 6
    views = torch.stack([picture(1.0, 0.0, 0.0), picture(0.0, 1.0, 0.0), picture(-1.0, 0.0, 0.0)], 1)
    assert losses.surround_identity_loss(FirstPixel(), views, picture(2.0, 0.0, 0.0)).item() == pytest.approx(1.0)
    assert losses.surround_identity_loss(FirstPixel(), views[:, :2], picture(2.0, 0.0, 0.0)).item() == 0.5


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_papers_weights(scale):  # A.1
    def at(step):
        return schedules.paper_weights(int(step * scale), scale)

    assert at(0) == {"l2": 1.0, "lpips": 0.8, "id": 0.4, "w": 0.0, "sur": 0.0}
    assert at(19_900)["w"] == 0 and at(20_000)["w"] == pytest.approx(1e-4) and at(24_900)["w"] == pytest.approx(1e-4)
    assert at(25_000)["w"] == pytest.approx(2e-4)
    assert at(99_900)["sur"] == 0 and at(100_000)["sur"] == pytest.approx(1e-4)
    assert at(110_000)["sur"] == pytest.approx(3e-4)


def test_the_released_codes_weights():
    entries = 14 * 512  # it takes the mean over them
    assert schedules.released_weights(4999, entries)["w"] == 0
    assert schedules.released_weights(5000, entries)["w"] == pytest.approx(0.1 / entries)
    assert schedules.released_weights(10**6, entries)["w"] == pytest.approx(10 / entries)
    assert schedules.released_weights(99_999, entries)["sur"] == 0
    assert schedules.released_weights(100_000, entries)["sur"] == 0.1


def test_surrounding_views_lie_around_the_input():
    generator, rng = ball_generator(), np.random.default_rng(0)
    cameras = camera_from_angles(torch.tensor([0.5, -0.4]), torch.tensor([0.2, 0.0]))
    yaw, pitch = angles_from_camera(surround_cameras(cameras.repeat(200, 1), rng, generator))
    assert yaw.shape == (4, 400)
    off_yaw = (yaw.view(4, 200, 2) - torch.tensor([0.5, -0.4])).rad2deg()
    off_pitch = (pitch.view(4, 200, 2) - torch.tensor([0.2, 0.0])).rad2deg()
    assert 19 < off_yaw.abs().max() < 20.01 and 4.8 < off_pitch.abs().max() < 5.01
    assert abs(off_yaw.mean()) < 1 and off_yaw.std() == pytest.approx(40 / math.sqrt(12), rel=0.1)

    yaw, pitch = angles_from_camera(surround_cameras(cameras.repeat(200, 1), rng, generator, "frontal"))
    assert yaw.shape == (3, 400) and abs(yaw.rad2deg().mean()) < 2
    # Uniform and Gaussian together.
    assert yaw.rad2deg().std() == pytest.approx(math.hypot(40 / math.sqrt(12), math.degrees(0.25)), rel=0.1)


def test_the_true_w_has_no_error_and_another_has():
    torch.manual_seed(0)
    generator, rng = ball_generator(), np.random.default_rng(0)
    for name, parameter in generator.superresolution.named_parameters():
        parameter.data *= 0.1 if "torgb" in name else 1.0  # colours within [-1, 1], as pictures have them
    generated = GeneratedImages(generator, lambda count, rng: sample_latents(generator, count, rng), 32)
    batch = generated.draw(2, rng)
    assert batch.images.shape == (2, 3, 32, 32) and batch.w.shape[0] == 2
    yaw, pitch = angles_from_camera(batch.targets[0][1])
    assert yaw.abs().max() <= math.radians(30) and pitch.abs().max() <= math.radians(20.01)

    objective = Objective(generator, losses.pixel_loss, FirstPixel())
    weights = schedules.paper_weights(200_000)
    with torch.no_grad():
        right = objective.terms(batch.w, batch, weights, rng)
        wrong = objective.terms(batch.w + 1.0, batch, weights, rng)
    assert right.keys() == weights.keys()
    assert right["w"] == 0 and right["l2"] < 2e-5 and right["id"].abs() < 1e-3  # 8 bits per pixel
    assert wrong["w"].item() == pytest.approx(batch.w[0].numel()) and wrong["l2"] > right["l2"]


def test_terms_without_weight_or_truth_are_left_out():
    generator, rng = ball_generator(), np.random.default_rng(0)
    images = torch.zeros(1, 3, 32, 32)
    batch = Batch(images, None, [(images, generator.frontal_camera())])
    w = torch.zeros(1, generator.num_ws, 24)
    objective = Objective(generator, losses.pixel_loss, FirstPixel())
    assert objective.terms(w, batch, {"w": 1.0, "l2": 1.0, "sur": 0.0}, rng).keys() == {"l2"}
    assert objective.terms(w, batch._replace(targets=[]), {"w": 1.0, "l2": 1.0}, rng) == {}


def test_resize_averages():
    assert rounds.resize(torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]), 1).item() == pytest.approx(0.5)
