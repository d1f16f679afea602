"""One way to choose a device, and float32 that is float32 there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preim3d.device import exactly, find_device


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def rounded():
    """As a program might have chosen; afterwards as it was."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield
    for place, was in zip(places, before):
        place.allow_tf32 = was


def test_the_device_is_the_one_named_or_the_best():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device().type == find_device("").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(ValueError, match=f"no device '{name}' on this machine; leave --device out"):
            find_device(name)


def test_a_command_that_has_a_device_rounds_nothing():
    find_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_exactly_rounds_nothing_and_leaves_the_choice_as_it_was():
    with pytest.raises(KeyError), exactly():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_convolves_in_float32():
    x, weight = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
    expected = torch.nn.functional.conv2d(x.double(), weight.double()).float()
    with exactly():
        there = torch.nn.functional.conv2d(x.cuda(), weight.cuda()).cpu()
    assert (there - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("module", ["preim3d", "train"])
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(module):
    # Else one other program on the same cores makes everything many times slower.
    asked = f"import os, sys, {module}; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"

    def said(environment):
        rest = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-c", asked]
        return subprocess.run(command, env=rest | environment, cwd=ROOT, capture_output=True, text=True).stdout.split()

    assert said({}) == ["10000", "False"]
    assert said({"GOMP_SPINCOUNT": "5"}) == ["5", "False"]
