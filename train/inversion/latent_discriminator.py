"""Is a row of w the mapping network's or the encoder's? A variant of the released code (after e4e, Tov et al. 2021,
section 4.2), which the paper does not mention: it keeps the encoder's rows among those that edit well."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


WEIGHT = 0.1  # of the encoder's term
RATE = 2e-5  # of the discriminator's Adam
R1_WEIGHT, R1_EVERY = 10.0, 16
POOL = 50  # rows of earlier encodings that the discriminator may see again


class LatentDiscriminator(nn.Module):
    """Rows of w [N, w_dim] -> logits [N]: four layers, as many units as w has entries."""

    def __init__(self, w_dim: int):
        super().__init__()
        layers = [layer for _ in range(4) for layer in (nn.Linear(w_dim, w_dim), nn.LeakyReLU(0.2))]
        self.net = nn.Sequential(*layers, nn.Linear(w_dim, 1))
        self.register_buffer("pool", torch.zeros(POOL, w_dim))
        self.register_buffer("pooled", torch.zeros((), dtype=torch.long))

    def forward(self, rows: Tensor) -> Tensor:
        return self.net(rows)[:, 0]

    @torch.no_grad()
    def mix(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Rows [N, w_dim], about half of them exchanged for earlier ones once the pool is full (Shrivastava et al.
        2017): a discriminator that sees only the newest forgets."""
        mixed = rows.clone()
        for i, row in enumerate(rows):
            filled = int(self.pooled)
            if filled < POOL:
                self.pool[filled] = row
                self.pooled += 1
            elif torch.rand((), generator=generator) < 0.5:
                place = int(torch.randint(POOL, (), generator=generator))
                mixed[i] = self.pool[place]
                self.pool[place] = row
        return mixed


def encoder_loss(logits: Tensor) -> Tensor:
    """The non-saturating loss of encoded rows' logits: softplus(-D(w))."""
    return F.softplus(-logits).mean()


def discriminator_loss(real: Tensor, encoded: Tensor) -> Tensor:
    """Logistic loss of the logits of both kinds of rows: softplus(-D(real)) + softplus(D(encoded))."""
    return F.softplus(-real).mean() + F.softplus(encoded).mean()


def r1_penalty(discriminator: nn.Module, rows: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, Eq. 9): half the squared gradient at real rows [N, w_dim], times `R1_WEIGHT`.

    Times `R1_EVERY` as well, for it is taken so seldom (lazy regularisation, Karras et al. 2020)."""
    rows = rows.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(rows).sum(), rows, create_graph=True)
    return R1_WEIGHT / 2 * gradient.square().sum(1).mean() * R1_EVERY
