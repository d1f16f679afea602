"""The stages after the generator, end to end on a made-up dataset of a few tiny 'heads': attributes, manifold,
directions."""

import json

import numpy as np
import pytest
import torch
from packing import pack_faces
from safetensors.torch import load_file, save_file

from preim3d.camera import camera_from_angles
from preim3d.directions import Directions
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.reader import HeadReader, Reading
from train.editing import directions, manifold
from train.heads.dataset import HeadsDataset
from train.judging import attributes
from train.judging.reader_batches import Examples
from train.loop.progress import Progress
from train.model.batches import aligned_theta, draw_photos, draw_plain
from train.photos.photo_labels import LABELS, kept_out
from train.photos.real_photos import RealPhotos


HEADS, FEATURES, SIZE, WIDE = 40, 6, 32, 40
NAMES = ["Smiling", "Young", "Wearing_Hat", "Eyeglasses"]


def fake_heads(folder):
    """A dataset with the layout of `train.heads render`: each 'head' is a disc whose colour is its features."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    features = rng.standard_normal((HEADS, FEATURES)).astype(np.float32)
    attributes = 1 / (1 + np.exp(-4 * features[:, : len(NAMES)]))

    def disc(size, views):
        y, x = np.mgrid[:size, :size] / size - 0.5
        images = np.zeros((HEADS, views, size, size, 4), np.uint8)
        images[..., :3] = (127 + 40 * features[:, None, None, None, :3]).clip(0, 255)
        images[..., 3] = np.where(x**2 + y**2 < 0.1, 255, 0)
        return images

    def cameras(views, focal):
        yaw, pitch = rng.uniform(-0.7, 0.7, (HEADS, views)), rng.uniform(-0.5, 0.5, (HEADS, views))
        return camera_from_angles(torch.tensor(yaw).float(), torch.tensor(pitch).float(), focal=focal).numpy()

    points = np.array([[0.4, 0.39], [0.6, 0.39], [0.5, 0.52], [0.42, 0.61], [0.58, 0.61]], np.float32) * WIDE
    arrays = {
        "images": disc(SIZE, 5),
        "cameras": cameras(5, 4.2647),
        "depth": np.zeros((HEADS, 5, SIZE, SIZE), np.float16),
        "photos": disc(WIDE, 2),
        "photo_cameras": cameras(2, 3.41),
        "photo_points": np.tile(points, (HEADS, 2, 1, 1)),
        "done": np.ones(HEADS, np.uint8),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(
        folder / "heads.npz",
        z=features,
        features=features,
        attributes=attributes.astype(np.float32),
        attribute_names=NAMES,
    )


def small_generator():
    """One that draws pictures of the size of `fake_heads`."""
    return TriPlaneGenerator(
        z_dim=FEATURES,
        c_dim=0,
        w_dim=8,
        plane_resolution=8,
        plane_channels=4,
        channel_base=64,
        channel_max=8,
        decoder_hidden=8,
        image_resolution=SIZE,
        ray_resolution=16,
        superresolution_input=16,
        superresolution_blocks=({"in": 4, "out": 8, "up": True},),
        superresolution_clamp=None,
        coarse_samples=4,
        fine_samples=4,
        background=0.82,
    )


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Every stage run for a few steps, as from the command line."""
    folder = tmp_path_factory.mktemp("stages")
    fake_heads(folder / "heads")
    torch.manual_seed(0)
    generator = small_generator()
    generator.save_pretrained(folder / "weights" / "generator")

    def run(stage, *words):
        stage.main([str(word) for word in (*words, "--threads", 1)])

    encoder = PortraitEncoder(
        input_size=SIZE, units=(1, 1, 1, 1), depths=(16, 16, 16, 16), pool=2, feature_dim=8,
        num_ws=generator.num_ws, w_dim=8,
    )  # fmt: skip
    encoder.eval().save_pretrained(folder / "weights" / "encoder")
    FaceIdentity(8, ((8, False), (16, True)), 4).eval().save_pretrained(folder / "weights" / "identity")
    pack_faces(folder / "photos")
    run(attributes, *READER, *inputs(folder), "--out", folder / "attributes", "--steps", 4)
    known = ("--weights", folder / "weights", "--reader", folder / "attributes" / "reader")
    photos = ("--data", folder / "photos", "--labels", folder / "photos" / "labels.csv")
    run(manifold, *known, *photos, "--out", folder / "latents.npz")
    run(manifold, *known, "--data", folder / "heads", "--samples", 20, "--out", folder / "origin.npz")
    offset = np.random.default_rng(0).standard_normal((1, generator.num_ws, 8))
    np.savez(
        folder / "pairs.npz", names=["hat"], offsets=offset, agreement=[0.5],
        network=np.load(folder / "latents.npz")["network"],
    )  # fmt: skip
    lax = ("--heads", 4, "--least-accuracy", 0, "--least-auc", 0, "--least-altering", -99, "--leave-out", "gender=No.")
    run(
        directions, *known, *lax, "--latents", folder / "latents.npz", "--pairs", folder / "pairs.npz",
        "--photos", folder / "photos", "--judged", 4, "--out", folder / "weights" / "directions",
    )  # fmt: skip
    run(directions, *known, *lax, "--latents", folder / "origin.npz", "--out", folder / "origin")
    return folder


