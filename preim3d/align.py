"""Photo -> upright EG3D crop (PIL, 512 px), the only crop the encoder knows, and the camera that took the photo.

    photo ── finder ──> five points, roughly ── mesh network, twice ──> five points, yaw, pitch ── fit ──> crop

Points are in pixels of the photo, x right, y down, (0, 0) the outer corner of the first pixel; image left first."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from preim3d.face_mesh import FaceMesh, MeshReading
from preim3d.finder import Found, InsightFaceFinder, OwnFinder, find_insightface
from preim3d.fit import CROP_SIDE, FACE_WIDTH, Fit, cut_box, fit_template, warp
from preim3d.landmarks import fold_batch_norms
from preim3d.photo import PhotoError, load_photo


CROP_PX = 512
FACE_HEIGHT = 1.8  # hairline to chin, in units of the template
# How far the mesh network's readings of a face and of its mirror image may differ, in half crops: real faces reach
# .035; hands, cups and cats that had passed for faces have .08 and more.
MAX_DISAGREEMENT = 0.06
# How clearly the mesh network sees the points: the mean of its heat maps' largest cells. 19 of 20 faces have .17 or
# more, and so has half of the masked ones. Of boxes that only look like faces 19 of 20 have less than .16, all less
# than .19.
SURELY_CLEAR, LEAST_CLEAR = 0.2, 0.15
# A channel's mean over the mean of all three, within a face's box: ordinary light and skin stay in this range.
CHANNEL_RANGE = 0.7, 1.3
# Of photos that weights without landmark networks are given.
TAKEN_WHOLE = (
    "These weights find no faces, so the middle square of the photo was taken as the crop: give photos that are cut as"
    " those that the encoder learned from."
)
MIN_FACE_PX = 64  # width; the crop of such a face is 109 px wide, less than the smallest encoder input (128)


@dataclass(frozen=True)
class Face:
    """A face in a photo. Lengths in pixels of the photo."""

    points_px: np.ndarray  # [5, 2] eye centres, nose tip, mouth corners
    confidence: float  # in [0, 1]
    angles_deg: tuple[float, float]  # yaw and nominal pitch of the camera that took the photo, as in `camera`

    @cached_property
    def fit(self) -> Fit:
        return fit_template(self.points_px)

    @property
    def roll_deg(self) -> float:
        """How far the head leans, clockwise as seen."""
        return math.degrees(self.fit.roll)

    @property
    def width_px(self) -> float:
        return FACE_WIDTH * self.fit.scale_px

    @property
    def box_px(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the face, hairline to chin."""
        (x, y), half_width, half_height = self.fit.centre_px, self.width_px / 2, FACE_HEIGHT / 2 * self.fit.scale_px
        return x - half_width, y - half_height, x + half_width, y + half_height


def crop_face(photo: Image.Image, face: Face) -> Image.Image:
    """The EG3D crop: 512 x 512, head upright. Beyond the photo's borders it goes on mirrored and blurred."""
    # At the photo's own resolution first, then Lanczos, which averages when it shrinks. Of a huge face a part of the
    # photo's resolution is enough.
    native_px = max(CROP_PX, math.ceil(CROP_SIDE * face.fit.scale_px))
    shrink = max(1, native_px // (4 * CROP_PX))
    native_px //= shrink
    to_photo = np.diag([1 / shrink, 1 / shrink, 1]) @ face.fit.crop_to_photo(CROP_SIDE, native_px)
    source = np.asarray(photo.reduce(shrink) if shrink > 1 else photo)
    native = warp(source, to_photo, (native_px, native_px), cv2.INTER_CUBIC, cv2.BORDER_REFLECT)
    crop = Image.fromarray(native).resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS)
    return _blur_beyond(crop, face.fit.crop_to_photo(CROP_SIDE, CROP_PX), photo.size, face.fit)


def whole_crop(photo: Image.Image) -> Image.Image:
    """The middle square of a photo as the crop, 512 x 512: for weights that find nothing in photos, as those of cats,
    whose photos are cut already."""
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return square.resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS)


