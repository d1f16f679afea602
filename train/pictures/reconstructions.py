"""Held-out photos through encoder and generator: how near they come, and the rows of a sheet."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.align import inside_photo
from preim3d.identity import FaceIdentity
from train.judging.metrics import distances, person_psnr_db
from train.model.batches import to_float
from train.model.face_batches import PERSON
from train.photos.real_photos import CROP_PX, RealPhotos
from train.pictures.networks import PictureEncoder, PictureGenerator


BATCH = 16
SHEET_PHOTOS = 10


def as_seen(photos: RealPhotos, rows: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Crops [B, 3, size, size] in [-1, 1] and where they surely show the person [B, 1, size, size], 0 or 1."""
    rgba = F.interpolate(to_float(photos.pixels(rows)), (size, size), mode="area")
    corners = torch.from_numpy(photos.corners[rows]) * (size / CROP_PX)
    return rgba[:, :3] * 2 - 1, inside_photo(corners, size) * (rgba[:, 3:] > PERSON)


@torch.no_grad()
def held_report(
    photos: RealPhotos,
    count: int,  # held-out photos, from the first on
    encoder: PictureEncoder,
    generator: PictureGenerator,
    free: int,  # rows of w that may differ
    identity: FaceIdentity | None,
) -> tuple[dict[str, float], list[Tensor]]:
    """PSNR over the person and, where there is such a network, dlib's distance; rows of a sheet: photos,
    reconstructions, and latents of the original space."""
    rows = np.nonzero(photos.held)[0][:count]
    if not len(rows):
        raise ValueError("No photo is held back from training: pack them with `python -m train.photos` again.")
    device, size = generator.device, generator.config.resolution
    crops, made, person = [], [], []
    for part in np.array_split(rows, -(-len(rows) // BATCH)):
        seen, where = as_seen(photos, part, encoder.config.input_size)
        made.append(generator(encoder.rows(seen.to(device), free)).clamp(-1, 1).cpu())
        crops.append(F.interpolate(seen, (size, size), mode="area"))
        person.append((F.interpolate(where.float(), (size, size), mode="area") == 1).float())
    crops, made, person = (torch.cat(column) for column in (crops, made, person))
    figures = {"person_psnr_db": round(person_psnr_db(made, crops, person), 3)}
    if identity is not None:
        people = [torch.cat([identity(part.to(device)).cpu() for part in x.split(BATCH)]) for x in (crops, made)]
        figures["identity"] = round(distances(*people).mean().item(), 4)
    z = torch.randn(SHEET_PHOTOS, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
    samples = generator(generator.latents(z.to(device))).clamp(-1, 1).cpu()
    shown = min(SHEET_PHOTOS, len(crops))
    return figures, [crops[:shown], made[:shown], samples[:shown]]
