"""Faces seen through boxes: what the networks of preim3d/landmarks.py and preim3d/face_mesh.py learn to read.

A box [3, 3] maps positions in it (-1..1) to positions in the right box, which lies upright about the face as align.py
would have it. Real photos come with the mesh, rendered heads with their five points."""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from preim3d.camera import angles_from_camera
from preim3d.fit import CROP_SIDE, TEMPLATE, fit_template
from preim3d.landmarks import MIRRORED
from train.heads.dataset import HeadsDataset
from train.photos.real_photos import CROP_PX, RealPhotos


SMALL_PX = 160  # more than the networks see
UNIT_TO_TWO = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])  # [-1, 1] -> [0, 2], a picture of 2 pixels


# ---------------------------------------------------------------------------------------------------------------------
# Boxes: as the cascade gives them, as a network's own first reading gives them, and such as hold no face.


def jitter(count: int, generator: torch.Generator, zoom: float, shift: float, turn_deg: float) -> Tensor:
    """Random boxes [count, 3, 3] near the right one: size up to e^zoom either way, moved by `shift` half sides, and
    turned."""
    uniform = torch.rand(count, 4, generator=generator) * 2 - 1
    size, angle = (uniform[:, 0] * zoom).exp(), uniform[:, 1] * math.radians(turn_deg)
    box = torch.eye(3).repeat(count, 1, 1)
    box[:, 0, 0] = box[:, 1, 1] = size * angle.cos()
    box[:, 1, 0] = size * angle.sin()
    box[:, 0, 1] = -box[:, 1, 0]
    box[:, :2, 2] = uniform[:, 2:] * shift
    return box


def misses(count: int, generator: torch.Generator) -> Tensor:
    """Boxes [count, 3, 3] that hold part of a head but not a face: beside it, far too large or small, or upside
    down."""
    box = jitter(count, generator, 0.5, 0.3, 180)
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    away = torch.stack([angle.cos(), angle.sin()], 1) * (1.1 + 0.9 * torch.rand(count, 1, generator=generator))
    kind = torch.randint(0, 3, (count,), generator=generator)
    box[kind == 0, :2, 2] = away[kind == 0]
    sizes = torch.tensor([0.3, 2.6])[torch.randint(0, 2, (count,), generator=generator)]
    box[kind == 1, :2, :2] = torch.eye(2) * sizes[kind == 1, None, None]
    box[kind == 2] = jitter(count, generator, 0.2, 0.1, 40)[kind == 2] @ torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    return box


