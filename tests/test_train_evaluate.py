"""train/evaluate.py and train/losses.py: the parts whose answer is known by hand."""

import numpy as np
import pytest
import torch

from train import losses
from train.attributes import HeadReader
from train.evaluate import match_rate, sheet


def test_match_rate_counts_the_right_neighbours():
    photos = torch.eye(20)
    assert match_rate(photos, photos + 0.01, 10) == 1.0
    assert match_rate(photos, photos.roll(1, 0), 10) == 0.0


def test_sheet_is_as_large_as_its_rows():
    picture = sheet([torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)])
    pixels = np.asarray(picture)
    assert pixels.shape == (16, 24, 3) and pixels[0, 0, 0] == 128 and pixels[15, 0, 0] == 255


def test_picture_losses_by_hand():
    truth = torch.zeros(1, 3, 4, 4)
    images = truth.clone()
    images[..., 2:] = 0.5  # one vertical edge of height .5 among three columns of differences
    even = torch.ones(1, 1, 4, 4)
    assert torch.isclose(losses.pixel_loss(images, truth, even), torch.tensor(0.125))
    assert torch.isclose(losses.edge_loss(images, truth, even), torch.tensor(0.5 / 3))


def test_latent_loss_is_the_mean_square_under_the_plain_metric():
    w, truth = torch.full((2, 3, 4), 2.0), torch.zeros(2, 3, 4)
    assert losses.latent_loss(w, truth, torch.eye(4)) == 4.0


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, ("Smiling",), 5).eval()


def test_feature_losses_vanish_for_equal_pictures_only(reader):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    for loss in (losses.perceptual_loss, losses.identity_loss):
        assert loss(reader, images, images).abs() < 1e-5
        assert loss(reader, images, -images) > 1e-3


def test_stage_features_end_where_the_body_ends(reader):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    maps = losses.stage_features(reader, images)
    assert [m.shape[-1] for m in maps] == [8, 4, 2, 1]
    assert torch.equal(maps[-1], reader.body(reader.input_layer(images)))
