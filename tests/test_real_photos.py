"""The packed photos: read as they are given, and what of a crop is photo."""

import cv2
import numpy as np
import pytest
import torch

from preim3d.align import inside_photo
from train.photos.real_photos import RealPhotos


def pack(folder, count=3):
    """A small file of packed photos, each of one colour, the left half being the person."""
    files = []
    for i in range(count):
        bgra = np.zeros((256, 256, 4), np.uint8)
        bgra[..., :3] = (10, 20, 200 - 40 * i)
        bgra[:, :128, 3] = 255
        files.append(cv2.imencode(".webp", bgra, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].ravel())
    corners = np.tile([[0, 0], [256, 0], [256, 256], [0, 256]], (count, 1, 1)).astype(np.float32)
    np.savez(
        folder / "photos.npz", blob=np.concatenate(files), ends=np.cumsum([len(file) for file in files]),
        corners=corners, lm=np.zeros((count, 120, 3), np.float32), pose=np.zeros((count, 2), np.float32),
        full=np.arange(count) % 2 == 0, held=np.arange(count) == 0, name=np.array([f"p{i}" for i in range(count)]),
    )  # fmt: skip


def test_pixels_are_rgba(tmp_path):
    pack(tmp_path)
    photos = RealPhotos(tmp_path)
    pixels = photos.pixels(np.array([1, 2]))
    assert len(photos) == 3 and pixels.shape == (2, 256, 256, 4)
    assert np.abs(pixels[0, 5, 5].astype(int) - [160, 20, 10, 255]).max() <= 2 and pixels[0, 5, 200, 3] == 0
    assert photos.crops(np.array([0])).shape == (1, 3, 256, 256)
    assert photos.held.tolist() == [True, False, False] and photos.names[2] == "p2"


def test_a_folder_without_photos_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.photos"):
        RealPhotos(tmp_path)


def test_inside_is_a_turned_rectangle():
    square = torch.tensor([[[8.0, 0], [16, 8], [8, 16], [0, 8]]])  # stands on its corner
    inside = inside_photo(square, 16, margin_px=0)[0, 0]
    assert inside[8, 8] == 1 and inside[1, 1] == 0 and inside[14, 14] == 0
    assert abs(inside.sum().item() - 128) <= 16  # points on the edge are out
    assert inside_photo(square, 16)[0, 0].sum() < inside.sum()
