"""The reader on a body that knows ImageNet: what it gives, and that its heads learn while the body stays."""

import copy

import pytest
import torch

from preim3d.reader import HeadReader
from train.judging.attributes import known_mean, learn_heads
from train.judging.reader_batches import Examples


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return HeadReader(
        32, pool=2, embedding_size=16, attribute_names=("Smiling", "Young"), feature_count=3, backbone="lite0"
    ).eval()


def test_seeing_and_judging_is_reading(reader):
    images = torch.rand(3, 3, 48, 48) * 2 - 1  # of another size: resized
    with torch.no_grad():
        reading, seen = reader(images), reader.see(images)
    assert reading.logits.shape == (3, 2) and reading.angles.shape == (3, 2) and reading.features.shape == (3, 3)
    assert seen.shape == (3, (40 + 80 + 112) * 4)
    with torch.no_grad():
        assert torch.equal(reader.judge(seen).logits, reading.logits)


def test_heads_learn_what_the_body_saw(reader):
    network = copy.deepcopy(reader)
    draws = torch.Generator().manual_seed(0)
    seen = torch.randn(600, 928, generator=draws)
    labels = (seen[:, :2] > 0).float()
    labels[::2, 1] = torch.nan
    known = Examples(torch.zeros(600, 0), labels, torch.full((600, 3), torch.nan), torch.zeros(600, 2))
    learn_heads(network, seen, known, draws)
    with torch.no_grad():
        right = (network.eval().judge(seen).logits > 0) == (labels > 0.5)
    assert right[:, 0].float().mean() > 0.8
    body = dict(reader.body.named_parameters())
    assert all(torch.equal(body[name], p) for name, p in network.body.named_parameters())


def test_the_mean_over_what_is_known():
    truth = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [0.0, 1.0]])
    assert known_mean(torch.tensor([[3.0, 9.0], [9.0, 9.0], [1.0, 2.0]]), truth) == (3 + 1.5) / 2