READER = (
    "--batch", 8, "--precision", "float32", "--size", SIZE, "--depths", 16, 16, 16, 16, "--units", 1, 1, 1, 1,
    "--embedding", 16, "--reconstructions", 12,
)  # fmt: skip


def inputs(folder):
    return (
        "--data", folder / "heads", "--held-out", folder / "heads", "--photos", folder / "photos",
        "--labels", folder / "photos" / "labels.csv", "--weights", folder / "weights",
    )  # fmt: skip


def test_attributes_report_their_accuracy_on_what_was_kept_out(stages):
    report = json.loads((stages / "attributes" / "report.json").read_text())
    assert report["plain"]["n"] == HEADS and report["trained"]["steps"] == 4
    assert set(report["photos"]["attributes"]) == set(NAMES)
    photos = RealPhotos(stages / "photos")
    out = kept_out(photos)
    assert report["real"]["n"] == out.sum() and report["trained"]["photos"] == (~out).sum()
    assert set(report["real"]["attributes"]) == set(LABELS)


def test_the_reader_is_halved_but_for_running_statistics(stages):
    folder = stages / "attributes" / "reader"
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in stored.items() if tensor.is_floating_point()}
    assert all(kind == (torch.float32 if "running_" in name else torch.float16) for name, kind in kinds.items())
    reader = HeadReader.from_pretrained(folder)
    assert list(reader.config.attribute_names) == NAMES + [name for name in LABELS if name not in NAMES]
    assert len(reader.config.logit_std) == len(reader.config.attribute_names)


def test_unknown_labels_take_no_part_in_the_loss():
    logits = torch.tensor([[0.0, 9.0, -9.0], [0.0, 0.0, 0.0]], requires_grad=True)
    reading = Reading(torch.zeros(2, 4), logits, torch.zeros(2, 1), torch.zeros(2, 2))
    nan = torch.nan
    truth = Examples(
        torch.zeros(2, 3, 8, 8), torch.tensor([[1.0, nan, nan], [0.0, 1.0, 0.0]]), torch.tensor([[nan], [2.0]]),
        torch.zeros(2, 2),
    )  # fmt: skip
    terms = attributes.reading_loss(reading, truth)
    assert abs(terms["attributes"].item() - np.log(2)) < 1e-6 and terms["features"] == 4 and terms["angles"] == 0
    terms["attributes"].backward()
    assert logits.grad[0, 1:].tolist() == [0, 0]
    assert torch.isclose(logits.grad[0].abs().sum(), logits.grad[1].abs().sum())  # one label, or many: weighed alike


def test_latents_are_in_the_shape_of_the_generator(stages):
    generator = TriPlaneGenerator.from_pretrained(stages / "weights" / "generator")
    for name, count in (("latents", 30), ("origin", 20)):
        latents = np.load(stages / f"{name}.npz")
        assert latents["w"].shape == (count, generator.num_ws, generator.config.w_dim)
        assert latents["logits"].shape == latents["labels"].shape == (count, len(latents["attribute_names"]))
        assert np.isfinite(latents["w"]).all()
    # Rendered heads say nothing of what only photos are labelled with.
    assert np.isnan(latents["labels"][:, list(latents["attribute_names"]).index("Wide_Face")]).all()


