"""A folder of rendered heads: written by many processes, resumable, read as memory maps.

heads.npz           z [N, Z_DIM], features [N, F] (normalised; the generator's z), attributes [N, A] in [0, 1],
                    attribute_names [A], feature_mean [F], feature_std [F], seed
images.npy          uint8 [N, V, S, S, 4] in the head's own light; colour not premultiplied, alpha 0: background
cameras.npy         float32 [N, V, 25]
depth.npy           float16 [N, V, S, S] along the camera's axis, 0: background
photos.npy          uint8 [N, P, S', S', 4] the same heads as photos frame them, seen a little wider (S' = 1.25 S)
photo_cameras.npy   float32 [N, P, 25]
photo_points.npy    float32 [N, P, 5, 2] pixels: eye centres (image left first), nose tip, mouth corners
done.npy            uint8 [N] 1 where a head is complete
"""

import math
import multiprocessing
import os
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preim3d.camera import FOCAL, camera_from_angles
from train.heads.sampler import Z_DIM, Person, person_attributes, person_features, sample_person
from train.loop.arrays import open_arrays


# A view is laid over this grey (sRGB in [0, 1]) wherever a picture without alpha is needed; it is the
# `background` of the generator's configuration too.
BACKGROUND = 0.82

FRONT_VIEWS, ROUND_VIEWS, PHOTO_VIEWS = 4, 2, 2
FRONT_YAW, FRONT_PITCH = math.radians(45), math.radians(32)  # uniform within; pitch nominal
PHOTO_YAW_STD, PHOTO_PITCH_STD = math.radians(16), math.radians(14)
# Photos show this much more than the crop, so that a misaligned crop still has content; so do the views from all
# around, so that crown and shoulders are seen at all.
WIDER = 1.25

FEATURE_SAMPLES = 4000  # heads that set the features' mean and spread, always the same ones
FEATURE_LIMIT = 4.0  # in standard deviations

_ARRAYS = ("images", "cameras", "depth", "photos", "photo_cameras", "photo_points", "done")


class HeadsDataset:
    """Memory maps of a rendered folder, named as in the module's docstring. `ready`: indices of complete heads."""

    def __init__(self, folder: Path | str):
        folder = Path(folder)
        parts = ("z", "features", "attributes", "attribute_names")
        stored = open_arrays(folder / "heads.npz", parts, f"python -m train.heads render --out {folder}")
        for name in _ARRAYS:
            setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r"))
        self.z, self.features, self.attributes = stored["z"], stored["features"], stored["attributes"]
        self.attribute_names = [str(name) for name in stored["attribute_names"]]

    def __len__(self) -> int:
        return len(self.z)

    @property
    def ready(self) -> np.ndarray:
        return np.nonzero(np.array(self.done))[0]  # a copy: more may become ready while numpy counts


def over_background(rgba: np.ndarray, background: float = BACKGROUND) -> np.ndarray:
    """RGBA [..., 4] uint8 -> RGB [..., 3] float32 in [-1, 1] over plain grey."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * (alpha / 255) + background * (1 - alpha)) * 2 - 1


@cache
def feature_normaliser() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [F] of the features over a fixed sample of heads."""
    rng = np.random.default_rng(0)
    features = np.stack([person_features(sample_person(z)) for z in rng.standard_normal((FEATURE_SAMPLES, Z_DIM))])
    return features.mean(0), np.maximum(features.std(0), 1e-3)


def normalised_features(people: list[Person]) -> np.ndarray:
    """The generator's z [N, F] of heads."""
    mean, std = feature_normaliser()
    features = (np.stack([person_features(person) for person in people]) - mean) / std
    return features.clip(-FEATURE_LIMIT, FEATURE_LIMIT).astype(np.float32)


