"""w and what its picture lacks of the photo -> a w nearer to the photo: one linear step, without a gradient.

    w ── generator ──> picture ──┬── dlib's embedding ──┐
                                 └── coarse colours ────┴── photo's minus picture's ──┐
                                              the photo's embedding ──────────────────┴── Feedback ──> w + step

As in active appearance models (Cootes, Edwards and Taylor 2001), the step begins as a regression on how pictures
changed when w did; then it learns on photos (`train.feedback`). Where ReStyle (Alaluf et al. 2021) asks its encoder a
second time, this takes a product with two matrices."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .generator import TriPlaneGenerator
from .identity import FaceIdentity


class Feedback(ModelMixin, ConfigMixin):
    """What a picture lacks, and whom the photo shows -> the step of w that brings it.

    Args:
        num_ws, w_dim: of the generator.
        rank: directions of w that a step is made of.
        embedding_size: of the identity network.
        cells: side of the coarse pictures that are compared.
        colour_weight: of a colour in [-1, 1] beside a number of the embedding.
        steps: how often a step is taken.
        rays: along a side of the picture that is looked at.
        fingerprint: of encoder and generator that it was learned with.
    """

    @register_to_config
    def __init__(
        self,
        num_ws: int = 14,
        w_dim: int = 256,
        rank: int = 64,
        embedding_size: int = 128,
        cells: int = 16,
        colour_weight: float = 0.1,
        steps: int = 1,
        rays: int = 64,
        fingerprint: str = "",
    ):
        super().__init__()
        self.read = nn.Linear(2 * embedding_size + 3 * cells**2, rank)
        self.write = nn.Linear(rank, num_ws * w_dim)

    def forward(
        self,
        gap: Tensor,  # [B, embedding_size + 3 * cells ** 2], as `gap_between` gives it
        embeddings: Tensor,  # [B, embedding_size] of the photos
    ) -> Tensor:
        """The step [B, num_ws, w_dim]."""
        step = self.write(self.read(torch.cat([gap, embeddings], 1)))
        return step.unflatten(1, (self.config.num_ws, self.config.w_dim))


def gap_between(
    embeddings: Tensor,  # [B, E] the photo's minus the picture's
    colours: Tensor,  # [B, 3, cells, cells] likewise, of `coarse`; 0 where they are not compared
    colour_weight: float,
) -> Tensor:
    return torch.cat([embeddings, colour_weight * colours.flatten(1)], 1)


def coarse(images: Tensor, cells: int) -> Tensor:
    """[B, C, S, S] -> means over cells [B, C, cells, cells]."""
    return F.adaptive_avg_pool2d(images.float(), cells)


def compared_cells(person: Tensor, cells: int) -> Tensor:
    """Mask of the person [B, 1, S, S] in [0, 1] -> cells [B, 1, cells, cells] of 0 and 1: those that mostly show the
    person."""
    return (coarse(person, cells) > 0.5).float()


class Photos(NamedTuple):
    """What the photos of B heads show."""

    crops: Tensor  # [B, 3, S, S] in [-1, 1], EG3D crops
    person: Tensor  # [B, 1, S', S'] in [0, 1]: where they show the person
    cameras: Tensor  # [B, 25] where they were taken from


@torch.no_grad()
def lacking(
    w: Tensor,  # [B, num_ws, w_dim]
    photos: Photos,
    generator: TriPlaneGenerator,
    identity: FaceIdentity,
    feedback: Feedback,
) -> tuple[Tensor, Tensor]:
    """What `feedback` reads of w: the gap between its picture and the photo, and the photo's embedding."""
    config, wanted = feedback.config, identity(photos.crops)
    seen = generator.render(generator.planes(w), photos.cameras, w, ray_resolution=config.rays)
    compared = compared_cells(photos.person, config.cells)
    colours = compared * (coarse(photos.crops, config.cells) - coarse(seen.raw, config.cells))
    return gap_between(wanted - identity(seen.image), colours, config.colour_weight), wanted


@torch.no_grad()
def bring_nearer(
    w: Tensor,  # [B, num_ws, w_dim]
    photos: Photos,
    generator: TriPlaneGenerator,
    identity: FaceIdentity,
    feedback: Feedback,
) -> Tensor:
    """w [B, num_ws, w_dim] after the steps of `feedback`."""
    for _ in range(feedback.config.steps):
        w = w + feedback(*lacking(w, photos, generator, identity, feedback)).to(w.dtype)
    return w
