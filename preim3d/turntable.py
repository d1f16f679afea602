"""Frames of a head from all around -> one picture that a browser turns without asking again.

frame 0: the photo's camera ── 1 to 9: the pose grid, row by row ── the rest: in between and further to the sides
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from PIL import Image

from preim3d.camera import PITCHES_DEG, PIVOT, YAWS_DEG, camera_from_angles


TURN_YAWS_DEG = tuple(7.5 * i for i in range(-6, 7))  # -45 to 45
COLUMNS = 10
GRID = slice(1, 10)  # the frames of the pose grid
FRAME_PX = 256  # at most: forty of them are sent to the browser

Angles = tuple[float, float]  # yaw and nominal pitch in degrees
DepthRange = tuple[float, float]  # distances from the camera, near and far


def turn_angles(photo: Angles = (0.0, 0.0)) -> list[Angles]:
    """Of every frame, in the order above; `photo` is where the photo was taken from."""
    grid = [(float(yaw), float(pitch)) for pitch, yaw in product(PITCHES_DEG, YAWS_DEG)]
    rest = [(yaw, float(pitch)) for pitch, yaw in product(PITCHES_DEG, TURN_YAWS_DEG)]
    return [photo, *grid, *(angles for angles in rest if angles not in grid)]


def cameras(angles: Sequence[Angles], pivot: tuple[float, float, float] = PIVOT) -> torch.Tensor:
    """Camera labels [N, 25]."""
    yaw, pitch = torch.tensor(angles).mul(math.pi / 180).unbind(1)
    return camera_from_angles(yaw, pitch, pivot=pivot)


def pack(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames row by row on one picture, COLUMNS wide, edge to edge."""
    side = min(frames[0].width, FRAME_PX)
    rows = -(-len(frames) // COLUMNS)
    sheet = Image.new(frames[0].mode, (min(COLUMNS, len(frames)) * side, rows * side))
    for i, frame in enumerate(frames):
        row, column = divmod(i, COLUMNS)
        sheet.paste(frame.resize((side, side), Image.Resampling.BOX), (column * side, row * side))
    return sheet


def depth_range(
    depth: torch.Tensor,  # [B, 1, H, W]
    opacity: torch.Tensor,  # [B, 1, H, W] in [0, 1]
) -> DepthRange:
    """Distances of the nearest and the farthest point of the heads, but for a few outliers; 0 and 1 where there is
    nothing."""
    solid = depth[opacity > 0.5]
    if not len(solid):
        return 0.0, 1.0
    near, far = solid.quantile(torch.tensor([0.005, 0.995]).to(depth)).tolist()
    return near, far


def depth_pictures(
    depth: torch.Tensor,  # [B, 1, H, W]
    opacity: torch.Tensor,  # [B, 1, H, W] in [0, 1]
    size: int,  # side of the pictures
    between: DepthRange,
) -> list[Image.Image]:
    """Grey pictures: what is as near as the range begins is white, where it ends dark grey, behind the head black."""
    near, far = between
    grey = (1 - 0.8 * ((depth - near) / max(far - near, 1e-6)).clamp(0, 1)) * (opacity > 0.5)
    pixels = (grey[:, 0].float().cpu().numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR) for picture in pixels]
