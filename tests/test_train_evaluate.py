"""train/evaluate.py end to end on tiny networks; its metrics, and the encoder's losses, where the answer is known."""

import json

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image

from preim3d.camera import camera_from_angles
from preim3d.directions import ATTRIBUTES
from preim3d.irse import IdentityNetwork
from train import evaluate, losses, metrics
from train.attributes import HeadReader
from train.evaluation import at_altering, match_rate, sheet
from train.optimise import optimise_latents
from train.report import average, tables


PHOTOS = 12


def test_match_rate_counts_the_right_neighbours():
    # Unequal lengths and directions: no two distances tie, so that rounding decides nothing.
    photos = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    assert match_rate(photos, photos + 0.01, 10) == 1.0
    assert match_rate(photos, photos.roll(1, 0), 10) == 0.0
    assert match_rate(photos[:9], photos[:9], 10) is None


def test_sheet_is_as_large_as_its_rows():
    picture = sheet([torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 16, 16)])
    pixels = np.asarray(picture)
    assert pixels.shape == (16, 24, 3) and pixels[0, 0, 0] == 128 and pixels[15, 0, 0] == 255


def test_frechet_distance_of_gaussians():
    # Exact moments: two points on either side of the mean along each axis.
    def features(mean, spread):
        axes = torch.diag(torch.tensor(spread))
        return torch.cat([axes, -axes]) * (5 / 2) ** 0.5 + torch.tensor(mean)  # unbiased variance: spread^2

    first, second = features([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), features([1.0, 0.0, 2.0], [2.0, 2.0, 1.0])
    # |m|^2 + sum (s_a - s_b)^2 where the covariances commute.
    assert abs(metrics.frechet_distance(first, second) - (1 + 4 + 1 + 0 + 4)) < 1e-6
    assert abs(metrics.frechet_distance(first, first)) < 1e-6


def test_kernel_distance_by_hand():
    first, second = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # k(x, y) = (x y + 1)^3: within 1 and 27, between 1, 1, 8, 27 over four.
    assert abs(metrics.kernel_distance(first, second) - (1 + 27 - 2 * 37 / 4)) < 1e-9


def test_pose_distance_is_the_root_mean_square():
    assert metrics.pose_distance(torch.tensor([[0.3, 0.0], [0.0, 0.4]]), torch.zeros(2, 2)) == pytest.approx(0.25)


def test_seeds_are_averaged_and_their_spread_told():
    figures = average(
        [{"id": 0.5, "aa": {"smile": 1.0}, "none": None}, {"id": 0.7, "aa": {"smile": 2.0}, "none": None}]
    )
    assert figures["id"] == 0.6 and figures["aa"] == {"smile": 1.5} and figures["none"] is None
    assert figures["spread"]["id"] == 0.2 and figures["spread"]["aa"] == {"smile": 1.0}
    assert "spread" not in average([{"id": 0.5}])


def test_tables_are_shaped_like_the_papers():
    figures = {
        "id": 0.606, "id_20_30": 0.576, "apd": 0.00117, "time_s": 0.05, "aa": {"age": 1.51}, "ad": {"age": 0.82},
        "ad_per_aa": {"age": 0.54}, "id_edited": {"age": 0.557}, "protocol": "P.", "spread": {"id": 0.01},
        "spaces": {
            "age": {"origin": {"aa": 1.5, "ad": 1.0}, "inversion": {"aa": 1.5, "ad": 0.5}},
            "smile": {"origin": {"aa": 1.5, "ad": 0.6}, "inversion": {"aa": 1.5, "ad": 0.7}},
        },
    }  # fmt: skip
    text = tables(figures, {"age": 0.93})
    assert "| Ours | 0.606 ± 0.010 | 0.576 | 0.00117 | 0.050 |" in text
    assert "| AA | 1.51 | - | - |" in text and "| ID | 0.557 | - | - |" in text
    assert "| Age | 0.930 | 1.51 | 0.82 | 0.54 |" in text
    assert "| mean | 1.50 | 1.50 | 0.80 | 0.60 |" in text


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    keys = ("smile", "age", "eyeglasses", "gender", "hat")
    names = tuple(ATTRIBUTES[key].celeba for key in keys)
    return HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, names, 5).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A posed dataset of coloured noise."""
    folder = tmp_path_factory.mktemp("photos")
    rng, labels = np.random.default_rng(0), []
    for number in range(PHOTOS):
        pixels = np.repeat(rng.integers(0, 256, (8, 8, 3), np.uint8), 5, 0).repeat(5, 1)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        camera = camera_from_angles(rng.uniform(-0.5, 0.5), rng.uniform(-0.3, 0.3))
        labels.append([f"{number:02}.png", camera.tolist()])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


class TinyFeatures(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool) -> torch.Tensor:
        assert images.dtype == torch.uint8 and return_features
        return images.float().mean(3).mean(2) / 255


def test_photos_are_evaluated_from_end_to_end(tiny_weights, reader, photos, tmp_path, capsys):
    reader.save_pretrained(tmp_path / "reader")
    IdentityNetwork(16, (1, 1), (16, 16), 8).save_pretrained(tmp_path / "identity")
    torch.jit.script(TinyFeatures()).save(tmp_path / "features.pt")
    words = [
        "--weights", tiny_weights, "--reader", tmp_path / "reader", "--data", photos, "--heads", 11, "--edited", 3,
        "--views", 1, "--seeds", 0, 1, "--identity", tmp_path / "identity", "--fid-network", tmp_path / "features.pt",
        "--origin", tiny_weights / "directions", "--compare", f"w/o ATS={tiny_weights / 'encoder'}",
        "--out", tmp_path / "out.json", "--sheets", tmp_path / "sheets", "--threads", 1,
    ]  # fmt: skip
    assert run(evaluate.main, *words) == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    for name in ("id", "id_0_10", "id_20_30", "apd", "fid_ori", "kid_la", "time_s", "encoder_psnr_db", "match_of_10"):
        assert np.isfinite(figures[name]), name
    assert abs(figures["id"] - np.mean([figures[f"id_{band}"] for band in ("0_10", "10_20", "20_30")])) < 2e-4
    assert set(figures["aa"]) == {"smile", "age", "eyeglasses", "gender", "hat"}  # what the reader knows
    # The same encoder and the same directions under another name give the same figures.
    assert figures["compared"]["w/o ATS"]["id"] == figures["id"]
    assert figures["spaces"]["age"]["origin"] == figures["spaces"]["age"]["inversion"]
    assert figures["seeds"] == [0, 1] and figures["spread"]["id"] > 0 == figures["spread"]["encoder_psnr_db"]
    assert "11 photos" in figures["protocol"] and "features.pt (given by the user)" in figures["protocol"]
    text = (tmp_path / "out.md").read_text()
    assert all(f"Table {number}" in text for number in (2, 3, 4, 5, 7)) and text in capsys.readouterr().out + "\n"
    assert Image.open(tmp_path / "sheets" / "edits.png").size == (3 * 32, 6 * 32)


def test_mistakes_are_one_sentence(tiny_weights, reader, tmp_path, capsys):
    reader.save_pretrained(tmp_path / "reader")
    common = ["--weights", tiny_weights, "--out", tmp_path / "out.json"]
    assert run(evaluate.main, *common, "--reader", tmp_path / "reader", "--data", tmp_path) == 1
    assert "has no dataset.json" in capsys.readouterr().err
    assert run(evaluate.main, *common, "--reader", tmp_path / "none", "--data", tmp_path) == 1
    assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(evaluate.main, *common, "--reader", "r", "--data", tmp_path, "--compare", "folder")
    assert "NAME=ENCODER" in capsys.readouterr().err


def test_descent_finds_the_latent_of_a_picture(pipeline, reader):
    generator, camera = pipeline.generator, pipeline.generator.frontal_camera()
    w = generator.mapping(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        images = generator.render(generator.planes(w), camera.expand(2, -1), w).image
    mean = generator.mapping(torch.randn(500, 16)).mean(0, keepdim=True)

    def error(ws):
        with torch.no_grad():
            seen = generator.render(generator.planes(ws), camera.expand(len(ws), -1), ws).image
        return (seen - images[: len(ws)]).square().mean().item()

    found = optimise_latents(generator, reader, images, camera.expand(2, -1), steps=25)
    assert found.shape == w.shape and error(found) < 0.3 * error(mean.repeat(2, 1, 1))
    alone = optimise_latents(generator, reader, images[:1], camera, steps=25)
    assert (alone - found[:1]).abs().max() < 0.05 * found.std()


def test_picture_losses_by_hand():
    truth = torch.zeros(1, 3, 4, 4)
    images = truth.clone()
    images[..., 2:] = 0.5  # one vertical edge of height .5 among three columns of differences
    even = torch.ones(1, 1, 4, 4)
    assert torch.isclose(losses.pixel_loss(images, truth, even), torch.tensor(0.125))
    assert torch.isclose(losses.edge_loss(images, truth, even), torch.tensor(0.5 / 3))


def test_latent_loss_is_the_mean_square_under_the_plain_metric():
    w, truth = torch.full((2, 3, 4), 2.0), torch.zeros(2, 3, 4)
    assert losses.latent_loss(w, truth, torch.eye(4)) == 4.0


def test_feature_losses_vanish_for_equal_pictures_only(reader):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    for loss in (losses.perceptual_loss, losses.identity_loss):
        assert loss(reader, images, images).abs() < 1e-5
        assert loss(reader, images, -images) > 1e-3


def test_stage_features_end_where_the_body_ends(reader):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    maps = losses.stage_features(reader, images)
    assert [m.shape[-1] for m in maps] == [8, 4, 2, 1]
    assert torch.equal(maps[-1], reader.body(reader.input_layer(images)))


def test_spaces_are_compared_where_a_curve_first_reaches_the_altering():
    curve = np.array([(0, 0, 0), (1, 1.0, 0.2), (2, 2.0, 0.6), (3, 0.5, 0.9)])  # too strong an edit alters less
    assert at_altering(curve, 1.5) == pytest.approx({"aa": 1.5, "ad": 0.4, "strength": 1.5})
    assert at_altering(curve, 2.0) == pytest.approx({"aa": 2.0, "ad": 0.6, "strength": 2.0})
