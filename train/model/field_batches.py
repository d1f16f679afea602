"""Rendered heads -> what the generator learns from: rays, points on and off surfaces, patches of pictures."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.heads.dataset import BACKGROUND, FRONT_VIEWS, HeadsDataset
from train.model.batches import to_device


# Where expressions and gaze happen, as boxes in the EG3D frame (x is taken absolute): they cover few pixels but
# matter, so rays and points land there more often.
EYE_BOX = (0.03, 0.13), (0.04, 0.14), (0.10, 0.30)
MOUTH_BOX = (0.0, 0.09), (-0.15, -0.03), (0.10, 0.32)
RIM = 6  # pixels of a patch that its missing surroundings change
EMPTY_REACH = 0.4  # how far before and behind the middle of the head rays that miss it are probed
WEIGHT_FEATURES, WEIGHT_HEAD, WEIGHT_BACKGROUND = 4.0, 1.0, 0.25


@dataclass
class FieldBatch:
    """B heads; R rays and N points each, P x P patches; everything in the EG3D frame, colours RGB in [0, 1]."""

    z: Tensor  # [B, F]
    ray_origins: Tensor  # [B, R, 3]
    ray_directions: Tensor  # [B, R, 3] unit
    ray_colors: Tensor  # [B, R, 3] over the grey background
    ray_opacity: Tensor  # [B, R]
    ray_depths: Tensor  # [B, R] along the ray, 0 where there is nothing
    points: Tensor  # [B, N, 3] on surfaces
    point_colors: Tensor  # [B, N, 3]
    point_directions: Tensor  # [B, N, 3] unit, from the camera that saw the point
    empty_points: Tensor  # [B, N / 4, 3] in front of nothing, in the views from all around
    patch_origins: Tensor  # [B', P * P, 3] for the first B' heads
    patch_directions: Tensor  # [B', P * P, 3]
    patch_images: Tensor  # [B', 3, 2P, 2P] in [-1, 1]
    patch_weights: Tensor  # [B', 1, 2P, 2P] 0 near sides that are not the picture's own, else 1

    def to(self, device) -> "FieldBatch":
        return FieldBatch(**{name: to_device(value, device) for name, value in vars(self).items()})


def draw_batch(
    heads: list[tuple[HeadsDataset, int]],  # B heads: a data set and an index into it
    rng: np.random.Generator,
    rays: int,
    points: int,
    patches: int,  # how many of the heads also get a patch
    patch_rays: int,  # rays along a patch's side
    ray_resolution: int,  # rays along a whole picture's side
) -> FieldBatch:
    """A random view of each head for rays, another for points, another for a patch."""
    columns = {name: [] for name in FieldBatch.__dataclass_fields__}

    def add(**values):
        for name, value in values.items():
            columns[name].append(value)

    for place, (dataset, head) in enumerate(heads):
        views, size = dataset.images.shape[1:3]
        view = rng.integers(views)
        camera = Pinhole(dataset.cameras[head, view])
        rgba, depth = dataset.images[head, view], dataset.depth[head, view].astype(np.float32)
        pixels = _draw_pixels(rng, camera, depth, rays, WEIGHT_BACKGROUND)
        y, x = pixels // size, pixels % size
        directions = camera.directions((x + 0.5) / size, (y + 0.5) / size)
        color = rgba[y, x].astype(np.float32) / 255
        add(
            z=dataset.features[head],
            ray_origins=np.broadcast_to(camera.origin, directions.shape),
            ray_directions=directions,
            ray_colors=color[:, :3] * color[:, 3:] + BACKGROUND * (1 - color[:, 3:]),
            ray_opacity=color[:, 3],
            ray_depths=depth[y, x] / (directions @ camera.forward),
        )

        view = (view + 1 + rng.integers(views - 1)) % views
        camera = Pinhole(dataset.cameras[head, view])
        rgba, depth = dataset.images[head, view], dataset.depth[head, view].astype(np.float32)
        pixels = _draw_pixels(rng, camera, depth, points, 0.0)
        y, x = pixels // size, pixels % size
        directions = camera.directions((x + 0.5) / size, (y + 0.5) / size)
        distance = depth[y, x] / (directions @ camera.forward)
        add(
            points=camera.origin + directions * distance[:, None],
            point_colors=rgba[y, x, :3].astype(np.float32) / 255,
            point_directions=directions,
        )

        view = rng.integers(FRONT_VIEWS, views)
        camera = Pinhole(dataset.cameras[head, view])
        pixels = rng.choice(np.flatnonzero(dataset.depth[head, view] == 0), points // 4)
        y, x = pixels // size, pixels % size
        directions = camera.directions((x + 0.5) / size, (y + 0.5) / size)
        distance = np.linalg.norm(camera.origin) + rng.uniform(-EMPTY_REACH, EMPTY_REACH, (len(pixels), 1))
        add(empty_points=camera.origin + directions * distance)

        if place < patches:
            view = rng.integers(FRONT_VIEWS)
            camera = Pinhole(dataset.cameras[head, view])
            scale = size // ray_resolution  # picture pixels per ray
            # Some of the draws lie beyond the picture, so that its border is seen as often as its middle.
            last = ray_resolution - patch_rays
            top, left = rng.integers(-patch_rays // 4, last + patch_rays // 4 + 1, 2).clip(0, last)
            y, x = np.mgrid[top : top + patch_rays, left : left + patch_rays].reshape(2, -1)
            directions = camera.directions((x + 0.5) / ray_resolution, (y + 0.5) / ray_resolution)
            rgba = dataset.images[
                head, view, top * scale : (top + patch_rays) * scale, left * scale : (left + patch_rays) * scale
            ]
            alpha = rgba[..., 3:].astype(np.float32) / 255
            picture = rgba[..., :3] * (alpha / 255) + BACKGROUND * (1 - alpha)
            # Super-resolution sees zeros beyond a patch, where inference has the rest of the picture.
            down, across = (_trusted(at, patch_rays, last, scale) for at in (top, left))
            add(
                patch_weights=(down[:, None] * across)[None],
                patch_origins=np.broadcast_to(camera.origin, directions.shape),
                patch_directions=directions,
                patch_images=picture.transpose(2, 0, 1) * 2 - 1,
            )
    return FieldBatch(**{name: torch.from_numpy(np.array(column, np.float32)) for name, column in columns.items()})


def _trusted(start: int, rays: int, last: int, scale: int) -> np.ndarray:
    """1 for each pixel along a patch's side, but 0 for those near an end that is not the picture's."""
    weights = np.ones(rays * scale, np.float32)
    if start > 0:
        weights[:RIM] = 0
    if start < last:
        weights[-RIM:] = 0
    return weights


class Pinhole:
    """A camera label [25] as numpy: its origin, its forward axis, the ray through a place of the picture."""

    def __init__(self, camera: np.ndarray):
        cam2world, self.intrinsics = camera[:16].reshape(4, 4), camera[16:].reshape(3, 3)
        self.rotation, self.origin = cam2world[:3, :3], cam2world[:3, 3]
        self.forward = self.rotation[:, 2]

    def directions(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Unit directions [N, 3] through places u, v [N] in [0, 1]."""
        k = self.intrinsics
        seen = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
        return (seen / np.linalg.norm(seen, axis=-1, keepdims=True)) @ self.rotation.T

    def unproject(self, depth: np.ndarray) -> np.ndarray:
        """The surface points [S, S, 3] of a depth picture [S, S] along the axis."""
        size, k = len(depth), self.intrinsics
        place = (np.arange(size, dtype=np.float32) + 0.5) / size
        seen = np.stack(
            [(place - k[0, 2])[None] / k[0, 0] * depth, (place - k[1, 2])[:, None] / k[1, 1] * depth, depth], -1
        )
        return seen @ self.rotation.T.astype(np.float32) + self.origin


def _draw_pixels(rng, camera: Pinhole, depth: np.ndarray, count: int, background_weight: float) -> np.ndarray:
    """Flat indices [count] of pixels, eyes and mouth most often, with repetition."""
    surface = camera.unproject(depth)
    x, y, z = np.abs(surface[..., 0]), surface[..., 1], surface[..., 2]
    weight = np.where(depth > 0, WEIGHT_HEAD, background_weight)
    for (x0, x1), (y0, y1), (z0, z1) in (EYE_BOX, MOUTH_BOX):
        inside = (depth > 0) & (x0 < x) & (x < x1) & (y0 < y) & (y < y1) & (z0 < z) & (z < z1)
        weight = np.where(inside, WEIGHT_FEATURES, weight)
    total = np.cumsum(weight.ravel())
    return np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(0, depth.size - 1)
