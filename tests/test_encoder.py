import pytest
import torch

from preim3d.encoder import PortraitEncoder


SIZES = {"input_size": 32, "units": (1, 1, 1, 1), "depths": (16, 16, 32, 32), "pool": 2, "feature_dim": 24}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return PortraitEncoder(**SIZES, num_ws=6, w_dim=16).eval()


def test_a_crop_gives_every_row_of_w(encoder):
    assert encoder(torch.rand(2, 3, 32, 32) * 2 - 1).shape == (2, 6, 16)


def test_the_latent_average_is_added(encoder):
    crop = torch.rand(1, 3, 32, 32)
    before = encoder(crop)
    encoder.latent_average += torch.arange(6.0)[:, None]
    torch.testing.assert_close(encoder(crop), before + torch.arange(6.0)[:, None])


def test_a_crop_of_the_wrong_size_is_named(encoder):
    with pytest.raises(AssertionError, match="48, 48"):
        encoder(torch.rand(1, 3, 48, 48))


def test_the_published_encoder_is_the_default():
    with torch.device("meta"):
        encoder = PortraitEncoder()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 47_473_856
    assert len(encoder.state_dict()) == 394 + 1  # and the latent average


def test_every_parameter_learns(encoder):
    encoder.train()(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_saved_and_loaded_it_answers_the_same(encoder, tmp_path):
    encoder.latent_average.normal_()
    encoder.save_pretrained(tmp_path)
    crop = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(PortraitEncoder.from_pretrained(tmp_path).eval()(crop), encoder(crop))
