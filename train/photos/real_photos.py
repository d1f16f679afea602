"""Packed arrays of real photos, as `python -m train.photos` writes them: crops, masks, landmarks, poses.

*.npz in one folder, each with
    blob, ends     WebP files one after another and where each ends: RGBA 256 x 256, an EG3D crop, alpha = the person
    corners        [N, 4, 2] of the photo, in pixels of the crop: beyond them the crop is a blurred reflection
    lm             [N, 120, 3] every fourth of the 478 points of the MediaPipe face mesh, in pixels of the crop
    pose           [N, 2] yaw and nominal pitch in radians, as in `preim3d.camera`
    full           [N] bool: hair and shoulders are in the photo too
    held           [N] bool: never to be trained with
    name           [N]
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from preim3d.files import whole_file
from train.loop.arrays import open_arrays


CROP_PX = 256
COLUMNS = ("corners", "lm", "pose", "full", "held", "name")


class Packed(NamedTuple):
    """One photo of a file of packed photos."""

    file: bytes  # `encode`
    corners: np.ndarray  # [4, 2]
    lm: np.ndarray  # [120, 3]
    pose: tuple[float, float]
    full: bool
    held: bool
    name: str


class RealPhotos:
    """The arrays of a folder, as attributes: `corners` [N, 4, 2], `landmarks` [N, 120, 3], `pose` [N, 2] float32,
    `full`, `held` [N] bool, `names` [N]; and `pixels`, which decodes crops."""

    def __init__(self, folder: Path | str):
        """Raises FileNotFoundError where the folder has no arrays, ValueError where one is something else."""
        # A name that begins with a dot is a file that was being written when its run was killed.
        files = sorted(file for file in Path(folder).glob("*.npz") if not file.name.startswith("."))
        if not files:
            raise FileNotFoundError(
                f"{folder} holds no packed photos (*.npz); make them with `python -m train.photos`."
            )
        parts = [open_arrays(file, ("blob", "ends", *COLUMNS), "python -m train.photos") for file in files]
        self._files = [file for part in parts for file in np.split(part["blob"], part["ends"][:-1])]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
        self.corners, self.landmarks, self.pose = (
            columns[name].astype(np.float32) for name in ("corners", "lm", "pose")
        )
        self.full, self.held = columns["full"].astype(bool), columns["held"].astype(bool)
        self.names = columns["name"].astype(str)

    def __len__(self) -> int:
        return len(self._files)

    def pixels(self, rows: np.ndarray, threads: int = 1) -> np.ndarray:
        """RGBA uint8 [B, 256, 256, 4] of rows [B]."""
        with ThreadPoolExecutor(threads) as pool:
            return np.stack(list(pool.map(lambda row: decode(self._files[row]), rows)))

    def crops(self, rows: np.ndarray) -> Tensor:
        """RGB [B, 3, 256, 256] in [-1, 1] of rows [B]."""
        return torch.from_numpy(self.pixels(rows)[..., :3].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def pack(path: Path, photos: Sequence[Packed]) -> None:
    """Write a file of packed photos, whole or not at all. Raises OSError where the disk takes no more."""
    columns = dict(zip(Packed._fields, zip(*photos)))
    files = [np.frombuffer(file, np.uint8) for file in columns.pop("file")]
    arrays = {name: np.array(column) for name, column in columns.items()}
    for name in ("corners", "lm", "pose"):
        arrays[name] = arrays[name].astype(np.float32)
    with whole_file(path) as part:
        np.savez(part, blob=np.concatenate(files), ends=np.cumsum([len(file) for file in files]), **arrays)


def encode(rgba: np.ndarray) -> bytes:
    """RGBA uint8 [256, 256, 4] -> a WebP file of about 8 KB."""
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, format="WEBP", quality=80, alpha_quality=60, method=2)
    return file.getvalue()


def decode(file: np.ndarray) -> np.ndarray:
    """A WebP file's bytes -> RGBA uint8 [256, 256, 4]; one without alpha is all person."""
    picture = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
    alpha = picture[..., 3] if picture.shape[2] == 4 else np.full(picture.shape[:2], 255, np.uint8)
    return np.dstack([picture[..., 2::-1], alpha])
