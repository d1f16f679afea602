"""train/judging/classifier.py: a ResNet-50 of CelebA's attributes, from the layouts that there are, judges where the
reader of `train.attributes` does; other files are refused in one sentence."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

from train.editing import manifold
from train.inversion.features import FeatureNetwork
from train.judging.classifier import CELEBA, load_classifier, load_reader


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr("train.inversion.features._SIDE", 32)  # pixels that the network sees, for speed


@pytest.fixture(scope="module")
def layers():
    """The body and the last layer, of random weights."""
    torch.manual_seed(0)
    return FeatureNetwork().half().float().eval(), nn.Linear(2048, 40).half().float()


@pytest.fixture(scope="module")
def state(layers):
    """Their tensors by torchvision's names, in half precision: a hundred megabytes would be written often here."""
    body, head = (layer.state_dict() for layer in layers)
    state = body | {f"fc.{name}": tensor for name, tensor in head.items()}
    return OrderedDict((name, x.half() if x.is_floating_point() else x) for name, x in state.items())


def logits(layers, images: torch.Tensor) -> torch.Tensor:
    body, head = layers
    small = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        pooled = body.pooled(small)
        assert torch.equal(nn.functional.normalize(pooled, dim=1), body(small))
        return head(pooled)


def test_the_attributes_are_celebas():
    assert len(set(CELEBA)) == 40 and list(CELEBA) == sorted(CELEBA, key=str.lower)
    assert [CELEBA.index(name) for name in ("Eyeglasses", "Male", "Smiling", "Young")] == [15, 20, 31, 39]


def test_a_checkpoint_of_lightnings_computes_what_its_layers_say(layers, state, tmp_path):
    renamed = {"net." + name.replace("fc.", "head.1."): tensor for name, tensor in state.items()}
    lightning = {"epoch": 3, "state_dict": renamed, "pytorch-lightning_version": "1.5", "callbacks": {}}
    torch.save(lightning, tmp_path / "other.ckpt")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    reading = load_reader(tmp_path / "other.ckpt", "cpu")(images)
    assert torch.allclose(reading.logits, logits(layers, images), atol=1e-4)
    assert reading.logits.shape == (2, 40) and reading.logits.std(0).max() > 0


class Malicious:
    def __reduce__(self):
        return print, ("This must not be printed.",)


def test_other_files_are_refused_in_one_sentence(state, tmp_path, capsys):
    def refused(content) -> str:
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(ValueError) as caught:
            load_classifier(tmp_path / "file.pth")
        return str(caught.value)

    assert "file.pth holds no ResNet-50" in refused({"weights": torch.ones(3)})
    assert "file.pth holds no ResNet-50" in refused({**state, "layer4.2.conv3.weight": torch.ones(3)})
    assert "holds no ResNet-50" in refused(torch.ones(3))
    imagenet = {**state, "fc.weight": torch.ones(1000, 2048), "fc.bias": torch.ones(1000)}
    assert "from 2048 numbers to CelebA's 40 attributes; its linear layers are [1000, 2048]" in refused(imagenet)
    assert (
        "print" in refused({"fc.weight": torch.ones(3), "extra": Malicious()})
        and "must not" not in capsys.readouterr().out
    )
    (tmp_path / "file.pth").write_text("no network")
    with pytest.raises(ValueError, match="file.pth"):
        load_classifier(tmp_path / "file.pth")


def test_photos_are_labelled_by_it(tiny_weights, layers, state, tmp_path, capsys):
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    torch.save(state, tmp_path / "resnet50.pth")
    words = "--weights", tiny_weights, "--data", tmp_path, "--out", tmp_path / "latents.npz", "--threads", 1
    assert run(manifold.main, *words, "--reader", tmp_path / "resnet50.pth") == 0
    found = np.load(tmp_path / "latents.npz")
    assert tuple(found["attribute_names"]) == CELEBA
    image = torch.from_numpy(np.array(Image.open(tmp_path / "1.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    assert np.abs(logits(layers, image).numpy() - found["logits"][1]).max() < 1e-3
    assert run(manifold.main, *words, "--reader", tmp_path / "1.png") == 1
    assert str(tmp_path / "1.png") in capsys.readouterr().err
