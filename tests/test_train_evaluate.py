"""train/judging: `train.evaluate` end to end on tiny networks and a few packed photos; its metrics, and the encoder's
losses, where the answer is known."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from balls import TINY_GENERATOR
from command_line import run
from PIL import Image
from safetensors.torch import save_file

from preim3d.align import inside_photo
from preim3d.camera import camera_from_angles
from preim3d.directions import ATTRIBUTES
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.face_mesh import FaceMesh
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from train.judging import evaluate, metrics
from train.judging.attributes import HeadReader
from train.judging.classifier import AttributeClassifier
from train.judging.curves import draw_curves, ticks
from train.judging.curves import main as draw_curves_of
from train.judging.edit_figures import at_altering
from train.judging.evaluation import face_square, sheet
from train.judging.inversions import with_back
from train.judging.pose import roll_of, upright_face
from train.judging.report import average, compared_before, tables, worst_group
from train.judging.subjects import Subjects, WithMirrored, fairface_labels, group_members
from train.photos.real_photos import RealPhotos
from train.publishing.model_card import BEGIN, END, with_headlines


HELD, OTHERS = 21, 6
# Of the tiny pipeline's directions; nobody has labelled CelebA's full beards.
KNOWN_TO_CELEBA = {"smile", "age", "eyeglasses", "gender", "mouth_open", "grey_hair", "hat", "bald", "goatee"}


def test_the_nearest_is_counted_over_all_groups():
    # One row's own column is the nearest of all, the other's has one nearer of three others.
    apart = torch.tensor([[0.1, 1, 1, 1], [0.2, 0.5, 1, 1], [1, 1, 0.1, 1], [1, 1, 1, 0.1]])
    assert metrics.nearest_rate(apart, 2) == pytest.approx((3 + 2 / 3) / 4)
    assert metrics.nearest_rate(apart, 4) == pytest.approx(3 / 4)
    assert metrics.nearest_rate(apart, 5) is None


def test_the_nearest_is_as_often_right_as_in_groups_that_are_drawn():
    rng = np.random.default_rng(0)
    apart = torch.from_numpy(rng.uniform(size=(12, 12)) - 0.3 * np.eye(12))
    hits = []
    for _ in range(3000):
        row = rng.integers(12)
        others = rng.choice(np.delete(np.arange(12), row), 4, replace=False)
        hits.append(bool((apart[row, row] < apart[row, others]).all()))
    assert metrics.nearest_rate(apart, 5) == pytest.approx(np.mean(hits), abs=0.04)


def test_psnr_is_the_persons():
    photos, person = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    images = torch.full((2, 3, 4, 4), 2.0)  # what is out of range counts as its end
    images[..., :2] = 0.2
    person[..., :2] = 1
    assert metrics.person_psnr_db(images, photos, person) == pytest.approx(20.0, abs=1e-4)
    assert metrics.person_psnr_db(images, photos, 1 - person) == pytest.approx(10 * math.log10(4), abs=1e-4)


def test_distances_are_euclidean():
    assert metrics.distances(torch.tensor([[0.0, 3.0]]), torch.tensor([[4.0, 0.0]])).tolist() == [5.0]


def test_edits_are_measured_by_hand():
    before, after = torch.zeros(2, 3), torch.tensor([[2.0, 1.0, -3.0], [4.0, 1.0, 3.0]])
    sigma = torch.tensor([2.0, 1.0, 3.0])
    assert metrics.attribute_altering(before, after, sigma, 0) == 1.5
    assert metrics.attribute_dependency(before, after, sigma, 0) == 1.0


def test_a_sheet_has_its_lines_below_each_other():
    grey, white = Image.new("RGB", (8, 8), "#808080"), Image.new("RGB", (8, 8), "white")
    pixels = np.asarray(sheet([[grey, grey, grey], [white, white, white]]))
    assert pixels.shape == (16, 24, 3) and pixels[0, 0, 0] == 128 and pixels[15, 23, 0] == 255


def test_the_faces_square_is_cut_without_resampling():
    images = torch.arange(256.0).expand(1, 3, 256, 256)
    square = face_square(images)
    assert square.shape[-2:] == (186, 186) and square[0, 0, 0, 0] == 35


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


def test_roll_is_read_from_points_however_the_head_is_turned():
    """Points of a head that a camera sees from aside, and that leans, without perspective."""
    rng = np.random.default_rng(0)
    head = torch.from_numpy(rng.normal(size=(120, 3))) * torch.tensor([0.6, 1.0, 0.4])  # x right, y up, z to the face
    seat = camera_from_angles(torch.tensor([0.0, 0.5, -0.5, 0.3]), torch.tensor([0.0, 0.3, -0.2, 0.2]),
                              torch.tensor([0.0, 0.1, -0.3, 0.6]))  # fmt: skip
    towards = seat[:, :16].view(-1, 4, 4)[:, :3, :3].double()  # columns: the picture's right, down and away
    upright, seen = head @ towards[0], head @ towards
    noise = 0.02 * torch.from_numpy(rng.normal(size=seen.shape))
    roll = roll_of((30 * (seen + noise) + 7).float(), upright.float())
    assert torch.allclose(roll, torch.tensor([0.0, 0.1, -0.3, 0.6]), atol=0.01)
    assert torch.allclose(roll_of(seen[:1], upright), torch.zeros(1), atol=1e-6)


def test_the_upright_face_is_that_of_nearly_frontal_photos(photos):
    packed = RealPhotos(photos)
    frontal = (np.abs(packed.pose) < 0.15).all(1)
    assert 0 < frontal.sum() < len(frontal)
    expected = packed.landmarks[frontal].mean(0)
    assert np.allclose(upright_face(packed).numpy(), expected) and np.abs(expected).max() > 0


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
        "identity_own": 0.534, "identity_0_30": 0.57, "identity_20_30": 0.6, "apd_sides_rad": 0.05, "time_s": 0.25,
        "aa": {"age": 1.51}, "ad": {"age": 0.82}, "ad_per_aa": {"age": 0.54},
        "identity_edited": {"age": 0.31, "wide_mouth": 0.2}, "protocol": "P.", "spread": {"identity_own": 0.01},
        "before": {"identity_own": 0.6, "bench": {"seconds": {"GLB": 3.0}}},
        "bench": {"seconds": {"GLB": 1.25}},
        "spaces": {
            "age": {"origin": {"aa": 1.5, "ad": 1.0}, "inversion": {"aa": 1.5, "ad": 0.5}},
            "smile": {"origin": {"aa": 1.5, "ad": 0.6}, "inversion": {"aa": 1.5, "ad": 0.7}},
        },
    }  # fmt: skip
    text = tables(figures, {"age": 0.93})
    assert "| identity distance, photo's camera | 0.600 | 0.534 ± 0.010 | at most 0.42 |" in text
    assert "| GLB, s | 3.00 | 1.25 | 2 |" in text and "| APD, rad | - | - | under 0.06 |" in text
    assert "| Ours | 0.534 ± 0.010 | 0.570 | 0.600 | 0.050 | 0.250 |" in text
    assert "| AA | 1.51 | - | - |" in text and "| identity distance | 0.310 | - | - |" in text
    assert "| Age | 0.930 | 1.51 | 0.82 | 0.54 | 0.31 |" in text and "| wide_mouth | - | - | - | - | 0.20 |" in text
    assert "| mean | 1.50 | 1.50 | 0.80 | 0.60 |" in text
    assert "### FID and KID (Table 7)\n" in text and "Two views of one head" not in text


def test_fid_is_told_with_its_number_of_pictures():
    figures = {"aa": {}, "protocol": "P.", "n": 40, "fid_ori": 8.4, "fid_n": 200, "fid_la": 9.4}
    text = tables(figures, {})
    assert "### FID and KID (Table 7), n = 200 reconstructions against as many photos" in text
    assert "| FID, photo's camera (n = 200) | - | 8.40 | - |" in text and "| GLB, s | - | - | 2 |" in text
    readme = with_headlines(f"{BEGIN}{END}", figures)
    assert "| FID, large angles (n = 200) | 9.40 | - |" in readme and "on 40 held-out photos" in readme


def test_earlier_figures_stand_beside_those_of_as_many_photos_only():
    earlier = {"identity_own": 0.6, "fid_ori": 9.0, "fid_n": 300, "protocol": "Old.", "before": {"identity_own": 0.9}}
    assert compared_before(earlier, {"fid_n": 1000}) == {"identity_own": 0.6}
    assert compared_before(earlier, {"fid_n": 300}) == {"identity_own": 0.6, "fid_ori": 9.0}
    # An APD of yaw and pitch is none of yaw, pitch and roll.
    assert compared_before(earlier | {"apd_rad": 0.04}, {"fid_n": 9, "pose_angles": 3}) == {"identity_own": 0.6}
    earlier |= {"apd_rad": 0.04, "pose_angles": 3}
    assert compared_before(earlier, {"fid_n": 9, "pose_angles": 3}) == {"identity_own": 0.6, "apd_rad": 0.04}


def test_the_worst_group_is_said():
    groups = {name: {"n": 5, "held": 1, "identity_own": far} for name, far in (("a", 0.4), ("b", 0.4), ("c", 0.55))}
    worst = worst_group(groups)
    assert worst == {"name": "c", "mean": 0.45, "above_mean": 0.2222} and worst_group({}) is None
    text = tables({"aa": {}, "protocol": "P.", "groups": groups, "worst_group": worst}, {})
    assert "| c | 5 | 1 | 0.550 |" in text and "c, 22% above the mean of the groups (0.450), **beyond**" in text


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    keys = ("smile", "age", "eyeglasses", "gender", "hat")
    names = tuple(ATTRIBUTES[key].celeba for key in keys)
    return HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, names, 5).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Packed photos of coloured noise with a person in the middle; a fifth are whole, the others FairFace's."""
    folder, rng, count = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), HELD + OTHERS
    files = []
    for _ in range(count):
        bgra = rng.integers(0, 256, (8, 8, 4), np.uint8).repeat(32, 0).repeat(32, 1)
        bgra[..., 3] = 0
        bgra[40:, 40:-40, 3] = 255
        files.append(cv2.imencode(".webp", bgra, [cv2.IMWRITE_WEBP_QUALITY, 80])[1].ravel())
    full = np.arange(count) % 5 == 0
    np.savez(
        folder / "photos.npz", blob=np.concatenate(files), ends=np.cumsum([len(file) for file in files]),
        corners=np.tile([[0, 0], [256, 0], [256, 256], [0, 256]], (count, 1, 1)).astype(np.float16),
        lm=rng.normal(size=(count, 6, 3)).astype(np.float16),
        pose=rng.uniform(-0.3, 0.3, (count, 2)).astype(np.float32), full=full, held=np.arange(count) < HELD,
        name=np.array([f"club/{i}" if full[i] else f"ff/{i}" for i in range(count)]),
    )  # fmt: skip
    people = [(("Male", "Female")[i % 2], ("White", "Indian", "Black")[i % 3]) for i in range(count)]
    rows = [
        f"train/{i}.jpg,{'Oct-19' if i < 9 else '60-69'},{sex},{race},TRUE" for i, (sex, race) in enumerate(people)
    ]
    (folder / "fairface_label_train.csv").write_text("\n".join(["file,age,gender,race,service_test", *rows]))
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory, reader):
    """The options that name the networks, but for the weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("networks")
    lite0 = {name: tensor for name, tensor in EfficientNetLite0().state_dict().items() if "num_b" not in name}
    save_file(lite0, folder / "lite0.safetensors")
    FaceIdentity(4, ((4, False), (8, True)), 8).save_pretrained(folder / "identity")
    FaceMesh(32, (4, 4, 8, 8), 6, 2, 8).save_pretrained(folder / "mesh")
    reader.save_pretrained(folder / "reader")
    return {
        "--reader": folder / "reader", "--identity": folder / "identity", "--mesh": folder / "mesh",
        "--lite0": folder / "lite0.safetensors",
    }  # fmt: skip


def in_words(options: dict) -> list:
    return [word for pair in options.items() for word in pair]


def test_subjects_are_held_out_first(photos):
    subjects = Subjects(photos, None, None, HELD + 3, 8, np.random.default_rng(0))
    assert subjects.held.tolist() == list(range(HELD)) and len(subjects.shown) == 5 + 8
    assert (
        subjects.many[:HELD].tolist() == subjects.held.tolist()
        and not subjects.photos.held[subjects.many[HELD:]].any()
    )
    assert set(subjects.groups) == {"female", "male", "White", "Indian", "Black"}
    # Photos of the training fill a group up only where too few are held.
    assert len(subjects.groups["female"]) == 8 and (subjects.groups["female"] < HELD).all()
    other = Subjects(photos, None, 4, 6, 8, np.random.default_rng(1))
    assert len(other.held) == 4 and len(other.many) == 6 and len(other.groups["Black"]) > 2


def test_mirrored_photos_stand_behind_the_others(photos):
    plain = Subjects(photos, None, 4, 6, 8, np.random.default_rng(0))
    both = Subjects(photos, None, 4, 6, 8, np.random.default_rng(0), mirror=True)
    count = HELD + OTHERS
    assert both.held.tolist() == [*plain.held, *plain.held + count] and len(both.many) == 12
    assert [both.held[part].tolist() for part in both.alone] == [plain.held.tolist(), (plain.held + count).tolist()]
    rows = np.array([1, 1 + count])
    pixels = both.photos.pixels(rows)
    assert (pixels[0] == plain.photos.pixels(rows[:1])[0]).all() and (pixels[1] == pixels[0, :, ::-1]).all()
    yaw, pitch = plain.photos.pose[1]
    assert both.photos.pose[rows].tolist() == [[yaw, pitch], [-yaw, pitch]]
    assert both.labels["gender"][rows].tolist() == 2 * [plain.labels["gender"][1]]
    assert all((both.groups[name] == group).all() for name, group in plain.groups.items())
    # A photo that ends on the left ends on the right in the mirror.
    both.photos.photos.corners[:] = [[64, 0], [256, 0], [256, 256], [64, 256]]
    seen = WithMirrored(both.photos.photos).corners[rows]
    first, second = inside_photo(torch.from_numpy(seen), 256)[:, 0]
    assert torch.equal(second, first.flip(1)) and 0.7 < first.mean() < 0.75


def test_labels_are_joined_by_number(photos, tmp_path):
    table = photos / "fairface_label_train.csv"
    labels = fairface_labels(np.array(["ff/1", "club/1", "ff/999"]), table)
    assert labels["gender"].tolist() == ["Female", "", ""] and labels["race"].tolist() == ["Indian", "", ""]
    assert {name: member.tolist() for name, member in group_members(labels).items()} == {
        "female": [True, False, False], "Indian": [True, False, False],
    }  # fmt: skip
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not FairFace's table"):
        fairface_labels(np.array(["ff/1"]), tmp_path / "other.csv")


class TinyFeatures(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool) -> torch.Tensor:
        assert images.dtype == torch.uint8 and return_features
        return images.float().mean(3)[..., :6].mean(2) / 255


def test_photos_are_evaluated_from_end_to_end(tiny_weights, networks, photos, tmp_path, capsys):
    torch.jit.script(TinyFeatures()).save(tmp_path / "features.pt")
    (tmp_path / "before.json").write_text(json.dumps({"identity_own": 0.6, "protocol": "Old."}))
    (tmp_path / "bench.json").write_text(json.dumps({"seconds": {"GLB": 1.5}, "machine": "a machine"}))
    words = [
        "--weights", tiny_weights, "--data", photos, *in_words(networks), "--fid-photos", HELD + 2,
        "--group-photos", 9, "--edited", 3, "--seeds", 0, 1, "--two-poses", 5,
        "--fid-network", tmp_path / "features.pt", "--origin", tiny_weights / "directions", "--origin-photos", 4,
        "--compare", f"w/o ATS={tiny_weights / 'encoder'}", "--before", tmp_path / "before.json",
        "--bench", tmp_path / "bench.json", "--out", tmp_path / "out.json", "--sheets", tmp_path / "sheets",
        "--threads", 1,
    ]  # fmt: skip
    assert run(evaluate.main, *words) == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    for name in (
        "identity_own", "identity_frontal", "identity_strangers", "identity_20_30", "nearest_of_20", "person_psnr_db",
        "lpips_like", "apd_rad", "apd_sides_rad", "fid_ori", "fid_la", "kid_la", "time_s",
    ):  # fmt: skip
        assert np.isfinite(figures[name]), name
    assert 0 <= figures["nearest_of_20"] <= 1 and figures["n"] == HELD and figures["seed"] == 0
    bands = [figures[f"identity_{band}"] for band in ("0_10", "10_20", "20_30")]
    assert figures["identity_0_30"] == pytest.approx(np.mean(bands), abs=2e-4)
    assert figures["two_poses"]["samples"]["n"] == figures["two_poses"]["photos"]["n"] == 5
    assert all(row["same"] < row["others"] for row in figures["two_poses"].values())
    assert set(figures["apd_sides_by_angle_rad"]) == {"yaw", "pitch", "roll"} and figures["pose_angles"] == 3
    squares = [figures["apd_sides_by_angle_rad"][angle] ** 2 for angle in ("yaw", "pitch", "roll")]
    assert figures["apd_sides_rad"] == pytest.approx(np.mean(squares) ** 0.5, abs=2e-3)  # means of two seeds
    assert figures["groups"]["female"]["n"] == 9 and set(figures["reader_accuracy"]) == {"Male", "Young"}
    assert figures["worst_group"]["name"] in figures["groups"]
    assert set(figures["aa"]) == {"smile", "age", "eyeglasses", "gender", "hat"}  # what the reader knows
    assert set(figures["aa"]) < set(figures["identity_edited"]) and min(figures["identity_edited"].values()) > 0
    # The same encoder and the same directions under another name give the same figures.
    assert figures["compared"]["w/o ATS"] == figures["compared"]["bundled"]
    assert figures["compared"]["bundled"]["identity_own"] == pytest.approx(figures["identity_own"], abs=1e-3)
    assert figures["spaces"]["age"]["origin"] == figures["spaces"]["age"]["inversion"]
    assert set(figures["spaces"]) == {"age", "smile", "gender", "eyeglasses"}
    assert figures["seeds"] == [0, 1] and figures["spread"]["identity_20_30"] > 0
    # The held ones are the same whatever the seed; what takes long is measured once.
    assert figures["spread"]["identity_own"] == 0 and "fid_ori" not in figures["spread"]
    assert figures["before"] == {"identity_own": 0.6} and figures["bench"]["seconds"]["GLB"] == 1.5
    assert f"{HELD} photos of real people" in figures["protocol"]
    assert "features.pt (given by the user)" in figures["protocol"]
    text = (tmp_path / "out.md").read_text()
    assert all(f"Table {number}" in text for number in (2, 3, 4, 5, 7)) and text in capsys.readouterr().out + "\n"
    sizes = {path.stem: Image.open(path).size for path in (tmp_path / "sheets").iterdir()}
    assert sizes == {
        "photos_whole": (6 * 256, 5 * 256), "photos_cut": (6 * 256, 8 * 256), "edits": (3 * 256, 11 * 256),
        "curves": (4 * 320, 320),
    }  # fmt: skip


def test_the_papers_views_mirrored_photos_and_a_classifier_of_celeba(
    tiny_weights, networks, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("train.inversion.features._SIDE", 32)  # pixels that the ResNet-50 sees, for speed
    state = AttributeClassifier().half().state_dict()
    state = {f"net.{name.removeprefix('body.')}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": state}, tmp_path / "resnet50.ckpt")
    options = networks | {"--reader": tmp_path / "resnet50.ckpt"}
    words = [
        "--weights", tiny_weights, "--data", photos, *in_words(options), "--photos", 2, "--views", 2, "--mirror",
        "--fid-photos", 2, "--group-photos", 0, "--edited", 1, "--two-poses", 2, "--out", tmp_path / "out.json",
        "--threads", 1,
    ]  # fmt: skip
    assert run(evaluate.main, *words) == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert (figures["n"], figures["mirrored"], figures["views"], figures["fid_n"]) == (4, True, 2, 4)
    bands = [figures[f"identity_{band}"] for band in ("0_10", "10_20", "20_30")]
    assert figures["identity_0_30"] != pytest.approx(np.mean(bands), abs=1e-6)  # of views of its own
    assert set(figures["aa"]) == KNOWN_TO_CELEBA
    for told in (
        "2 photos, and each of them mirrored", "a-b: 2 views per head", "0-30: 2 more views per head, yaw uniform",
        "(8 pictures", "logits of resnet50.ckpt (a ResNet-50, given by the user)", "mean over the other 39",
    ):  # fmt: skip
        assert told in f"{figures['protocol']} {figures['edits_protocol']}", told
    with pytest.raises(SystemExit):
        run(evaluate.main, *words, "--inversion", "hybrid=2")
    assert "leave it out with --inversion" in capsys.readouterr().err


def test_ways_of_inversion_join_the_figures_that_are_there(
    tiny_weights, networks, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("preim3d.inversion.STEPS", {"latent": 2, "pti": 2, "hybrid": 2})
    out = tmp_path / "out.json"
    words = [
        "--weights", tiny_weights, "--data", photos, *in_words(networks), "--photos", 3, "--fid-photos", 4,
        "--group-photos", 2, "--edited", 1, "--out", out, "--threads", 1,
    ]  # fmt: skip
    ways = ["--inversion", "hybrid=2", "latent=2", "--outcomes", tmp_path / "outcomes", "--sheets", tmp_path]
    assert run(evaluate.main, *words, *ways) == 1
    assert "out.json is not there: evaluate the whole first" in capsys.readouterr().err
    out.write_text("{}")
    assert run(evaluate.main, *words, *ways) == 1
    assert "out.json lacks those of a whole evaluation: evaluate the whole first" in capsys.readouterr().err
    assert run(evaluate.main, *words) == 0
    before = json.loads(out.read_text())
    assert before["nearest_of_20"] is None  # three people are no twenty
    out.write_text(json.dumps(before | {"aa": {}, "mean_ad": 9.0, "edits_protocol": "Of before."}))
    assert run(evaluate.main, *words, "--only", "edits") == 0
    assert json.loads(out.read_text()) == before  # edits alone are measured on the same photos
    assert run(evaluate.main, *words, *ways) == 0
    figures = json.loads(out.read_text())
    assert {**figures, **before} == figures | {"spread": before.get("spread", {})} | before
    hybrid = figures["inversions"]["hybrid"]
    assert hybrid["n"] == 2 and hybrid["identity_own"] <= hybrid["encoder"]["identity_own"] + 0.05
    assert hybrid["time_s"] > hybrid["encoder"]["time_s"] > 0
    assert "| Ours, then pivotal tuning (IDE-3D's way) (n = 2) |" in out.with_suffix(".md").read_text()
    assert (tmp_path / "inversions.png").is_file() and len(list((tmp_path / "outcomes").iterdir())) == 6
    # A second run takes what the first one kept: the very same latents and tunings.
    monkeypatch.setattr("train.judging.inversions.invert_photo", None)
    assert run(evaluate.main, *words, *ways) == 0
    assert json.loads(out.read_text())["inversions"]["latent"] == figures["inversions"]["latent"]


def test_parts_are_measured_alone_too(tiny_weights, networks, photos, tmp_path, capsys):
    out = tmp_path / "out.json"
    words = ["--weights", tiny_weights, "--data", photos, *in_words(networks), "--fid-photos", 4, "--out", out]
    before = {"aa": {}, "protocol": "Of before.", "spread": {"spaces": 1, "identity_own": 0.1}, "fid_ori": 5}
    out.write_text(json.dumps(before))
    for part, option in (("spaces", "--origin"), ("compared", "--compare")):
        with pytest.raises(SystemExit):
            run(evaluate.main, *words, "--only", part)
        assert f"--only {part} needs {option}" in capsys.readouterr().err
    origin = ["--origin", tiny_weights / "directions", "--origin-photos", 2]
    compared = ["--compare", f"plain={tiny_weights / 'encoder'}"]
    assert run(evaluate.main, *words, *origin, *compared, "--only", "spaces", "compared", "--threads", 1) == 0
    figures = json.loads(out.read_text())
    assert set(figures) - set(before) == {
        "spaces", "origin_photos", "spaces_protocol", "compared", "compared_protocol",
    }  # fmt: skip
    assert figures["fid_ori"] == 5 and figures["spread"] == {"identity_own": 0.1}  # one seed has no spread
    assert figures["compared"]["plain"] == figures["compared"]["bundled"]
    text = out.with_suffix(".md").read_text()
    assert "Of before." in text and "2 photos, 0 of them of the encoder's training" in text and "Table 4" in text


def test_ways_with_networks_of_their_own_are_measured_too(tiny_weights, networks, photos, tmp_path, capsys):
    encoder = PortraitEncoder.from_pretrained(tiny_weights / "encoder")
    generator = TriPlaneGenerator.from_pretrained(tiny_weights / "generator")
    config = dict(encoder.config) | {"num_ws": 1, "w_dim": generator.config.z_dim}
    PortraitEncoder.from_config(config).save_pretrained(tmp_path / "z" / "encoder")
    with torch.no_grad():
        generator.decoder.net[2].bias[1:] += 2  # colours that the weights' own generator never makes
    generator.save_pretrained(tmp_path / "tuned" / "generator")
    encoder.save_pretrained(tmp_path / "tuned" / "encoder")
    out = tmp_path / "out.json"
    hybrid = {"n": 2, "identity_own": 0.25}
    earlier = {"aa": {}, "protocol": "How.", "inversions": {"hybrid": hybrid}, "inversions_protocol": "As before."}
    out.write_text(json.dumps(earlier))
    words = [
        "--weights", tiny_weights, "--data", photos, *in_words(networks), "--photos", 2, "--fid-photos", 2,
        "--group-photos", 0, "--out", out, "--threads", 1, "--outcomes", tmp_path / "outcomes", "--sheets", tmp_path,
    ]  # fmt: skip
    ways = [f"z={tmp_path / 'z'}=2", f"tuned={tmp_path / 'tuned'}=2"]
    assert run(evaluate.main, *words, "--inversion", *ways) == 0
    found = json.loads(out.read_text())["inversions"]
    assert list(found) == ["hybrid", "z", "tuned"] and found["hybrid"] == hybrid
    # The same encoder and feedback, so that only the generator's colours differ.
    assert found["z"]["encoder"] == found["tuned"]["encoder"]
    own, tuned = (figures["person_psnr_db"] for figures in (found["tuned"]["encoder"], found["tuned"]))
    assert abs(own - tuned) > 0.3
    # What is quick is not kept: the folder would not know whose it was.
    assert {file.name.split("-")[0] for file in (tmp_path / "outcomes").iterdir()} == {"encoder"}
    text = out.with_suffix(".md").read_text()
    assert "As before." in text and "Ways of inversion (z, tuned)" in text
    assert "| Encoder to Z (Pixel2NeRF's way) (n = 2) |" in text
    assert Image.open(tmp_path / "inversions.png").size == (7 * 256, 2 * 256)  # two photos, two ways
    swapped = f"z={tmp_path / 'tuned'}=2"
    assert run(evaluate.main, *words, "--inversion", swapped) == 1
    assert "`z` needs one that makes 1 x" in capsys.readouterr().err
    for wrong in ("z=2", "hybrid=runs=2", "tuned=runs=1", "tuned==2"):
        with pytest.raises(SystemExit):
            run(evaluate.main, *words, "--inversion", wrong)
        assert "WAY=FOLDER=PHOTOS" in capsys.readouterr().err


def test_a_front_gets_the_back_of_another_generator():
    torch.manual_seed(0)
    whole = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR, has_back=True)
    front = TriPlaneGenerator(z_dim=5, **TINY_GENERATOR)
    joined = with_back(front, whole)
    assert joined.config.has_back
    assert torch.equal(joined.decoder.net[0].weight, front.decoder.net[0].weight)
    of_back = {name: tensor for name, tensor in whole.state_dict().items() if name.startswith("back.")}
    assert of_back and all(torch.equal(joined.state_dict()[name], tensor) for name, tensor in of_back.items())
    with pytest.raises(ValueError, match="another shape"):
        with_back(TriPlaneGenerator(z_dim=6, **TINY_GENERATOR), whole)


def test_mistakes_are_one_sentence(tiny_weights, networks, photos, tmp_path, capsys):
    common = ["--weights", tiny_weights, "--out", tmp_path / "out.json"]

    def complaint(**given):
        options = networks | {"--data": photos} | {f"--{name}": value for name, value in given.items()}
        assert run(evaluate.main, *common, *in_words(options)) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("train.evaluate: ")
        return said

    assert "holds no packed photos" in complaint(data=tmp_path)
    assert "none" in complaint(reader=tmp_path / "none")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "does not hold EfficientNet-Lite0's" in complaint(lite0=tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "does not hold EfficientNet-Lite0's" in complaint(lite0=tmp_path / "other.safetensors")
    assert "none.safetensors" in complaint(lite0=tmp_path / "none.safetensors")
    (tmp_path / "text.json").write_text("no figures")
    assert "is no JSON of figures" in complaint(before=tmp_path / "text.json")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "is not FairFace's table" in complaint(labels=tmp_path / "other.csv")
    stored = dict(np.load(photos / "photos.npz"))
    (tmp_path / "seen").mkdir()
    np.savez(tmp_path / "seen" / "photos.npz", **stored | {"held": np.zeros(HELD + OTHERS, bool)})
    assert "fewer than two photos that are held out" in complaint(data=tmp_path / "seen")
    with pytest.raises(SystemExit):
        run(evaluate.main, *common, *in_words(networks), "--data", photos, "--compare", "folder")
    assert "NAME=ENCODER" in capsys.readouterr().err


def test_curves_are_drawn():
    curve = {"curve": {"0": {"aa": 0, "ad": 0}, "1": {"aa": 1.0, "ad": 0.5}, "2": {"aa": 2.0, "ad": 0.25}}}
    picture = draw_curves({"3D": {"age": {"origin": curve, "inversion": curve}}})
    assert picture.size == (320, 320) and (np.asarray(picture) == (30, 111, 200)).all(2).sum() > 100


def test_flat_pictures_have_a_line_of_their_own_on_the_same_axes():
    def furthest(down, across):  # of a curve, to the right
        panel = np.asarray(page)[down * 320 : down * 320 + 320, across * 320 : across * 320 + 320]
        return np.argwhere((panel == (30, 111, 200)).all(2))[:, 1].max()

    def curve(aa, ad):
        return {"inversion": {"curve": {"0": {"aa": 0, "ad": 0}, "1": {"aa": aa, "ad": ad}}}}

    page = draw_curves({"3D": {"age": curve(2, 2), "goatee": curve(1, 1)}, "2D": {"goatee": curve(1, 1)}})
    assert page.size == (640, 640) and (np.asarray(page)[320:, :320] == page.getpixel((0, 0))).all()
    # The same point is at the same place in both lines, half way to the other's.
    assert furthest(0, 1) == furthest(1, 1) == furthest(0, 0) - 108


def test_curves_are_drawn_of_an_evaluation_and_their_axes_are_round(tmp_path, capsys):
    assert (
        ticks(1.55) == [0, 0.5, 1, 1.5, 2]
        and ticks(2) == [0, 0.5, 1, 1.5, 2]
        and np.allclose(ticks(0.05), np.arange(6) / 100)
    )
    curve = {"curve": {"0": {"aa": 0, "ad": 0}, "1": {"aa": 1.0, "ad": 0.5}}}
    figures, picture = tmp_path / "evaluation.json", tmp_path / "curves.png"
    figures.write_text(
        json.dumps({"spaces": {"age": {"origin": curve, "inversion": curve}, "smile": {"origin": curve}}})
    )
    assert draw_curves_of([str(figures), "--out", str(picture)]) == 0
    assert Image.open(picture).size == (640, 320)
    assert draw_curves_of([str(figures), "--flat", str(figures), "--out", str(picture)]) == 0
    assert Image.open(picture).size == (640, 640)
    for words in ('{"mean_aa": 1}', "[]", "no JSON"):
        figures.write_text(words)
        assert draw_curves_of([str(figures), "--out", str(tmp_path / "none.png")]) == 1
        assert "has no curves of two spaces: make it with" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()


def test_spaces_are_compared_where_a_curve_first_reaches_the_altering():
    curve = np.array([(0, 0, 0), (1, 1.0, 0.2), (2, 2.0, 0.6), (3, 0.5, 0.9)])  # too strong an edit alters less
    assert at_altering(curve, 1.5) == pytest.approx({"aa": 1.5, "ad": 0.4, "strength": 1.5})
    assert at_altering(curve, 2.0) == pytest.approx({"aa": 2.0, "ad": 0.6, "strength": 2.0})