def test_directions_are_a_pipeline_component(stages):
    component = Directions.from_pretrained(stages / "weights" / "directions")
    assert {"smile", "age", "hat", "wide_face"} <= set(component.names)
    assert "gender" not in component.names and component.config.left_out["gender"] == "No."
    assert component.config.space == "inversion" and len(component.config.fingerprint) == 16
    assert torch.isfinite(component.vectors).all() and component.vectors.abs().max() > 0
    report = json.loads((stages / "weights" / "directions.json").read_text())["directions"]
    assert report["hat"]["learned_from"] == "pairs" and report["smile"]["learned_from"] == "labels"
    for one in report.values():
        assert {"aa_plus", "ad_minus", "distance_plus", "distance_minus"} <= set(one)
    assert Directions.from_pretrained(stages / "origin").config.space == "origin"


def test_a_stage_resumes_and_reads_no_loss_until_it_is_shown(stages, capsys, monkeypatch):
    advance, taken = Progress.advance, []

    def taking(self, images, **terms):
        taken.extend(terms.values())
        return advance(self, images, **terms)

    monkeypatch.setattr(Progress, "advance", taking)
    words = (*READER, *inputs(stages), "--out", stages / "attributes", "--steps", 6, "--threads", 1)
    assert attributes.main([str(word) for word in words]) == 0
    assert "at step 4" in capsys.readouterr().out
    report = json.loads((stages / "attributes" / "report.json").read_text())
    assert report["trained"]["steps"] == 6
    # Not numbers: to read a loss on a GPU is to wait for it.
    assert taken and all(isinstance(term, torch.Tensor) and not term.requires_grad for term in taken)


def test_a_reader_that_was_stopped_goes_on_as_if_it_had_not_been(stages, tmp_path, monkeypatch):
    """With dropout, which draws from torch's own generator, and a precision that is measured."""
    torch.manual_seed(0)
    save_file(EfficientNetLite0().state_dict(), tmp_path / "lite0.safetensors")
    draw_batch, settle, drawn = attributes.draw_batch, attributes.settle, []

    def learn(out, last=None):
        def draw(*arguments):
            drawn.append(out)
            if drawn.count(out) == last:
                raise OSError("stopped")
            return draw_batch(*arguments)

        monkeypatch.setattr(attributes, "draw_batch", draw)
        words = (*READER, *inputs(stages), "--body", tmp_path / "lite0.safetensors", "--seen", 16)
        words += ("--precision", "auto", "--out", tmp_path / out, "--steps", 3, "--save-seconds", 0, "--threads", 1)
        return attributes.main([str(word) for word in words])

    monkeypatch.setattr(attributes, "HEADS_EPOCHS", 1)
    monkeypatch.setattr(attributes, "settle", lambda *given: settle(*given) and "float32")  # whichever was faster
    assert learn("whole") == 0
    once = drawn.count("whole")
    assert learn("stopped", last=once) == 1  # in the last step
    # Another machine might find the other one faster.
    monkeypatch.setattr(attributes, "settle", lambda *_: pytest.fail("the precision was measured again"))
    assert learn("stopped") == 0
    whole, stopped = (torch.load(tmp_path / out / "checkpoint.pt", weights_only=True) for out in ("whole", "stopped"))
    assert whole["step"] == stopped["step"] == 3 and torch.equal(whole["torch_rng"], stopped["torch_rng"])
    for name, tensor in whole["parts"]["reader"].items():
        assert torch.equal(tensor, stopped["parts"]["reader"][name]), name


def test_batches_have_their_shapes_and_ranges(tmp_path):
    fake_heads(tmp_path / "heads")
    dataset, rng = HeadsDataset(tmp_path / "heads"), np.random.default_rng(0)
    rgba, theta, camera = draw_photos(dataset, np.array([3, 1, 4]), rng)
    assert rgba.shape == (3, 4, WIDE, WIDE) and theta.shape == (3, 2, 3) and camera.shape == (3, 25)
    rgba, camera, views = draw_plain(dataset, np.array([3, 1, 4]), rng)
    assert rgba.shape == (3, 4, SIZE, SIZE) and 0 <= rgba.min() and rgba.max() <= 1 and views.max() < 4


def test_the_aligned_crop_of_the_template_is_the_whole_crop():
    # Section 5 of EG3D's supplement: a frontal face lands with its points here in the 512 px crop.
    points = np.array([[[187.7, 192.3], [324.0, 192.4], [256.7, 266.1], [200.7, 339.7], [310.5, 339.7]]])
    theta = aligned_theta(points, 512)
    expected = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert (theta - expected).abs().max() < 0.01, theta
