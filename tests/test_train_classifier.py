"""train/judging/classifier.py: a ResNet-50 of CelebA's attributes, from the layouts that there are, judges where the
reader of `train.attributes` does; other files are refused in one sentence."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

from train.editing import manifold
from train.inversion.features import FeatureNetwork
from train.judging.classifier import CELEBA, load_classifier


@pytest.fixture(scope="module")
def state():
    """Random weights by torchvision's names; in half precision, as a hundred megabytes are written often here."""
    torch.manual_seed(0)
    body, head = FeatureNetwork(), nn.Linear(2048, 40)
    state = body.state_dict() | {f"fc.{name}": tensor for name, tensor in head.state_dict().items()}
    return OrderedDict((name, x.half() if x.is_floating_point() else x) for name, x in state.items())


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "resnet50.pth"
    torch.save(state, path)
    return path


def test_the_attributes_are_celebas():
    assert len(set(CELEBA)) == 40 and list(CELEBA) == sorted(CELEBA, key=str.lower)
    assert [CELEBA.index(name) for name in ("Eyeglasses", "Male", "Smiling", "Young")] == [15, 20, 31, 39]


def test_it_computes_what_its_layers_say(state, file):
    network, images = load_classifier(file), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        reading = network(images)
        small = nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True)
        body = FeatureNetwork().eval()
        body.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
        pooled = body.pooled(small)
    expected = pooled @ state["fc.weight"].T.float() + state["fc.bias"]
    assert reading.logits.shape == (2, 40) and torch.allclose(reading.logits, expected, atol=1e-4)
    assert torch.equal(nn.functional.normalize(pooled, dim=1), body(small)) and expected.std(0).max() > 0


def test_another_layout_gives_the_same(state, file, tmp_path):
    renamed = {"net." + name.replace("fc.", "head.1."): tensor for name, tensor in state.items()}
    lightning = {"epoch": 3, "state_dict": renamed, "pytorch-lightning_version": "1.5", "callbacks": {}}
    torch.save(lightning, tmp_path / "other.ckpt")
    expected, found = load_classifier(file).state_dict(), load_classifier(tmp_path / "other.ckpt").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


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


def test_photos_are_labelled_by_it(tiny_weights, file, tmp_path, capsys):
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    words = "--weights", tiny_weights, "--data", tmp_path, "--out", tmp_path / "latents.npz", "--threads", 1
    assert run(manifold.main, *words, "--reader", file) == 0
    found = np.load(tmp_path / "latents.npz")
    assert tuple(found["attribute_names"]) == CELEBA
    image = torch.from_numpy(np.array(Image.open(tmp_path / "1.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert np.abs(load_classifier(file)(image).logits.numpy() - found["logits"][1]).max() < 1e-3
    assert run(manifold.main, *words, "--reader", tmp_path / "1.png") == 1
    assert json.dumps(str(tmp_path / "1.png"))[1:-1] in capsys.readouterr().err
