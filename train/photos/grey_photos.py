"""RGBA pictures of faces -> grey photos far stronger lit, textured, hidden and spoilt than in life (domain
randomisation), for the network that finds faces."""

import math

import cv2
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from train.photos.augment import soften


# Bundled with scikit-image, free of rights, and without human faces: surroundings and things that are no faces.
PICTURES = (
    "coffee", "chelsea", "rocket", "brick", "grass", "gravel",
    "hubble_deep_field", "page", "coins", "clock", "text", "moon",
)  # fmt: skip


class Pictures:
    """Random cut-outs of ordinary pictures, as backgrounds and as things that are no faces."""

    def __init__(self):
        self.pictures = []
        for name in PICTURES:
            picture = getattr(skimage.data, name)()
            self.pictures.append(picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))

    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """[count, 1, size, size] in [0, 1]."""
        cuts = []
        for choice, side, across, down in torch.rand(count, 4, generator=generator).tolist():
            picture = self.pictures[int(choice * len(self.pictures))]
            side_px = int(40 + side**2 * (min(picture.shape) - 40))
            left, top = int(across * (picture.shape[1] - side_px)), int(down * (picture.shape[0] - side_px))
            part = picture[top : top + side_px, left : left + side_px]
            cuts.append(cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA))
        return torch.from_numpy(np.stack(cuts))[:, None].float() / 255


def photo_like(rgba: Tensor, pictures: Pictures, generator: torch.Generator) -> Tensor:
    """Colour times opacity, and opacity, [B, 4, S, S] in [0, 1] -> grey pictures [B, 1, S, S] in [0, 1]."""
    count, _, size, _ = rgba.shape

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), generator=generator)

    def some(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < share

    def clouds(cells: int) -> Tensor:
        return F.interpolate(torch.randn(count, 1, cells, cells, generator=generator), (size, size), mode="bilinear")

    # Any mixture of the channels: red film shows pale lips, blue film dark skin.
    weights = torch.tensor([0.3, 0.59, 0.11]) + between(-0.3, 0.3, 3)
    grey = torch.einsum("bchw,bc->bhw", rgba[:, :3], weights / weights.sum(1, keepdim=True))[:, None].clamp(0, 1)
    opacity = rgba[:, 3:]

    # Skin is not smooth: texture at three scales, and shadows with a soft or a hard edge.
    strength = between(0, 1, 3, 1, 1, 1).square() * torch.tensor([0.3, 0.2, 0.15]).view(3, 1, 1, 1)
    texture = sum(strength[:, i] * clouds(cells) for i, cells in enumerate((6, 24, size)))
    grey = grey * (1 + texture).clamp(0.3, 1.7)
    grey = grey * torch.where(some(0.4), shadows(count, size, generator), torch.ones(1))

    # Behind the head: clouds, cuts of pictures, or other people of the same batch, pushed aside.
    backdrop = between(0, 1) + between(0, 0.5) * clouds(3) + between(0, 0.2) * clouds(12)
    backdrop = torch.where(some(0.6), pictures.draw(count, size, generator), backdrop).clamp(0, 1)
    others = (grey + (1 - opacity) * backdrop).roll(1, 0).roll((size // 2, size // 3), (2, 3))
    grey = grey + (1 - opacity) * torch.where(some(0.15), others, backdrop)

    # Hands, hair, microphones.
    hidden = blobs(count, size, generator) & some(0.3)
    grey = torch.where(hidden, torch.where(some(0.5), between(0, 1), others), grey)

    # The camera: exposure, contrast, focus, noise, compression.
    grey = grey.clamp(1e-3, 1) ** between(-0.8, 0.7).exp()
    grey = (between(0.35, 0.65) + between(0.5, 1.4) * (grey - 0.5)).clamp(0, 1)
    grey = soften(grey, generator, 0.4, smallest=0.25)
    edges = grey - F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    grey = grey + torch.where(some(0.4), between(0, 1.5), torch.zeros(1)) * edges
    grey = grey + 0.06 * between(0, 1).square() * torch.randn(grey.shape, generator=generator)
    return torch.where(some(0.4), jpeg(grey, between(0.01, 0.1)), grey).clamp(0, 1)


def blobs(count: int, size: int, generator: torch.Generator) -> Tensor:
    """One random ellipse each, [count, 1, size, size] bool."""
    x, y, long, short, angle = torch.rand(5, count, 1, 1, 1, generator=generator)
    axis = torch.linspace(0, 1, size)
    right, down, angle = axis - x, axis[:, None] - y, angle * math.pi
    along, across = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
    return (along / (0.05 + 0.3 * long)) ** 2 + (across / (0.03 + 0.15 * short)) ** 2 < 1


def shadows(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Half planes of shade, [count, 1, size, size] in [.15, 1]."""
    angle, offset, softness, depth = torch.rand(4, count, 1, 1, 1, generator=generator)
    axis = torch.linspace(-1, 1, size)
    distance = (angle * 2 * math.pi).cos() * axis + (angle * 2 * math.pi).sin() * axis[:, None] + offset * 1.6 - 0.8
    return 1 - 0.85 * depth * torch.sigmoid(distance / (0.02 + 0.4 * softness))


def jpeg(grey: Tensor, step: Tensor) -> Tensor:
    """Quantises the cosine transform of 8x8 blocks, coarser at high frequencies, as JPEG does; `step` [B, 1, 1, 1]."""
    k = torch.arange(8.0)
    basis = torch.cos(math.pi / 8 * k[:, None] * (k + 0.5)) * torch.where(k == 0, math.sqrt(1 / 8), 0.5)[:, None]
    blocks = grey.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 1, n, n, 8, 8]
    quantum = step[..., None, None] * (1 + (k[:, None] + k) / 4)
    cosines = ((basis @ blocks @ basis.T) / quantum).round() * quantum
    return (basis.T @ cosines @ basis).transpose(3, 4).reshape(grey.shape)
