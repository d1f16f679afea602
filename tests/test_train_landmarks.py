"""train/photos/landmarks.py, face_boxes.py, grey_photos.py: faces through boxes, and both networks of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from preim3d.camera import camera_from_angles
from preim3d.face_mesh import FaceMesh
from preim3d.fit import CROP_SIDE, TEMPLATE, fit_template
from preim3d.landmarks import LandmarkNetwork
from train.loop.progress import Progress
from train.photos import grey_photos, landmarks
from train.photos.face_boxes import (
    Photos,
    RenderedPhotos,
    Seen,
    five_of_mesh,
    jitter,
    mirror,
    mirror_partners,
    misfit,
    misses,
)
from train.photos.real_photos import CROP_PX, Packed, RealPhotos, encode, pack


FRONTAL = TEMPLATE[:, :2] * [1, -1]  # in units of the template, y down


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    """A heads dataset of two 'photos' a head: white discs at the five points of a transparent picture."""
    folder = tmp_path_factory.mktemp("heads")
    size, rng = 160, np.random.default_rng(0)
    points = np.empty((3, 2, 5, 2), np.float32)
    photos = np.zeros((3, 2, size, size, 4), np.uint8)
    axis = np.arange(size) + 0.5
    for head in range(3):
        for view in range(2):
            points[head, view] = FRONTAL * rng.uniform(45, 55) + 80 + rng.normal(0, 3, (5, 2))
            for x, y in points[head, view]:
                photos[head, view, np.hypot(axis - x, axis[:, None] - y) < 4] = 255
    cameras = camera_from_angles(torch.full((3, 2), 0.2), torch.full((3, 2), -0.1)).numpy()
    arrays = {"photos": photos, "photo_points": points, "photo_cameras": cameras, "done": np.array([1, 0, 1])}
    for name in ("images", "cameras", "depth", *arrays):
        np.save(folder / f"{name}.npy", arrays.get(name, np.zeros(3)))
    np.savez(folder / "heads.npz", z=np.zeros((3, 1)), features=0, attributes=0, attribute_names=[])
    return folder


def mesh_points(rng: np.random.Generator) -> np.ndarray:
    """120 points of no real face [120, 3]; those that `five_of_mesh` starts from lie at the template's five."""
    mesh = np.column_stack([rng.uniform(60, 200, (120, 2)), rng.uniform(-30, 30, 120)])
    five = FRONTAL * CROP_PX / CROP_SIDE + CROP_PX / 2
    for point, numbers in zip(five, ((144, 160, 468), (380, 384, 388), (4,), (76,), (292,))):
        mesh[[number // 4 for number in numbers], :2] = point
    return mesh


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Packed photos: white discs at the five points, the person a square."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(1)
    axis, mesh, packed = np.arange(CROP_PX) + 0.5, mesh_points(np.random.default_rng(2)), []
    for i in range(10):
        lm = mesh + rng.normal(0, 0.3, (120, 3))
        rgba = np.full((CROP_PX, CROP_PX, 4), 30, np.uint8)
        rgba[40:, 40:216, 3] = 255
        for x, y in mesh[[36, 95, 1, 19, 73], :2]:
            rgba[np.hypot(axis - x, axis[:, None] - y) < 5, :3] = 255
        corners = np.array([[20, 0], [236, 0], [236, 256], [20, 256]]) if i % 2 else np.array(
            [[0, 0], [256, 0], [256, 256], [0, 256]]
        )  # fmt: skip
        packed.append(Packed(encode(rgba), corners, lm, (0.1, -0.2), True, i < 2, f"p{i}"))
    pack(folder / "00000.npz", packed)
    return folder


def discs(picture: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The centroids of what is bright near each point."""
    size = picture.shape[-1]
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    found = []
    for x, y in points:
        near = picture * ((axis - x).abs() < 0.1) * ((axis - y).abs() < 0.1)[:, None]
        assert near.sum() > 5
        found.append(torch.stack([(near * axis).sum(), (near * axis[:, None]).sum()]) / near.sum())
    return torch.stack(found)


@pytest.mark.parametrize("side", [2.0, CROP_SIDE])
def test_points_move_with_the_pixels(heads, photos, side):
    real = RealPhotos(photos)
    rendered, crops = RenderedPhotos(heads), Photos(real, False, five_of_mesh(real))
    assert len(rendered) == 4 and len(crops) == 8  # the head that is not done is left out, the held photos too
    boxes = jitter(4, torch.Generator().manual_seed(1), zoom=0.3, shift=0.2, turn_deg=30)
    seen = rendered.seen(np.arange(4), boxes, side, 128)
    for alpha, five in zip(seen.rgba[:, 3], seen.five):
        assert (discs(alpha, five) - five).norm(dim=1).max() < 0.02
    assert torch.allclose(seen.angles, torch.tensor([0.2, -0.1]), atol=1e-5) and seen.mesh.isnan().all()
    seen = crops.seen(np.arange(4), boxes, side, 128)
    for picture, mesh in zip(seen.rgba[:, 0], seen.mesh):
        five = mesh[[36, 95, 1, 19, 73], :2]
        assert (discs((picture - 0.3).clamp(min=0), five) - five).norm(dim=1).max() < 0.03


def test_the_right_box_is_the_crop(photos):
    real = RealPhotos(photos)
    crops = Photos(real, True, five_of_mesh(real))
    seen = crops.seen(np.arange(2), torch.eye(3).repeat(2, 1, 1), CROP_SIDE, 64)
    assert torch.allclose(
        (seen.mesh[..., :2] + 1) * CROP_PX / 2, torch.from_numpy(real.landmarks[:2, :, :2]), atol=1e-3
    )
    assert torch.allclose(seen.mesh[..., 2] * CROP_PX / 2, torch.from_numpy(real.landmarks[:2, :, 2]), atol=1e-3)
    assert misfit(seen.five, CROP_SIDE).abs().max() < 0.02
    # Beyond the photo's border, its outermost pixels go on.
    beyond = crops.seen(np.array([1]), torch.eye(3)[None], CROP_SIDE, 64).rgba[0]
    assert torch.equal(beyond[:, :, 0], beyond[:, :, 3])


@pytest.mark.parametrize("turn, size, shift", [(0.0, 1.2, (0.1, -0.2)), (0.1, 0.9, (0.0, 0.0))])
def test_misfit_is_what_the_fit_says(turn, size, shift):
    matrix = size * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = FRONTAL @ matrix.T + shift  # template units
    fit = fit_template(points)
    across, down, log_size, turned = misfit(torch.from_numpy(points)[None] * 2 / CROP_SIDE, CROP_SIDE)[0].tolist()
    assert log_size == pytest.approx(np.log(fit.scale_px), abs=0.01)
    assert turned == pytest.approx(fit.roll, abs=0.003)
    assert (across, -down) == pytest.approx(tuple(fit.centre_px), abs=0.02)


def test_mirrored_faces(heads, photos):
    real = RealPhotos(photos)
    crops = Photos(real, False, five_of_mesh(real))
    seen = crops.seen(np.arange(2), torch.eye(3).repeat(2, 1, 1), CROP_SIDE, 32)
    partners = torch.full((120,), -1)
    partners[[36, 95, 1]] = torch.tensor([95, 36, 1])
    turned = mirror(seen, torch.tensor([True, False]), partners)
    assert torch.equal(turned.rgba[0], seen.rgba[0].flip(2)) and torch.equal(turned.mesh[1], seen.mesh[1])
    assert turned.mesh[0, 36].tolist() == (seen.mesh[0, 95] * torch.tensor([-1, 1, 1])).tolist()
    assert (
        turned.mesh[0, 40].isnan().all()
        and turned.angles[0].tolist() == (seen.angles[0] * torch.tensor([-1, 1])).tolist()
    )


def test_partners_are_mutual(photos):
    partners = mirror_partners(RealPhotos(photos))
    paired = np.nonzero(partners >= 0)[0]
    assert partners.shape == (120,) and (partners[partners[paired]] == paired).all()


def test_misses_are_far_from_the_face():
    boxes = misses(200, torch.Generator().manual_seed(0))
    size, aside = boxes[:, :2, 0].norm(dim=1), boxes[:, :2, 2].norm(dim=1)
    assert ((aside > 1) | (size < 0.5) | (size > 2) | (boxes[:, 0, 0] < 0)).all()


def test_pictures_differ_each_time_and_repeat_with_the_seed(heads):
    rgba = RenderedPhotos(heads).seen(np.array([0, 1, 2, 3] * 4), torch.eye(3).repeat(16, 1, 1), 2.0, 64).rgba
    pictures, replace = grey_photos.Pictures(), torch.arange(16) < 8
    for look, channels in (
        (lambda seed: grey_photos.photo_like(rgba, pictures, torch.Generator().manual_seed(seed)), 1),
        (lambda seed: landmarks.spoilt(rgba, replace, torch.Generator().manual_seed(seed)), 3),
    ):
        first = look(5)
        assert first.shape == (16, channels, 64, 64) and first.min() >= 0 and first.max() <= 1
        assert torch.equal(first, look(5)) and not torch.equal(first, look(6))
        assert first.std(0).mean() > 0.05


def test_training_is_resumed_and_measured(heads, photos, tmp_path, capsys, monkeypatch):
    advance, taken = Progress.advance, []

    def taking(self, images, **terms):
        taken.extend(terms.values())
        return advance(self, images, **terms)

    monkeypatch.setattr(Progress, "advance", taking)
    words = ["--photos", str(photos), "--data", str(heads), "--out", str(tmp_path), "--batch", "4", "--steps"]
    assert landmarks.main([*words, "1"]) == 0
    assert landmarks.main([*words, "2"]) == 0
    said = capsys.readouterr().out
    assert "at step 1" in said
    # Not numbers: to read a loss on a GPU is to wait for it.
    assert taken and all(isinstance(term, torch.Tensor) and not term.requires_grad for term in taken)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n"] == 2 and report["steps"] == 2 and report == json.loads(said.splitlines()[-1])
    networks = tmp_path / "networks"
    assert LandmarkNetwork.from_pretrained(str(networks), local_files_only=True).config.input_size == 64
    tensors = load_file(networks / "mesh" / "diffusion_pytorch_model.safetensors")
    assert {str(t.dtype) for name, t in tensors.items() if "running" in name} == {"torch.float32"}
    assert tensors["heatmap.weight"].dtype == torch.float16
    mesh = FaceMesh.from_pretrained(str(networks / "mesh"), local_files_only=True)
    assert torch.allclose(mesh.five.sum(1), torch.ones(5), atol=1e-2)


def test_a_perfect_reader_is_measured_as_such(photos):
    real = RealPhotos(photos)
    mesh = FaceMesh(input_size=32, widths=(4, 8, 8, 8)).eval()
    mesh.five.copy_(torch.from_numpy(five_of_mesh(real)))
    seen_by = Photos.seen

    class Knowing(Photos):
        def seen(self, *asked):
            self.last = seen_by(self, *asked)
            known.append(self.last)
            return self.last

    known: list[Seen] = []

    def read(faces):
        seen = known[-1]
        person = torch.nn.functional.adaptive_avg_pool2d(seen.rgba[:, 3:], 16) - 0.5
        return seen.five, seen.angles, None, landmarks.MeshReading(seen.mesh, seen.angles, person, faces)

    mesh.read = read
    report = landmarks.evaluate(mesh, Knowing(real, True, mesh.five.numpy()), 0)
    assert report["alignment_px"] < 0.5 and report["yaw_rms_deg"] == report["points_px"] == 0
    assert report["mask_iou"] > 0.95


def test_mistakes_are_sentences(heads, tmp_path, capsys):
    words = ["--data", str(heads), "--out", str(tmp_path / "out"), "--steps", "1"]
    assert landmarks.main(["--photos", str(tmp_path), *words]) == 1
    assert "holds no packed photos" in capsys.readouterr().err
    rgba = np.zeros((CROP_PX, CROP_PX, 4), np.uint8)
    pack(tmp_path / "all.npz", [Packed(encode(rgba), np.zeros((4, 2)), np.zeros((120, 3)), (0, 0), True, False, "a")])
    assert landmarks.main(["--photos", str(tmp_path), *words]) == 1
    assert "held-out ones" in capsys.readouterr().err
