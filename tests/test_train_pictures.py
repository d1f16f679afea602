"""e4e in two dimensions: tiny networks, photos of one colour each."""

import json

import numpy as np
import pytest
import torch
from packing import pack_faces
from safetensors.torch import load_file, save_file

from preim3d.efficientnet import EfficientNetLite0
from preim3d.identity import FaceIdentity
from preim3d.reader import HeadReader
from preim3d.stylegan2 import MappingNetwork
from train.judging.curves import read_spaces
from train.pictures import edits, encoder, generator
from train.pictures import mapping as mapping_game
from train.pictures.mapping import LatentGame, moments_apart
from train.pictures.networks import PictureEncoder, PictureGenerator


GENERATOR = {"z_dim": 8, "w_dim": 8, "mapping_layers": 2, "resolution": 32, "channel_base": 128, "channel_max": 8}
ENCODER = {"input_size": 32, "width": 4, "feature_dim": 16}
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All three stages run for a few steps, as from the command line."""
    at = tmp_path_factory.mktemp("pictures")
    _, table = pack_faces(at / "photos", 48)
    torch.manual_seed(0)
    save_file(EfficientNetLite0().state_dict(), at / "lite0.safetensors")
    FaceIdentity(4, [(4, False)] * 12, 8).save_pretrained(at / "identity")
    names = ("Smiling", "Young", "Male", "Eyeglasses", "Bald")
    reader = HeadReader(
        input_size=32, units=(1, 1, 1, 1), depths=(16, 16, 16, 16), pool=2, embedding_size=8, attribute_names=names,
        feature_count=2,
    )  # fmt: skip
    reader.save_pretrained(at / "reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "GENERATOR", GENERATOR)
        patch.setattr(generator, "ENCODER", ENCODER)
        patch.setattr(generator, "AVERAGED", 8)
        patch.setattr(generator, "ALONE", 2)
        # Of four steps: a quarter of the size, half, the whole, and the mapping network alone.
        patch.setattr(generator, "GROWS_AT", (0.2, 0.4))
        patch.setattr(generator, "MAPPING_FROM", 0.7)
        yield at, table


def words(at, out, *more, steps=4) -> list[str]:
    return [str(word) for word in (
        "--photos", at / "photos", "--lite0", at / "lite0.safetensors", "--out", at / out, "--batch", 4, "--held", 4,
        "--sheets", 1, "--threads", 1, "--steps", steps, *more,
    )]  # fmt: skip


def same(at, first: str, second: str) -> bool:
    one, other = (load_file(at / folder / FILE) for folder in (first, second))
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(made):
    at, _ = made
    assert generator.main(words(at, "generator")) == 0
    assert encoder.main(words(at, "e4e", "--weights", at / "generator", "--identity", at / "identity", steps=2)) == 0
    return at


def test_a_generator_and_its_encoder_come_out(trained):
    network = PictureGenerator.from_pretrained(trained / "generator" / "generator").eval()
    crops = torch.zeros(2, 3, 32, 32)
    ws = PictureEncoder.from_pretrained(trained / "generator" / "encoder").eval().rows(crops, 1)
    assert ws.shape == (2, network.num_ws, 8) and torch.equal(ws[:, :1].expand_as(ws), ws)
    assert network(ws).shape == (2, 3, 32, 32) and network(ws, 1).shape == (2, 3, 16, 16)
    assert network.mapping.w_avg.abs().sum() > 0
    report = json.loads((trained / "generator" / "report.json").read_text())
    assert report["steps"] == 4 and "person_psnr_db" in report
    assert list((trained / "generator" / "sheets").glob("*.png"))


def test_the_first_picture_is_the_photos_mean(made):
    """Of photos that are one colour each; beyond the person, and at the rim of the photo, plain grey."""
    at, _ = made
    run = generator.GeneratorRun(arguments(at, "mean"))
    assert (run.generator.average[:, 4:, 8:24].mean((1, 2)) - torch.tensor([0.0, -0.3, -0.7])).abs().max() < 0.2
    assert (run.generator.average[:, :2].mean() - 0.64).abs() < 0.02
    ws = run.generator.latents(torch.randn(2, 8))
    small = torch.nn.functional.avg_pool2d(run.generator.average, 4)
    assert (run.generator(ws, 2) - small).abs().mean() < 0.5


def arguments(at, out):
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "run_stage", lambda name, stage, options: given.setdefault("options", options))
        generator.main(words(at, out))
    given["options"].device = "cpu"
    return given["options"]


@pytest.mark.parametrize("stage", ["generator", pytest.param("e4e", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(trained, monkeypatch, stage):
    run, module, more, steps = {
        "generator": (generator.GeneratorRun, generator, (), 4),
        "e4e": (encoder.E4ERun, encoder, ("--weights", trained / "generator", "--identity", trained / "identity"), 2),
    }[stage]
    step = run.step

    def killed(self, number, share):
        if number == steps - 1:
            raise KeyboardInterrupt
        return step(self, number, share)

    monkeypatch.setattr(run, "step", killed)
    line = words(trained, f"killed-{stage}", "--save-seconds", 0, *more, steps=steps)
    with pytest.raises(KeyboardInterrupt):
        module.main(line)
    monkeypatch.setattr(run, "step", step)
    assert module.main(line) == 0
    for name in ("generator", "encoder") if stage == "generator" else ("encoder",):
        assert same(trained, f"{stage}/{name}", f"killed-{stage}/{name}")


def test_e4e_leaves_the_generator_and_lets_rows_go_one_after_the_other(trained):
    first, last = (PictureEncoder.from_pretrained(trained / name / "encoder").eval() for name in ("generator", "e4e"))
    crops = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ws = last(crops)
    assert not torch.equal(first(crops), ws) and (ws[:, 1:] != ws[:, :1]).any()
    some = last.rows(crops, 3)
    assert torch.equal(some[:, :3], ws[:, :3]) and torch.equal(some[:, 3:], ws[:, :1].expand_as(some[:, 3:]))
    assert encoder.delta_size(some) < encoder.delta_size(ws)
    # The body is ImageNet's, and stays so.
    for name, tensor in first.body.state_dict().items():
        assert torch.equal(tensor, last.body.state_dict()[name]), name


def test_a_number_that_is_none_ends_the_run_by_name(made, capsys, monkeypatch):
    at, _ = made
    nothing = ({"pixels": torch.tensor(float("nan")), "squares": torch.zeros(())}, None)
    monkeypatch.setattr(generator, "picture_losses", lambda *_: nothing)
    assert generator.main(words(at, "nan", steps=2)) == 1
    assert "Step 1: the loss term `pixels` is nan." in capsys.readouterr().err
    assert not (at / "nan" / "generator").exists()


def test_the_mapping_network_learns_where_encoded_photos_lie(monkeypatch):
    monkeypatch.setattr(mapping_game, "MAPPING_RATE", 0.5)
    torch.manual_seed(0)
    mapping = MappingNetwork(4, 0, 4, 2)
    game = LatentGame(mapping, 4)
    draws = torch.Generator().manual_seed(0)
    game.remember(torch.randn(4000, 4, generator=draws) * torch.tensor([2.0, 1.0, 0.5, 0.1]))

    def apart() -> float:
        rows = mapping(torch.randn(2000, 4, generator=draws))
        return (torch.cov(rows.T) - torch.cov(game.rows[:4000].T)).norm().item()

    before = apart()
    for number in range(80):
        game.step(mapping, 4, number, 1.0, draws)
    assert apart() < before / 2


def test_moments_are_apart_by_what_they_are_and_not_by_chance():
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, 64, 16, generator=draws) for _ in range(200)]
    assert abs(np.mean([moments_apart(*pair).item() for pair in rows])) < 0.05
    moved = np.mean([moments_apart(pair[0] * 2 + 1, pair[1]).item() for pair in rows])
    assert moved == pytest.approx(10, rel=0.1)  # 1 of the mean, 3 squared of the variance


def test_both_spaces_are_compared_at_equal_altering(trained, made, capsys):
    _, table = made
    # A reader for whom about half of the generator's pictures have each attribute.
    reader = HeadReader.from_pretrained(trained / "reader").eval()
    network = PictureGenerator.from_pretrained(trained / "generator" / "generator").eval()
    with torch.no_grad():
        pictures = edits.samples_source(network, 40, 1).batch(0).images
        reader.attributes.bias -= reader(pictures).logits.median(0).values
    reader.save_pretrained(trained / "reader")
    line = [str(word) for word in (
        "--weights", trained / "generator", "--encoder", trained / "e4e" / "encoder", "--reader", trained / "reader",
        "--photos", trained / "photos", "--labels", table, "--out", trained / "edits", "--samples", 40, "--inverted",
        40, "--count", 8, "--seeds", 1, "--threads", 1, "--plain",
    )]  # fmt: skip
    assert edits.main(line) == 0
    stored = json.loads((trained / "edits" / "figures.json").read_text())
    assert set(stored["seeds"]) == {"1"} and stored["count"] == 8
    assert read_spaces(trained / "edits" / "figures.json").keys() == stored["seeds"]["1"].keys()
    for figures in stored["seeds"].values():
        assert {"smile", "age", "gender"} <= set(figures)
        for spaces in figures.values():
            assert spaces["origin"]["aa"] == pytest.approx(spaces["inversion"]["aa"])
    assert np.load(trained / "edits" / "origin-1.npz")["w"].shape == (40, 8, 8)
    assert (np.load(trained / "edits" / "inversion-1.npz")["w"].std(1) > 0).any()
    # What was measured is not measured again, and not mixed with what is measured otherwise.
    (trained / "edits" / "origin-1.npz").unlink()
    assert edits.main(line) == 0 and not (trained / "edits" / "origin-1.npz").exists()
    assert edits.main([*line[:-1], "--count", "4"]) == 1
    assert "was begun with another count" in capsys.readouterr().err


def test_the_table_is_the_mean_of_the_seeds():
    figures = [
        {"smile": {space: {"aa": 1.0, "ad": ad + seed} for space, ad in (("origin", 0.4), ("inversion", 0.2))}}
        for seed in (0, 1)
    ]
    row = "| smile | 1.00 (1.00, 1.00) | 0.90 (0.40, 1.40) | 0.70 (0.20, 1.20) |"
    assert edits.table(figures).splitlines()[2:] == [row]
