"""Who an evaluation is about: photos that no network saw, their cameras, and what a reconstruction should show."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import FOCAL
from train import augment
from train.batches import draw_photos, to_float
from train.heads.dataset import BACKGROUND, HeadsDataset
from train.heads.geometry import HeadBuilder
from train.heads.renderer import RenderedHead
from train.heads.sampler import sample_head
from train.posed_photos import PosedPhotos


@dataclass
class Subjects:
    """N photos. Pictures are in [-1, 1]."""

    photos: Tensor  # [N,3,S,S] what the encoder is given
    cameras: Tensor  # [N,25] where they were taken from
    truths: Tensor  # [N,3,H,W] what the generator should show from there
    plains: Tensor | None = None  # [N,3,S,S] the same heads in the generator's light, where it is known


def photo_subjects(data: str, count: int, size: int, image_size: int) -> Subjects:
    """The first `count` photos of an EG3D dataset; of a photo the reconstruction should show the photo."""
    photos = PosedPhotos(data, image_size)
    images, cameras = zip(*(photos[i] for i in range(min(count, len(photos)))))
    truths = torch.stack(images).float() / 127.5 - 1
    small = F.interpolate(truths, (size, size), mode="bilinear", antialias=True) if image_size != size else truths
    return Subjects(small, torch.stack(cameras), truths)


def head_subjects(
    dataset: HeadsDataset,
    heads: np.ndarray,  # [N] indices
    builder: HeadBuilder,
    seed: int,
    size: int,  # of the encoder's input
    image_size: int,  # of the generator's output
) -> Subjects:
    """One photo of each synthetic head, in random light before a random background; the reconstruction should show it
    in the generator's light."""
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    photos, plains, truths, places = [], [], [], []
    for part in tqdm(np.array_split(heads, -(-len(heads) // 16)), desc="photos"):
        rgba, theta, cameras = draw_photos(dataset, part, rng, error_px=0.0)
        colour, opacity = augment.warp(rgba, theta, size)
        background = augment.random_backgrounds(len(part), (size, size), draws, rgba.device)
        photos.append((colour + (1 - opacity) * background) * 2 - 1)
        people = [RenderedHead(sample_head(dataset.z[head]), builder) for head in part]
        # The same picture in the generator's light, so that both inputs differ in light and background only.
        colour, opacity = augment.warp(render_all(people, cameras, rgba.shape[-1]), theta, size)
        plains.append((colour + (1 - opacity) * BACKGROUND) * 2 - 1)
        # The photo's camera sees more than the generator's; it stands in the same place.
        cameras[:, 16] = cameras[:, 20] = FOCAL
        places.append(cameras)
        truths.append(augment.plain(render_all(people, cameras, image_size), BACKGROUND))
    return Subjects(torch.cat(photos), torch.cat(places), torch.cat(truths), torch.cat(plains))


def render_all(people: list[RenderedHead], cameras: Tensor, size: int) -> Tensor:
    """RGBA [B,4,size,size] in [0, 1] of each person from its camera, in the generator's light."""
    return to_float(
        np.stack([person.view(camera.numpy(), size, person.head.light)[0] for person, camera in zip(people, cameras)])
    )
