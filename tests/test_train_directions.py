"""train/directions.py, train/picture_metric.py and train/metrics.py against problems whose answer is known."""

import numpy as np
import torch

from train import metrics
from train.directions import Manifold, allied, calibrate, fit_boundary, purify
from train.picture_metric import code_loss, expression_weights, picture_metric


def test_a_boundary_finds_the_axis_that_was_planted():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((600, 2, 5)).astype(np.float32)
    axis = rng.standard_normal((2, 5))
    axis /= np.linalg.norm(axis)
    boundary = fit_boundary(Manifold(w), (w * axis).sum((1, 2)), seed=0)
    assert (boundary.normal * axis).sum() > 0.95
    assert abs(np.linalg.norm(boundary.normal) - 1) < 1e-6
    assert boundary.accuracy > 0.95 and abs(boundary.sigma - 1) < 0.15


class LinearTrial:
    """Stands where EditTrial does: logits that depend on w by a known matrix."""

    def __init__(self, slopes):
        self.slopes = slopes  # [A,D]

    def response(self, offset):
        return self.slopes @ offset.flatten()


def test_calibration_reaches_one_standard_deviation():
    slopes = torch.tensor([[0.2, 0.0], [0.1, 3.0]])
    forward = torch.tensor([[1.0, 0.0]])
    step, response = calibrate(LinearTrial(slopes), forward, sigma_w=1.0, start=1.0, attribute=0)
    assert torch.allclose(step, 5 * forward) and abs(response[0] - 1) < 1e-4
    step, response = calibrate(LinearTrial(slopes), -forward, sigma_w=1.0, start=2.0, attribute=0, sign=-1)
    assert torch.allclose(step, -5 * forward) and abs(response[0] + 1) < 1e-4


def test_purify_takes_out_what_is_dragged_along():
    names = ["Young", "Eyeglasses", "Smiling"]
    slopes = torch.eye(3)
    vectors = {"Young": torch.tensor([[1.0, 0.5, 0.0]]), "Eyeglasses": torch.tensor([[0.0, 1.0, 0.0]])}
    responses = {name: slopes @ vector.flatten() for name, vector in vectors.items()}
    purer = purify(vectors, responses, names, "Young")
    assert torch.allclose(purer, torch.tensor([[1.0, 0.0, 0.0]]))
    assert allied("Full_Beard", "Goatee") and not allied("Young", "Eyeglasses")


def test_picture_metric_weighs_what_shows():
    codes = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    pictures = (codes[:, 0] * 2 + codes[:, 1])[:, None, None, None].expand(-1, 3, 8, 8)
    metric = picture_metric(codes, pictures, plain_share=0.0)
    assert abs(metric.diagonal().mean() - 1) < 1e-5
    assert abs(metric[0, 0] / metric[1, 1] - 4) < 0.3 and abs(metric[2, 2]) < 0.01
    # An error that the picture does not show costs nothing: 2 a + b stays the same.
    unseen = code_loss(torch.tensor([[1.0, -2.0, 5.0]]), torch.zeros(1, 3), metric)
    seen = code_loss(torch.tensor([[1.0, 2.0, 5.0]]), torch.zeros(1, 3), metric)
    assert unseen < 0.02 * seen
    assert torch.isclose(code_loss(torch.ones(2, 3), torch.zeros(2, 3), torch.eye(3)), torch.tensor(1.0))


def test_expression_weights_stand_on_eyes_and_mouth():
    weights = expression_weights(64)[0, 0]
    assert weights[24, 23] > 4 and weights[42, 32] > 4 and weights[2, 2] < 1.01


def test_metrics_by_hand():
    assert torch.allclose(
        metrics.psnr_db(torch.full((1, 3, 2, 2), 0.2), torch.zeros(1, 3, 2, 2)), torch.tensor([20.0])
    )
    before, after = torch.zeros(2, 3), torch.tensor([[2.0, 1.0, -3.0], [4.0, 1.0, 3.0]])
    sigma = torch.tensor([2.0, 1.0, 3.0])
    assert metrics.attribute_altering(before, after, sigma, 0) == 1.5
    assert metrics.attribute_dependency(before, after, sigma, 0) == 1.0
    assert torch.allclose(
        metrics.identity_cosine(torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 1]])), torch.tensor([0.5**0.5])
    )
