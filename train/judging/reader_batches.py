"""What the reader learns from: rendered heads, real photos, and the generator's pictures of inverted real photos.

Each source gives pictures, soft labels (NaN: unknown), head features (NaN for real people) and angles."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import angles_from_camera, camera_from_angles
from preim3d.directions import fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import load_component
from train.heads.dataset import BACKGROUND, WIDER, HeadsDataset
from train.model.batches import READ_RAYS, draw_photos, draw_plain, render_views, to_float
from train.photos import augment
from train.photos.photo_labels import LABELS, kept_out, photo_labels
from train.photos.real_photos import RealPhotos


FULL_WEIGHT = 3.0  # Photos with hair and shoulders are few, but are what people bring.
CUT_SHARE = 0.4  # of the photos are shown as the generator would: there are more of them than reconstructions.
TURNED_STD = 0.25  # Radians by which reconstructions are seen from beside the photo's camera.


class Examples(NamedTuple):
    """A batch, or a part of one."""

    images: Tensor  # [B, 3, S, S] in [-1, 1]
    labels: Tensor  # [B, A] in [0, 1], NaN: unknown
    features: Tensor  # [B, F], NaN: unknown
    angles: Tensor  # [B, 2] radians


class RenderedHeads:
    """A `HeadsDataset` as photos, or as the generator would show it."""

    def __init__(self, dataset: HeadsDataset, names: list[str], size: int):
        self.dataset, self.size = dataset, size
        self.columns = [names.index(name) for name in dataset.attribute_names]
        self.label_count = len(names)
        self.learned = dataset.ready

    def draw(self, count: int, rng: np.random.Generator, draws: torch.Generator, photo_like: bool) -> Examples:
        return self.examples(rng.choice(self.learned, count), rng, draws, photo_like)

    def examples(
        self,
        heads: np.ndarray,
        rng: np.random.Generator,
        draws: torch.Generator,
        photo_like: bool,
        plain: bool = False,
    ) -> Examples:
        """One picture of each head; `plain`: with no change at all."""
        if photo_like:
            rgba, theta, camera = draw_photos(self.dataset, heads, rng)
            images, _ = augment.photo_like(shrink(rgba, round(WIDER * self.size)), draws, theta=theta, size=self.size)
        else:
            rgba, camera, _ = draw_plain(self.dataset, heads, rng)
            rgba = shrink(rgba, self.size)
            images = augment.plain(rgba, BACKGROUND) if plain else augment.generator_like(rgba, BACKGROUND, draws)
        labels = torch.full((len(heads), self.label_count), torch.nan)
        labels[:, self.columns] = torch.from_numpy(np.asarray(self.dataset.attributes[heads], np.float32))
        features = torch.from_numpy(np.asarray(self.dataset.features[heads], np.float32))
        return Examples(images, labels, features, torch.stack(angles_from_camera(camera), 1))


class PhotoSource:
    """Real photos, small and in memory, with what is known of them."""

    def __init__(self, photos: RealPhotos, table: Path | str | None, names: list[str], feature_count: int, size: int):
        self.pixels = np.stack([
            cv2.resize(photos.pixels(np.array([row]))[0], (size, size), interpolation=cv2.INTER_AREA)
            for row in tqdm(range(len(photos)), desc="photos", unit="photo", mininterval=5)
        ])  # fmt: skip
        known = photo_labels(photos, table)
        self.labels = torch.full((len(photos), len(names)), torch.nan)
        self.labels[:, [names.index(name) for name in LABELS]] = torch.from_numpy(known)
        self.angles = torch.from_numpy(photos.pose)
        self.feature_count = feature_count
        self.kept_out = kept_out(photos)
        self.learned = np.nonzero(~self.kept_out)[0]
        weight = np.where(photos.full[self.learned], FULL_WEIGHT, 1.0)
        self.share = weight / weight.sum()

    def draw(self, count: int, rng: np.random.Generator, draws: torch.Generator) -> Examples:
        """Photos, half of them mirrored: some as a camera might have taken them otherwise, some as the generator might
        show them, soft and before its grey."""
        rows = rng.choice(self.learned, count, p=self.share)
        found, rgba = self.examples(rows), to_float(self.pixels[rows])
        mirrored = torch.from_numpy(rng.random(count) < 0.5)
        rgba = torch.where(mirrored[:, None, None, None], rgba.flip(3), rgba)
        angles = torch.where(mirrored[:, None], found.angles * torch.tensor([-1.0, 1.0]), found.angles)
        photos, cut = rgba.split([count - round(CUT_SHARE * count), round(CUT_SHARE * count)])
        whole = torch.cat([photos[:, :3], torch.ones_like(photos[:, 3:])], 1)
        images, _ = augment.photo_like(whole, draws, occluder_share=0.1, texture_share=0.15)
        images = torch.cat([images, augment.generator_like(cut, BACKGROUND, draws)])
        return found._replace(images=images, angles=angles)

    def examples(self, rows: np.ndarray) -> Examples:
        """The photos as they are."""
        images = to_float(self.pixels[rows])[:, :3] * 2 - 1
        features = torch.full((len(rows), self.feature_count), torch.nan)
        return Examples(images, self.labels[rows], features, self.angles[rows])


class Reconstructions:
    """The generator's pictures of some inverted photos, with the photos' labels."""

    def __init__(self, pixels: np.ndarray, angles: np.ndarray, rows: np.ndarray, source: PhotoSource):
        self.pixels, self.angles, self.rows = pixels, torch.from_numpy(angles), rows
        self.source = source
        self.learned = np.nonzero(~source.kept_out[rows])[0]

    def draw(self, count: int, rng: np.random.Generator, draws: torch.Generator) -> Examples:
        found = self.examples(rng.choice(self.learned, count))
        rgba = torch.cat([(found.images + 1) / 2, torch.ones(count, 1, *found.images.shape[2:])], 1)
        return found._replace(images=augment.generator_like(rgba, BACKGROUND, draws, blur_share=0.3))

    def examples(self, places: np.ndarray) -> Examples:
        known = self.source.examples(self.rows[places])
        images = torch.from_numpy(self.pixels[places]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return known._replace(images=images, angles=self.angles[places])


@torch.no_grad()
def reconstruct(
    photos: RealPhotos, weights: Path, count: int, seed: int, size: int, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures [R, size, size, 3] uint8 of `count` photos through the networks in `weights`, the angles [R, 2] that
    they show, the photos' rows [R]; kept in `path`, and taken from there where it was made with the same networks."""
    encoder = load_component(PortraitEncoder, weights / "encoder", torch.float32)
    generator = load_component(TriPlaneGenerator, weights / "generator", torch.float32)
    made_of = np.array([fingerprint(encoder, generator), str(count), str(seed), str(size)])
    if path.is_file():
        stored = np.load(path)
        if np.array_equal(stored["made_of"], made_of):
            return stored["pixels"], stored["angles"], stored["rows"]
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(photos), min(count, len(photos)), replace=False))
    angles = (photos.pose[rows] + TURNED_STD * rng.standard_normal((len(rows), 2)) * [1, 0.4]).astype(np.float32)
    side, pixels = encoder.config.input_size, []
    for part in tqdm(np.array_split(np.arange(len(rows)), -(-len(rows) // 8)), desc="reconstructions", mininterval=5):
        crops = F.interpolate(photos.crops(rows[part]), (side, side), mode="area")
        camera = camera_from_angles(*torch.from_numpy(angles[part]).T)
        images = render_views(generator, encoder(crops), camera, READ_RAYS)
        small = F.interpolate(images, (size, size), mode="area")
        pixels.append(((small + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    pixels = np.concatenate(pixels)
    with whole_file(path) as partial:
        np.savez(partial, pixels=pixels, angles=angles, rows=rows, made_of=made_of)
    return pixels, angles, rows


def shrink(rgba: Tensor, size: int) -> Tensor:
    """RGBA [B, 4, H, W] in [0, 1] averaged down to `size`, colour weighted by opacity: a crop that is taken point by
    point would flicker."""
    if rgba.shape[-1] <= size:
        return rgba
    opacity = F.interpolate(rgba[:, 3:], (size, size), mode="area")
    colour = F.interpolate(rgba[:, :3] * rgba[:, 3:], (size, size), mode="area") / opacity.clamp(min=1e-3)
    return torch.cat([colour, opacity], 1)
