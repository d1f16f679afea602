"""The stages after the generator, end to end on a made-up dataset of a few tiny 'heads': attributes, encoder,
manifold, directions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from preim3d.camera import camera_from_angles
from preim3d.directions import Directions
from preim3d.generator import TriPlaneGenerator
from train import attributes, directions, encoder, manifold
from train.batches import aligned_theta, draw_photos, draw_plain
from train.heads.dataset import HeadsDataset
from train.heads_photos import HeadsPhotos


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

    common = ("--data", folder / "heads", "--batch", 8, "--precision", "float32")
    small = ("--size", SIZE, "--depths", 16, 16, 16, 16, "--units", 1, 1, 1, 1, "--embedding", 16)
    run(attributes, *common, *small, "--held-out", folder / "heads", "--out", folder / "attributes", "--steps", 4)
    reader = folder / "attributes" / "reader"
    run(
        encoder, *common, "--generator", folder / "weights" / "generator", "--reader", reader,
        "--out", folder / "encoder", "--steps", 4, "--fit-batches", 2, "--picture-batch", 2, "--picture-every", 2,
        "--pictures-from", 0, "--pool-from", 0,
    )  # fmt: skip
    (folder / "encoder" / "encoder").rename(folder / "weights" / "encoder")
    latents = folder / "latents.npz"
    run(manifold, "--weights", folder / "weights", "--reader", reader, "--data", folder / "heads", "--out", latents)
    run(
        directions, "--weights", folder / "weights", "--reader", reader, "--latents", latents, "--heads", 4,
        "--out", folder / "weights" / "directions", "--scores", "labels",
        "--least-accuracy", 0, "--least-auc", 0, "--least-altering", -99,
    )  # fmt: skip
    return folder


def test_attributes_report_their_accuracy_on_held_out_heads(stages):
    report = json.loads((stages / "attributes" / "report.json").read_text())
    assert report["n"] == HEADS and report["trained"]["steps"] == 4
    assert set(report["photos"]["attributes"]) == set(NAMES)


def test_latents_are_in_the_shape_of_the_generator(stages):
    latents = np.load(stages / "latents.npz")
    generator = TriPlaneGenerator.from_pretrained(stages / "weights" / "generator")
    assert latents["w"].shape == (HEADS, generator.num_ws, generator.config.w_dim)
    assert latents["logits"].shape == latents["labels"].shape == (HEADS, len(NAMES))
    assert np.isfinite(latents["w"]).all()


def test_directions_are_a_pipeline_component(stages):
    component = Directions.from_pretrained(stages / "weights" / "directions")
    assert set(component.names) == {"smile", "age", "eyeglasses", "hat"}
    assert component.config.space == "inversion" and len(component.config.fingerprint) == 16
    assert torch.isfinite(component.vectors).all() and component.vectors.abs().max() > 0


def test_a_stage_resumes(stages, capsys):
    attributes.main([
        "--data", str(stages / "heads"), "--batch", "8", "--precision", "float32", "--size", str(SIZE),
        "--threads", "1",
        "--depths", "16", "16", "16", "16", "--units", "1", "1", "1", "1", "--embedding", "16",
        "--held-out", str(stages / "heads"), "--out", str(stages / "attributes"), "--steps", "6",
    ])  # fmt: skip
    assert "at step 4" in capsys.readouterr().out
    report = json.loads((stages / "attributes" / "report.json").read_text())
    assert report["trained"]["steps"] == 6


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


def test_no_more_rays_are_rendered_than_the_renders_show():
    dataset = SimpleNamespace(features=np.zeros((1, 1)), images=np.zeros((1, 1, 64)))
    config = SimpleNamespace(ray_resolution=64, image_resolution=128)
    generator = SimpleNamespace(config=config, device=torch.device("cpu"))
    assert HeadsPhotos(dataset, generator, 32, 0.2).rays == 32
