"""Held-out photos, and how near heads come to them: the report of a stage that learns on photos."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from preim3d.efficientnet import perceptual_distance
from preim3d.feedback import Photos
from preim3d.generator import Planes
from train.model.face_batches import PhotoBatch, PhotoBatches
from train.model.face_losses import mean_over
from train.model.feedback_pairs import Networks, resized
from train.photos.real_photos import RealPhotos


SHEET_PHOTOS = 8


class HeldPhotos:
    """`count` of them, spread over all."""

    def __init__(self, networks: Networks, photos: RealPhotos, count: int):
        batches = PhotoBatches(photos, networks.encoder.config.input_size, networks.generator.device)
        rows = np.nonzero(photos.held)[0]
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
        self.networks, self.batch = networks, batches.as_they_are(rows)
        self.w = networks.invert(photos, rows)

    @property
    def first_ones(self) -> Tensor:
        """Those of the sheet [N, 3, S, S]."""
        return self.batch.inputs[:SHEET_PHOTOS]

    @torch.no_grad()
    def look(self, head_of: Callable[[Photos, Tensor], tuple[Tensor, Planes]]) -> tuple[dict, Tensor]:
        """dlib's distance from the photo's camera and from the front, PSNR and EfficientNet-Lite0's distance over the
        person; and pictures of the first ones [N, 3, S, S], seen from the photo's camera.

        Args:
            head_of: a photo and the encoder's w of it -> the w and the planes that are judged.
        """
        networks, generator = self.networks, self.networks.generator
        everything, found, pictures = shown(self.batch, networks), [], []
        for place in range(len(self.w)):
            one = slice(place, place + 1)
            photos = Photos(*(x[one] for x in everything))
            w, planes = head_of(photos, self.w[one])
            cameras = torch.cat([photos.cameras, generator.frontal_camera()])
            images = generator.render(planes, cameras, w).image.clamp(-1, 1)
            distances = (networks.identity(images) - networks.identity(photos.crops)).norm(dim=1)
            own = resized(images[:1], photos.crops.shape[-1])
            squares = mean_over(((own - photos.crops) / 2).square(), photos.person)
            found.append([*distances, squares, perceptual_distance(networks.lite0, own, photos.crops, photos.person)])
            pictures += [own] if place < SHEET_PHOTOS else []
        own, front, squares, lite0 = torch.tensor(found).mean(0).tolist()
        return {
            "identity_own": round(own, 4),
            "identity_frontal": round(front, 4),
            "person_psnr_db": round(-10 * math.log10(squares), 2),
            "lite0": round(lite0, 4),
        }, torch.cat(pictures)


def shown(batch: PhotoBatch, networks: Networks) -> Photos:
    """What a batch's photos show of the people."""
    return Photos(batch.inputs, batch.person, networks.cameras(batch.pose))
