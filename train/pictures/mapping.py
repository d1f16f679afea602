"""The mapping network learns the distribution of encoded photos: a game in w, as latent GANs and ALAE (Pidhorskyi et
al. 2020) play it, for a thousandth of what a game of pictures costs."""

import torch
from torch import Tensor, nn

from preim3d.stylegan2 import MappingNetwork
from train.inversion.latent_discriminator import (
    R1_EVERY,
    LatentDiscriminator,
    discriminator_loss,
    encoder_loss,
    r1_penalty,
)
from train.loop.training import descend, set_rate


BATCH = 128
KEPT = 8192  # encoded photos that the game is about
MAPPING_RATE = 0.2  # its layers are stored over a hundredth
RATE = 3e-4  # of the discriminator
MOMENTS_WEIGHT = 1.0


class LatentGame(nn.Module):
    """The discriminator, and the latest encoded photos."""

    def __init__(self, mapping: MappingNetwork, w_dim: int):
        super().__init__()
        self.discriminator = LatentDiscriminator(w_dim)
        self.register_buffer("rows", torch.zeros(KEPT, w_dim))
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))
        self.register_buffer("turns", torch.zeros((), dtype=torch.long))
        self.optimizers = {
            "mapping_adam": torch.optim.Adam(mapping.parameters(), MAPPING_RATE, betas=(0.0, 0.99)),
            "discriminator_adam": torch.optim.Adam(self.discriminator.parameters(), RATE, betas=(0.0, 0.99)),
        }

    def remember(self, rows: Tensor) -> None:
        """Encoded photos [B, w_dim]; they take the places of the oldest."""
        places = (torch.arange(len(rows), device=rows.device) + self.taken) % KEPT
        self.rows[places] = rows.detach()
        self.taken += len(rows)

    def step(self, mapping: MappingNetwork, z_dim: int, number: int, rate: float, draws: torch.Generator) -> dict:
        """One turn of either side, in step `number` of a run; `rate` in [0, 1] of their peak rates. Its terms."""
        device = self.rows.device
        places = torch.randint(min(int(self.taken), KEPT), (BATCH,), generator=draws)
        real = self.rows[places.to(device)]
        made = mapping(torch.randn(BATCH, z_dim, generator=draws).to(device))
        for name, peak in (("mapping_adam", MAPPING_RATE), ("discriminator_adam", RATE)):
            set_rate(self.optimizers[name], rate * peak)

        terms = {"told_apart": discriminator_loss(self.discriminator(real), self.discriminator(made.detach()))}
        if self.turns % R1_EVERY == 0:
            terms["r1"] = r1_penalty(self.discriminator, real)
        descend(number, sum(terms.values()), terms, [self.optimizers["discriminator_adam"]])
        own = {"fooled": encoder_loss(self.discriminator(made)), "moments": moments_apart(made, real)}
        loss = own["fooled"] + MOMENTS_WEIGHT * own["moments"]
        descend(number, loss, own, [self.optimizers["mapping_adam"]])
        self.turns += 1
        return {name: term.detach() for name, term in (terms | own).items() if name != "r1"}


def moments_apart(made: Tensor, real: Tensor) -> Tensor:
    """How far mean and covariance of rows [N, w_dim] are from those of others, squared, per entry of w: the game alone
    would leave out rare kinds of people.

    The product of what either half of the rows says, which chance makes neither larger nor smaller: the square of one
    would be least for rows that hardly vary."""
    halves = list(zip(made.chunk(2), real.chunk(2)))
    means = [own.mean(0) - other.mean(0) for own, other in halves]
    covariances = [torch.cov(own.T) - torch.cov(other.T) for own, other in halves]
    return ((means[0] * means[1]).sum() + (covariances[0] * covariances[1]).sum()) / made.shape[1]
