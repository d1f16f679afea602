"""The perceptual distance: nothing between equals, more for more, only under the mask; the shipped networks load."""

from pathlib import Path

import pytest
import torch

from preim3d.efficientnet import EfficientNetLite0, perceptual_distance
from train.model.perceptual import VGG16


LITE0 = Path(__file__).parents[2] / "shared" / "real" / "judges" / "efficientnet_lite0_blocks0-10.safetensors"


@pytest.mark.parametrize("network", [EfficientNetLite0, VGG16])
def test_distance_grows_and_is_masked(network):
    torch.manual_seed(0)
    network = network().eval()
    truth, noise = torch.rand(1, 3, 64, 64) * 2 - 1, torch.randn(1, 3, 64, 64)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    everywhere = torch.ones_like(mask)
    near, far = (perceptual_distance(network, truth + k * noise, truth, everywhere).item() for k in (0.05, 0.5))
    assert perceptual_distance(network, truth, truth, everywhere).item() < 1e-8
    assert 0 < near < far
    right = truth.clone()
    right[..., 56:] += noise[..., 56:]
    assert perceptual_distance(network, right, truth, mask) < perceptual_distance(network, right, truth, everywhere)


@pytest.mark.skipif(not LITE0.is_file(), reason="EfficientNet-Lite0's weights (../shared/real/judges) are not here")
def test_lite0_loads():
    network = EfficientNetLite0.load(LITE0)
    features = network(torch.zeros(1, 3, 64, 64))
    assert [f.shape[-1] for f in features] == [32, 32, 16, 8, 4, 4] and all(f.isfinite().all() for f in features)
