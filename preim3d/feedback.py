"""w and what its picture lacks of the photo -> a w nearer to the photo: one linear step, without a gradient.

    w ── generator ──> picture ──┬── dlib's embedding ──┐
                                 └── coarse colours ────┴── photo's minus picture's ── Feedback ──> w + step

As in active appearance models (Cootes, Edwards and Taylor 2001), the step is a regression on how pictures changed when
w did, learned by `train.feedback`; where ReStyle (Alaluf et al. 2021) asks its encoder a second time, this takes a
product with two matrices."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .generator import TriPlaneGenerator
from .identity import FaceIdentity


class Feedback(ModelMixin, ConfigMixin):
    """What a picture lacks -> the step of w that brings it.

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
        self.read = nn.Linear(embedding_size + 3 * cells**2, rank, bias=False)
        self.write = nn.Linear(rank, num_ws * w_dim, bias=False)

    def forward(
        self,
        gap: Tensor,  # [B, embedding_size + 3 * cells ** 2], as `gap_between` gives it
    ) -> Tensor:
        """The step [B, num_ws, w_dim]."""
        return self.write(self.read(gap)).unflatten(1, (self.config.num_ws, self.config.w_dim))


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


@torch.no_grad()
def bring_nearer(
    w: Tensor,  # [B, num_ws, w_dim]
    crops: Tensor,  # [B, 3, S, S] in [-1, 1], EG3D crops
    person: Tensor,  # [B, 1, S', S'] in [0, 1]: where they show the person
    cameras: Tensor,  # [B, 25] where they were taken from
    generator: TriPlaneGenerator,
    identity: FaceIdentity,
    feedback: Feedback,
) -> Tensor:
    """w [B, num_ws, w_dim] after the steps of `feedback`."""
    config = feedback.config
    embeddings, colours = identity(crops), coarse(crops, config.cells)
    compared = compared_cells(person, config.cells)
    for _ in range(config.steps):
        seen = generator.render(generator.planes(w), cameras, w, ray_resolution=config.rays)
        gap = gap_between(
            embeddings - identity(seen.image),
            compared * (colours - coarse(seen.raw, config.cells)),
            config.colour_weight,
        )
        w = w + feedback(gap).to(w.dtype)
    return w
