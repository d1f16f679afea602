"""Style channels against generators whose controls are known."""

import json

import numpy as np
import pytest
import torch
from command_line import run
from conftest import ball_generator

from preim3d.pipeline import load_component
from preim3d.style_channels import Channel, StyleChannels
from train.editing import directions
from train.editing.calibration import Effect
from train.editing.stylespace import control, known, learn, relevance
from train.judging.attributes import HeadReader


def two_edits() -> StyleChannels:
    edits = StyleChannels(("smile", "age"), ("b4.conv1", "b4.torgb"), (2, 3), fingerprint="abc")
    edits.vectors.copy_(torch.tensor([[0, 2.0, 0, 0, -1.0], [1.0, 0, 0, 0, 0]]))
    return edits


def test_an_edit_is_its_channels(tmp_path):
    two_edits().save_pretrained(tmp_path)
    edits = load_component(StyleChannels, tmp_path, torch.float32)
    assert edits.offset({"smile": 2, "age": -1}).tolist() == [-1, 4, 0, 0, -2] and not edits.offset({}).any()
    assert edits.channels("smile") == [Channel("b4.conv1", 1, 2.0), Channel("b4.torgb", 2, -1.0)]
    assert edits.names == ["smile", "age"] and edits.config.fingerprint == "abc"
    with pytest.raises(ValueError, match="`hat` is no attribute"):
        edits.offset({"hat": 1})


def test_relevance_is_mean_over_spread_of_normalised_differences():
    # Channels of spread 2 and 1; positives differ by 2 and 1 of them, and agree to .5 and 1.
    population = torch.tensor([[-2.0, -1.0], [0.0, 0.0], [2.0, 1.0]])
    positive = torch.tensor([[3.0, 0.0], [4.0, 1.0], [5.0, 2.0]])
    assert torch.allclose(relevance(positive, population), torch.tensor([2 / 0.5, 1.0]))
    assert torch.allclose(relevance(-positive, population), torch.tensor([-4.0, -1.0]))
    # What never varies is relevant to nothing.
    assert relevance(torch.ones(3, 1), torch.ones(5, 1)).tolist() == [0.0]


class LinearTrial:
    """Stands where EditTrial does: logits that depend on styles by a known matrix [A, S]."""

    def __init__(self, slopes):
        self.slopes, self.sigma, self.asked = slopes, torch.ones(len(slopes)), []

    def effect(self, offset, heads=None):
        self.asked.append(offset)
        return Effect(self.slopes @ offset, 0.0)


def test_one_channel_is_taken_where_one_is_enough():
    slopes = torch.zeros(2, 6)
    slopes[0, 4], slopes[0, 1] = -1.0, 0.2
    # The second is the clearest sign, but works against it; the fourth is what does it.
    relevant = torch.tensor([0.1, -3.0, 0.0, 0.2, -2.0, 0.3])
    offset, response = control(LinearTrial(slopes), relevant, torch.full((6,), 0.5), column=0, sign=1)
    assert offset.nonzero().tolist() == [[4]] and offset[4] < 0
    assert response[0] == pytest.approx(1, abs=1e-4) and response[1] == 0


def test_several_are_taken_together_where_one_does_too_little():
    slopes = torch.full((1, 40), -0.1)
    offset, response = control(LinearTrial(slopes), torch.linspace(2, 1, 40), torch.ones(40), column=0, sign=-1)
    # One channel gives .3 at most, four reach 1: all by the same number of spreads.
    assert offset.nonzero()[:, 0].tolist() == [0, 1, 2, 3] and offset.unique().numel() == 2
    assert response[0] == pytest.approx(-1, abs=1e-4)


class RedTrial:
    """Reads a channel of the planes that a generator makes; its unit is what an offset of the styles adds."""

    def __init__(self, generator, ws, unit):
        self.generator, self.ws, self.sigma = generator, ws, torch.ones(2)
        self.before = self.read(None)
        self.unit = (self.read(unit[None]) - self.before).mean()

    def read(self, offset):
        return self.generator.planes(self.ws, offset)[:, 0, 3].mean((1, 2))

    def effect(self, offset, heads=None):
        change = (self.read(offset[None]) - self.before).mean()
        return Effect(torch.stack([change / self.unit, torch.zeros(())]), 0.0)