def move(points: Tensor, boxes: Tensor) -> Tensor:
    """Points [B, K, 2] in boxes [B, 3, 3] -> the same points in the right box."""
    return points @ boxes[:, :2, :2].mT + boxes[:, None, :2, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Faces.


class Seen(NamedTuple):
    """Faces as their boxes show them, and what is to be read."""

    rgba: Tensor  # [B, 4, S, S] in [0, 1], colour not premultiplied; alpha: the person
    five: Tensor  # [B, 5, 2] box = [-1, 1]
    angles: Tensor  # [B, 2] yaw and nominal pitch in radians
    mesh: Tensor  # [B, 120, 3] box = [-1, 1], z in the same scale; NaN where only five points are known

    @staticmethod
    def join(parts: list["Seen"]) -> "Seen":
        return Seen(*(torch.cat(part) for part in zip(*parts)))


class RenderedPhotos:
    """The photos of rendered heads."""

    def __init__(self, folder: Path):
        heads = HeadsDataset(folder)
        self.photos, self.ready = heads.photos, heads.ready
        self.points = heads.photo_points[self.ready].astype(np.float64)  # [N, P, 5, 2] pixels
        # Template units -> pixels.
        frames = [fit_template(points).crop_to_photo(2, 2) @ UNIT_TO_TWO for points in self.points.reshape(-1, 5, 2)]
        self.frames = np.stack(frames).reshape(*self.points.shape[:2], 3, 3)
        angles = torch.stack(angles_from_camera(torch.from_numpy(heads.photo_cameras[self.ready])), -1)
        self.angles = angles.float()  # [N, P, 2]
        # Most photos are frontal; turned heads are the hard ones: draw them more often.
        weights = (1 + (angles[..., 0].rad2deg().abs().numpy() / 15) ** 2).ravel()
        self.chances = weights / weights.sum()

    def __len__(self) -> int:
        return len(self.chances)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(len(self), count, p=self.chances)

    def seen(self, rows: np.ndarray, boxes: Tensor, side: float, size: int) -> Seen:
        """Photos `rows` [B] through `boxes` [B, 3, 3] near the right ones, which are `side` template units wide."""
        pictures, points, angles = [], [], []
        for row, box in zip(rows, boxes.double().numpy()):
            head, view = divmod(int(row), self.points.shape[1])
            to_photo = self.frames[head, view] @ np.diag([side / 2, side / 2, 1]) @ box
            rgba = self.photos[self.ready[head], view]
            pictures.append(_look(rgba, to_photo, size))
            from_photo = np.linalg.inv(to_photo)
            points.append(self.points[head, view] @ from_photo[:2, :2].T + from_photo[:2, 2])
            angles.append(self.angles[head, view])
        five = torch.from_numpy(np.stack(points)).float()
        return Seen(_tensor(pictures), five, torch.stack(angles), torch.full((len(rows), 120, 3), torch.nan))


class Photos:
    """Real photos, those that are kept out of training or the others."""

    def __init__(self, photos: RealPhotos, held: bool, five: np.ndarray):
        """`five` [5, 120]: `five_of_mesh`."""
        self.photos, self.rows, self.five = photos, np.nonzero(photos.held == held)[0], five
        # Decoded and shrunk once, or it would take as long as the training: 100 KB a photo.
        self.small = np.empty((len(self.rows), SMALL_PX, SMALL_PX, 4), np.uint8)
        for start in range(0, len(self.rows), 64):
            part = slice(start, start + 64)
            for small, pixels in zip(self.small[part], photos.pixels(self.rows[part])):
                cv2.resize(pixels, (SMALL_PX, SMALL_PX), dst=small, interpolation=cv2.INTER_AREA)

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, len(self), count)

    def seen(self, rows: np.ndarray, boxes: Tensor, side: float, size: int) -> Seen:
        """As `RenderedPhotos.seen`. Beyond the photo its outermost pixels go on, as in align.py: the crop's
        reflection there would tell how the crop lies."""
        half_px = CROP_PX / CROP_SIDE * side / 2
        frame = np.array([[half_px, 0, CROP_PX / 2], [0, half_px, CROP_PX / 2], [0, 0, 1]])
        shrink, pictures, meshes = np.diag([SMALL_PX / CROP_PX, SMALL_PX / CROP_PX, 1]), [], []
        small, rows = self.small[rows], self.rows[rows]
        for row, pixels, box in zip(rows, small, boxes.double().numpy()):
            to_crop = frame @ box
            corners = self.photos.corners[row].astype(np.float64) * SMALL_PX / CROP_PX
            pictures.append(_look(pixels, shrink @ to_crop, size, corners))
            from_crop, mesh = np.linalg.inv(to_crop), self.photos.landmarks[row].astype(np.float64)
            depth = mesh[:, 2:] * math.sqrt(np.linalg.det(from_crop[:2, :2]))
            meshes.append(np.hstack([mesh[:, :2] @ from_crop[:2, :2].T + from_crop[:2, 2], depth]))
        mesh = torch.from_numpy(np.stack(meshes)).float()
        five = torch.from_numpy(self.five).float() @ mesh[..., :2]
        return Seen(_tensor(pictures), five, torch.from_numpy(self.photos.pose[rows]), mesh)