def render_dataset(source: Path, out: Path, heads: int, seed: int, size: int, processes: int) -> int:
    """Render `heads` heads into `out`; heads that are already there are kept. Gives how many were rendered now."""
    out = Path(out)
    if (out / "heads.npz").is_file():
        stored = np.load(out / "heads.npz")
        if (len(stored["z"]), int(stored["seed"])) != (heads, seed):
            raise ValueError(
                f"{out} holds {len(stored['z'])} heads of seed {stored['seed']}; give those numbers or another --out."
            )
    else:
        _prepare(out, heads, seed, size)
    todo = np.nonzero(np.load(out / "done.npy", mmap_mode="r") == 0)[0]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start_worker, (source, out, size)) as pool:
        for _ in tqdm(
            pool.imap_unordered(_render_head, todo.tolist(), chunksize=4), total=len(todo), unit="head", mininterval=2
        ):
            pass
    return len(todo)


def _prepare(out: Path, heads: int, seed: int, size: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    z = np.random.default_rng(seed).standard_normal((heads, Z_DIM)).astype(np.float32)
    people = [sample_person(row) for row in z]
    mean, std = feature_normaliser()
    labels = [person_attributes(person) for person in people]
    views, wide = FRONT_VIEWS + ROUND_VIEWS, round(size * WIDER)
    shapes = {
        "images": ((heads, views, size, size, 4), np.uint8),
        "cameras": ((heads, views, 25), np.float32),
        "depth": ((heads, views, size, size), np.float16),
        "photos": ((heads, PHOTO_VIEWS, wide, wide, 4), np.uint8),
        "photo_cameras": ((heads, PHOTO_VIEWS, 25), np.float32),
        "photo_points": ((heads, PHOTO_VIEWS, 5, 2), np.float32),
        "done": ((heads,), np.uint8),
    }
    for name, (shape, dtype) in shapes.items():
        np.lib.format.open_memmap(out / f"{name}.npy", "w+", dtype, shape)
    np.savez(
        out / "heads.npz", z=z, features=normalised_features(people),
        attributes=np.array([list(row.values()) for row in labels], np.float32),
        attribute_names=np.array(list(labels[0])),
        feature_mean=mean, feature_std=std, seed=seed,
    )  # fmt: skip


def _start_worker(source, out, size):
    global _worker
    from train.heads.geometry import HeadBuilder
    from train.heads.source import HeadSource

    os.nice(5)  # rendering runs in the background
    arrays = {name: np.load(out / f"{name}.npy", mmap_mode="r+") for name in _ARRAYS}
    stored = np.load(out / "heads.npz")
    _worker = HeadBuilder(HeadSource(source)), stored["z"], int(stored["seed"]), arrays, size


def _render_head(index: int) -> None:
    from train.heads.renderer import RenderedHead

    builder, z, seed, arrays, size = _worker
    rng = np.random.default_rng((seed, index))
    person = sample_person(z[index])
    rendered = RenderedHead(person, builder)
    for view in range(FRONT_VIEWS + ROUND_VIEWS):
        yaw_limit, focal = (FRONT_YAW, FOCAL) if view < FRONT_VIEWS else (math.pi, FOCAL / WIDER)
        yaw, pitch = rng.uniform(-yaw_limit, yaw_limit), rng.uniform(-FRONT_PITCH, FRONT_PITCH)
        camera = camera_from_angles(yaw, pitch, focal=focal).numpy()
        arrays["images"][index, view], arrays["depth"][index, view] = rendered.view(camera, size, person.light)
        arrays["cameras"][index, view] = camera
    for view in range(PHOTO_VIEWS):
        yaw = np.clip(rng.normal(0, PHOTO_YAW_STD), -FRONT_YAW, FRONT_YAW)
        pitch = np.clip(rng.normal(0, PHOTO_PITCH_STD), -FRONT_PITCH, FRONT_PITCH)
        camera = camera_from_angles(yaw, pitch, focal=FOCAL / WIDER).numpy()
        wide = arrays["photos"].shape[2]
        arrays["photos"][index, view] = rendered.view(camera, wide, person.light)[0]
        arrays["photo_cameras"][index, view] = camera
        arrays["photo_points"][index, view] = rendered.points_px(camera, wide)
    arrays["done"][index] = 1  # last, so that an interrupted head is rendered again
