import pytest
import torch
import torch.nn.functional as F

from preim3d.irse import IdentityNetwork, Unit, irse_body


SIZES = {"input_size": 32, "units": (1, 1, 1, 1), "depths": (16, 16, 32, 32), "feature_dim": 24}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_every_stage_halves_the_picture():
    input_layer, body = irse_body((2, 1, 3), (16, 32, 32))
    x = input_layer(torch.randn(1, 3, 32, 32))
    assert x.shape == (1, 16, 32, 32)
    assert body(x).shape == (1, 32, 4, 4)
    assert [type(unit.shortcut_layer).__name__ for unit in body] == (
        ["MaxPool2d", "MaxPool2d", "Sequential", "MaxPool2d", "MaxPool2d", "MaxPool2d"]
    )


def test_a_stride_is_in_the_second_convolution_and_in_the_shortcut():
    unit = Unit(16, 32, stride=2)
    assert unit.res_layer[1].stride == (1, 1) and unit.res_layer[3].stride == (2, 2)
    assert unit(torch.randn(1, 16, 8, 8)).shape == (1, 32, 4, 4)


def test_the_published_network_is_the_default():
    with torch.device("meta"):
        network = IdentityNetwork()
    assert sum(parameter.numel() for parameter in network.parameters()) == 43_797_696
    assert len(network.state_dict()) == 397


def test_identities_are_unit_vectors_of_pictures_of_any_size():
    network = IdentityNetwork(**SIZES).eval()
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        identities = network(images)
        torch.testing.assert_close(network(F.avg_pool2d(images, 2)), identities, atol=1e-5, rtol=1e-5)
    assert identities.shape == (3, 24)
    torch.testing.assert_close(identities.norm(dim=1), torch.ones(3))


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    network = IdentityNetwork(**SIZES).eval()
    network.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(IdentityNetwork.from_pretrained(tmp_path).eval()(images), network(images))