def photo_corners(photo_size: tuple[int, int], face: Face) -> np.ndarray:
    """[4, 2]: where the photo's corners lie, in order around it, in sides of the crop of a face, mostly beyond it."""
    width, height = photo_size
    corners = np.array([(0, 0, 1), (width, 0, 1), (width, height, 1), (0, height, 1)], float)
    to_crop = np.linalg.inv(face.fit.crop_to_photo(CROP_SIDE, CROP_PX))
    return (corners @ to_crop.T)[:, :2].astype(np.float32) / CROP_PX


def inside_photo(
    corners: Tensor,  # [B, 4, 2] in pixels of the crop, in order around the photo
    size: int,  # of the crop
    margin_px: float = 2.0,
) -> Tensor:
    """[B, 1, size, size]: 1 where the crop shows the photo, which is a turned rectangle in it, 0 beyond."""
    centres = torch.arange(size, device=corners.device) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    inside = torch.ones(len(corners), size, size, device=corners.device)
    for start, end in zip(corners.unbind(1), corners.roll(-1, 1).unbind(1)):  # [B, 2] each
        edge = end - start
        normal = F.normalize(torch.stack([-edge[:, 1], edge[:, 0]], 1), dim=1)[..., None, None]
        beyond = (x - start[:, 0, None, None]) * normal[:, 0] + (y - start[:, 1, None, None]) * normal[:, 1]
        inside = inside * (beyond > margin_px)
    return inside[:, None]


def _blur_beyond(crop: Image.Image, to_photo: np.ndarray, photo_size: tuple[int, int], fit: Fit) -> Image.Image:
    """Blurs what lies outside the photo, so that a mirrored ear does not pass for one; the blur grows over 24 px."""
    centres = np.arange(CROP_PX) + 0.5
    x, y = np.meshgrid(centres, centres)
    photo_x, photo_y = (to_photo[i, 0] * x + to_photo[i, 1] * y + to_photo[i, 2] for i in (0, 1))
    beyond_px = np.maximum.reduce([-photo_x, photo_x - photo_size[0], -photo_y, photo_y - photo_size[1]])
    share = np.clip(beyond_px * CROP_PX / (CROP_SIDE * fit.scale_px) / 24, 0, 1)[..., None]
    if not share.any():
        return crop
    sharp = np.asarray(crop).astype(np.float32)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 12)
    return Image.fromarray((sharp + (blurred - sharp) * share).round().astype(np.uint8))


def without_cast(pictures: np.ndarray) -> np.ndarray:
    """RGB [B, S, S, 3]: where a coloured light makes a channel's mean leave the range of ordinary photos, it is
    brought back to its border; all others stay as they are."""
    means = pictures.mean((1, 2), keepdims=True)
    ratio = means / np.maximum(means.mean(-1, keepdims=True), 1e-6)
    return pictures * (ratio.clip(*CHANNEL_RANGE) / np.maximum(ratio, 1e-6)).astype(pictures.dtype)


def by_size(faces: list[Face]) -> list[Face]:
    """The largest first."""
    return sorted(faces, key=lambda face: face.width_px, reverse=True)