def _look(
    picture: np.ndarray,  # [S', S', 4] uint8
    to_picture: np.ndarray,  # [3, 3] position in the box (-1..1) -> pixels
    size: int,
    corners: np.ndarray | None = None,  # [4, 2] of the photo in it, in order around; only that is seen
) -> np.ndarray:
    """What the box shows, [size, size, 4] uint8."""
    # Shrunk first where the box is large, so that one sample stands for all the pixels about it.
    shrink = max(1, round(math.sqrt(np.linalg.det(to_picture[:2, :2])) * 2 / size))
    if shrink > 1:
        picture = cv2.resize(picture, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    centres = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    across, down, shift = to_picture[:2].T.astype(np.float32)
    positions = centres[:, None] * across + shift + centres[:, None, None] * down
    if corners is not None:
        axes = np.stack([corners[1] - corners[0], corners[3] - corners[0]])
        lengths = np.linalg.norm(axes, axis=1)
        axes = (axes / lengths[:, None]).astype(np.float32)
        start = corners[0].astype(np.float32)
        # A pixel short of the border, where the reflection is blended in.
        along = ((positions - start) @ axes.T).clip(1, lengths.astype(np.float32) - 1)
        positions = along @ axes + start
    # OpenCV's pixel centres are whole numbers, ours lie at .5.
    positions = positions / shrink - np.float32(0.5)
    return cv2.remap(picture, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _tensor(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def mirror(
    seen: Seen,
    chosen: Tensor,  # [B] bool
    partners: Tensor,  # [120] `mirror_partners`
) -> Seen:
    """Some faces left and right exchanged; points whose mirror image the mesh lacks become NaN."""
    rgba, five, angles, mesh = (part.clone() for part in seen)
    rgba[chosen] = rgba[chosen].flip(3)
    five[chosen] = five[chosen][:, list(MIRRORED)] * torch.tensor([-1.0, 1.0])
    angles[chosen] = angles[chosen] * torch.tensor([-1.0, 1.0])
    mesh[chosen] = torch.where(
        (partners >= 0)[:, None], mesh[chosen][:, partners] * torch.tensor([-1.0, 1.0, 1.0]), torch.nan
    )
    return Seen(rgba, five, angles, mesh)


# ---------------------------------------------------------------------------------------------------------------------
# What the mesh's points are, found in the photos themselves.


def misfit(
    five: Tensor,  # [B, 5, 2] x right, y down, in the right box
    side: float,  # of that box in template units
) -> Tensor:
    """[B, 4]: how far the crop that these points give is from the right one: across and down in template units, log
    size, turn in radians. What `fit_template` does, for gradients; exact where the turn is small."""
    points = five * (side / 2) * five.new_tensor([1.0, -1.0])
    solver = torch.linalg.pinv(torch.from_numpy(np.column_stack([TEMPLATE, np.ones(5)]))).to(five)  # [4, 5]
    solution = solver @ points  # [B, 4, 2]
    eye_to_eye = points[:, 1] - points[:, 0]
    eye_to_mouth = points[:, 3:].mean(1) - points[:, :2].mean(1)
    turn = torch.atan2(-eye_to_eye[:, 1] - eye_to_mouth[:, 0], eye_to_eye[:, 0] - eye_to_mouth[:, 1])
    size = solution[:, :3].norm(dim=1).mean(1).log()
    return torch.cat([solution[:, 3], torch.stack([size, turn], 1)], 1)


def five_of_mesh(photos: RealPhotos) -> np.ndarray:
    """[5, 120]: the crop's five points as weighted means of the mesh's, such that they give the crops of the photos.

    The mesh lacks some of the points that the crops were made by; the weights, near those of the nearest that it has,
    are fitted by least squares over up to 3000 photos that are not held out."""
    rows = np.nonzero(~photos.held)[0][:: max(1, int((~photos.held).sum()) // 3000)]
    mesh = torch.from_numpy(photos.landmarks[rows][..., :2]).double() * 2 / CROP_PX - 1
    near = torch.zeros(5, mesh.shape[1], dtype=torch.double)
    for row, numbers in zip(near, ((144, 160, 468), (380, 384, 388), (4,), (76,), (292,))):
        row[[number // 4 for number in numbers]] = 1 / len(numbers)
    change = torch.zeros_like(near, requires_grad=True)
    solver = torch.optim.LBFGS([change], max_iter=300, line_search_fn="strong_wolfe")

    def weights() -> Tensor:
        return near + change - change.mean(1, keepdim=True)

    def error() -> Tensor:
        solver.zero_grad()
        # The ridge keeps a weight from standing for noise.
        value = misfit(weights() @ mesh, CROP_SIDE).square().mean() + 1e-5 * change.square().sum()
        value.backward()
        return value

    solver.step(error)
    return weights().detach().numpy()


def mirror_partners(photos: RealPhotos, within_px: float = 1.6) -> np.ndarray:
    """[120]: which point is each one's mirror image, -1 where the mesh has none: those that are nearest each other in
    the mean frontal face and its mirror image."""
    frontal = photos.landmarks[~photos.held & (np.abs(photos.pose[:, 0]) < 0.15)].mean(0)
    mirrored = frontal * [-1, 1, 1] + [CROP_PX - 1.4, 0, 0]  # the face's middle line lies at 127.3
    distances = np.linalg.norm(frontal[:, None] - mirrored, axis=2)
    nearest = distances.argmin(1)
    mutual = nearest[nearest] == np.arange(len(nearest))
    return np.where(mutual & (distances.min(1) < within_px), nearest, -1)
