import pytest
import torch

from train.loop.draws import noise_like, on_device


def test_on_its_own_device_a_generator_is_itself():
    draws = torch.Generator().manual_seed(3)
    assert on_device(draws, torch.device("cpu")) is draws
    noise = noise_like(torch.zeros(4, 5), draws)
    assert torch.equal(noise, torch.randn(4, 5, generator=torch.Generator().manual_seed(3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_elsewhere_its_seed_decides():
    def noise(seed):
        return noise_like(torch.zeros(1000, device="cuda"), torch.Generator().manual_seed(seed))

    assert torch.equal(noise(3), noise(3)) and not torch.equal(noise(3), noise(4))
    assert noise(3).device.type == "cuda" and abs(noise(3).std().item() - 1) < 0.1