@pytest.fixture(scope="module")
def red():
    """A generator in which one style channel alone controls what is read: latents, their generator, the channel."""
    torch.manual_seed(0)
    generator = ball_generator().requires_grad_(False)
    synthesis = generator.backbone.synthesis
    for name in synthesis.style_sizes:
        if name.endswith("torgb"):
            # Nothing but one input of one layer writes the channel.
            weight = synthesis.get_submodule(name).weight
            weight.view(3, 8, -1)[0, 3] = 0
            if name == "b16.torgb":
                weight.view(3, 8, -1)[0, 3, 5] = 2.0
    w = torch.randn(400, 1, 24).expand(-1, generator.num_ws, -1)
    styles = generator.styles(w)
    index = sum(list(synthesis.style_sizes.values())[: list(synthesis.style_sizes).index("b16.torgb")]) + 5
    return generator, w, styles, index


def test_the_channel_that_controls_an_attribute_is_found(red):
    generator, w, styles, index = red
    logits = torch.stack([styles[:, index] - styles[:, index].mean(), torch.randn(400)], 1)
    latents = {"w": w.numpy(), "logits": logits.numpy(), "attribute_names": np.array(["Smiling", "Young"])}
    unit = torch.zeros(styles.shape[1])
    unit[index] = 2 * styles[:, index].std()
    trial = RedTrial(generator, w[:4], unit)
    edits, report, left_out = learn(latents, trial, generator, ["smile"], {"space": "origin", "fingerprint": "abc"})
    (channel,) = edits.channels("smile")
    assert (channel.layer, channel.channel) == ("b16.torgb", 5) and not left_out
    assert channel.step == pytest.approx(unit[index].item(), rel=1e-3)
    assert report["smile"]["channels"] == 1 and report["smile"]["ad_per_aa"] == 0
    assert trial.effect(edits.offset({"smile": -1.5})).response[0] == pytest.approx(-1.5, abs=1e-2)
    assert report["smile"]["aa"] == 1
    assert edits.config.fingerprint == "abc" and edits.config.space == "origin"


def test_what_nobody_has_is_left_out_and_what_nobody_reads_is_refused(red):
    generator, w, styles, index = red
    logits = torch.stack([-torch.ones(400), styles[:, index]], 1).numpy()
    latents = {"w": w.numpy(), "logits": logits, "attribute_names": np.array(["Smiling", "Male"])}
    with pytest.raises(ValueError, match="No attribute has channels. Only 0 latents have it; 8 are needed"):
        learn(latents, LinearTrial(torch.zeros(2, styles.shape[1])), generator, ["smile"], {})
    with pytest.raises(ValueError, match="`hat` is no attribute that the classifier reads; it reads smile, gender"):
        learn(latents, LinearTrial(torch.zeros(2, styles.shape[1])), generator, ["hat"], {})
    assert known(None, ["Smiling", "Male", "Young"], 2) == ["smile", "age"]


@pytest.fixture(scope="module")
def tiny_latents(tmp_path_factory, pipeline):
    """Latents labelled by a tiny classifier, and the classifier's folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("latents")
    names = ("Smiling", "Young", "Male", "Eyeglasses")
    HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, names, 5).eval().save_pretrained(folder / "reader")
    w = torch.randn(120, pipeline.generator.num_ws, 24)
    np.savez(folder / "latents.npz", w=w.numpy(), logits=w[:, 0, :4].numpy(), attribute_names=np.array(names))
    return folder


@pytest.mark.parametrize("method", ["stylespace", "styleflow"])
def test_the_stage_learns_it(method, tiny_weights, tiny_latents, tmp_path, capsys):
    words = [
        "--weights", tiny_weights, "--latents", tiny_latents / "latents.npz", "--method", method, "--threads", 1,
        "--reader", tiny_latents / "reader", "--heads", 1, "--steps", 4, "--precision", "float32",
    ]  # fmt: skip
    assert run(directions.main, *words, "--out", tmp_path / method, "--attributes", "smile", "age") == 0
    report = json.loads((tmp_path / f"{method}.json").read_text())
    assert report["method"] == method and report["space"] == "inversion" and report["latents"] == 120
    config = json.loads((tmp_path / method / "config.json").read_text())
    assert set(config["names"]) <= {"smile", "age"} and config["names"]
    assert config["fingerprint"] == report["fingerprint"] and (tmp_path / method).is_dir()
    assert run(directions.main, *words, "--out", tmp_path / "other", "--attributes", "beauty") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("train.directions: `beauty` is no attribute that the classifier reads;")
    assert not (tmp_path / "other").exists()


def test_style_channels_need_the_classifier(tiny_weights, tiny_latents, tmp_path, capsys):
    words = ["--weights", tiny_weights, "--latents", tiny_latents / "latents.npz", "--out", tmp_path / "out"]
    assert run(directions.main, *words, "--method", "stylespace") == 1
    assert "--method stylespace needs --reader" in capsys.readouterr().err