class FaceAligner:
    """Finds the faces of a photo, reads from where each was taken, and cuts them out.

    Finds them by insightface's detector instead of ours where one of its model packs is on disk already (their
    licence: for non-commercial research only). `source` says in one line which is in use. Never downloads anything."""

    def __init__(
        self,
        landmarks_folder: str | Path,  # of our landmark networks, e.g. weights/faces/landmarks
        insightface_folder: str | Path | None = "installed",  # one with det_*.onnx, or where insightface keeps them
    ):
        folder = find_insightface() if insightface_folder == "installed" else insightface_folder
        if folder is None:
            self._finder = OwnFinder(Path(landmarks_folder))
            self.source = "faces by our own landmark networks"
        else:
            self._finder = InsightFaceFinder(Path(folder))
            self.source = f"faces by insightface's models in {folder} (for non-commercial research only)"
        self._mesh = FaceMesh.from_pretrained(
            str(Path(landmarks_folder) / "mesh"), use_safetensors=True, local_files_only=True
        ).eval()
        fold_batch_norms(self._mesh)

    def faces(self, photo: Image.Image, still_looking: Callable[[], None] = lambda: None) -> list[Face]:
        """The faces of an upright RGB photo, the largest first: those of the first search that finds any for sure. If
        no search does, those that may be faces, such as masked ones.

        `still_looking` is called when the quick search has found none, before the longer ones, which take seconds."""
        pixels = np.asarray(photo)
        doubtful: list[Face] = []
        for number, found in enumerate(self._finder.searches(pixels)):
            faces = self._read_closely(pixels, found)
            sure = [face for face, clear in faces if clear]
            if sure:
                return by_size(sure)
            doubtful = doubtful or [face for face, _ in faces]
            if number == 0:
                still_looking()
        return by_size(doubtful)

    def _read_closely(self, pixels: np.ndarray, found: list[Found]) -> list[tuple[Face, bool]]:
        """Those that the mesh network, too, takes for faces, and whether it is sure of that."""
        if not found:
            return []
        fits = [fit_template(face.points_px) for face in found]
        for _ in range(2):  # in boxes that lean as the heads do
            points, angles, disagreements, reading = self.read(pixels, fits)
            fits = [fit_template(five) for five in points]
        clearness = reading.heatmaps.flatten(2).amax(2).exp().mean(1).tolist()
        return [
            (Face(five, face.confidence, pair), clear > SURELY_CLEAR)
            for face, five, pair, disagreement, clear in zip(found, points, angles, disagreements, clearness)
            if disagreement < MAX_DISAGREEMENT and clear > LEAST_CLEAR
        ]

    def read(
        self,
        pixels: np.ndarray,  # [H, W, 3] uint8 RGB
        fits: list[Fit],
    ) -> tuple[list[np.ndarray], list[tuple[float, float]], list[float], MeshReading]:
        """What the mesh network reads in the crops that `fits` give: the five points [5, 2] of each in the photo, yaw
        and nominal pitch in degrees, how far the readings of face and mirror image disagree (in half crops), and the
        whole reading, in the crops."""
        size = self._mesh.config.input_size
        squares = [fit.crop_to_photo(CROP_SIDE, size) for fit in fits]
        boxes = without_cast(np.stack([cut_box(pixels, square, size) for square in squares]))  # [B, S, S, 3]
        five, angles, disagreement, reading = self._mesh.read(torch.from_numpy(boxes).permute(0, 3, 1, 2))
        in_box = (five.double().numpy() + 1) * size / 2
        points = [p @ square[:2, :2].T + square[:2, 2] for p, square in zip(in_box, squares)]
        return points, [tuple(pair) for pair in angles.double().rad2deg().tolist()], disagreement.tolist(), reading

    def look(self, crop: Image.Image) -> tuple[tuple[float, float], np.ndarray]:
        """What the mesh network sees in a crop: yaw and nominal pitch in degrees of the camera that took it, and where
        the person is, [S, S] bool."""
        size = self._mesh.config.input_size
        small = np.asarray(crop.convert("RGB").resize((size, size), Image.Resampling.BOX), np.float32) / 255
        box = torch.from_numpy(without_cast(small[None])).permute(0, 3, 1, 2)
        _, angles, _, reading = self._mesh.read(box)
        yaw, pitch = angles[0].double().rad2deg().tolist()
        return (yaw, pitch), (reading.person[0, 0] > 0).numpy()

    def choose(self, photo: Image.Image, number: int = 1, faces: list[Face] | None = None) -> Face:
        """Face `number` of a photo, 1 the largest; `faces`, where they are known already, saves finding them again.

        Raises `PhotoError` if there is no such face, or it is too small."""
        faces = self.faces(photo) if faces is None else faces
        if not faces:
            width, height = photo.size
            raise PhotoError(
                "no_face", f"No face found in the photo ({width} x {height} px): choose one that looks at the camera."
            )
        if not 1 <= number <= len(faces):
            raise PhotoError(
                "no_such_face",
                f"There is no face {number} in the photo: {len(faces)} found, numbered from 1 (the largest).",
            )
        face = faces[number - 1]
        if face.width_px < MIN_FACE_PX:
            raise PhotoError(
                "face_too_small", f"The face is {face.width_px:.0f} px wide; {MIN_FACE_PX} px is the least."
            )
        return face

    def align_photo(self, photo: str | Path | bytes | Image.Image, face: int = 1) -> Image.Image:
        """Any photo -> the EG3D crop (PIL, 512 x 512) of face number `face`, 1 the largest. Raises `PhotoError`."""
        picture = load_photo(photo)
        return crop_face(picture, self.choose(picture, face))
