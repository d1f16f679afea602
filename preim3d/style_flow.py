"""Edits by a conditional normalising flow: w, what a classifier says of the photo, strengths -> an edited w
(StyleFlow, Abdal et al. 2021).

    w ── principal axes ──> x ── flow backwards, given the attributes that it has ──> z
                                  z ── flow forwards, given the attributes that it is to have ──> x ──> w_edit

The flow is continuous (Chen et al. 2018): dx/dt = f(x, t, a), t in [0, 1], z at 0 being standard normal whatever the
attributes a are. So z holds what is not told by the attributes, and unlike a direction the edit bends: its way depends
on where it starts. Beside the axes w stays as it is."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from preim3d.directions import ATTRIBUTES
from preim3d.strengths import check_strengths


MOST_CONDITION = 3.0  # standard deviations: beyond, there are no photos to learn from
LOG_2PI = 1.8378770664093453

Velocity = Callable[[Tensor, float], Tensor]  # x [B, D] and t in [0, 1] -> dx/dt [B, D]


class GatedLinear(nn.Module):
    """A linear layer whose outputs time and attributes open and move: StyleFlow's gate-bias modulation."""

    def __init__(self, in_features: int, out_features: int, context_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.modulation = nn.Linear(context_features, 2 * out_features)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        gate, shift = self.modulation(context).chunk(2, dim=1)
        return torch.addcmul(shift, self.linear(x), gate.sigmoid())


class FlowBlock(nn.Module):
    """f(x, t, a): three gated layers. It starts as no flow at all."""

    def __init__(self, size: int, conditions: int, width: int):
        super().__init__()
        self.first = GatedLinear(size, width, 1 + conditions)
        self.second = GatedLinear(width, width, 1 + conditions)
        self.last = GatedLinear(width, size, 1 + conditions)
        for layer in (self.last.linear, self.last.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,  # [B, size]
        t: float,  # in [0, 1]
        conditions: Tensor,  # [B, A]
    ) -> Tensor:
        context = torch.cat([conditions.new_full((len(x), 1), t), conditions], 1)
        hidden = self.first(x, context).tanh()
        hidden = self.second(hidden, context).tanh()
        return self.last(hidden, context)


def integrate(
    velocity: Velocity,
    x: Tensor,  # [B, D]
    start: float,
    end: float,  # before `start`: backwards
    steps: int,
    probe: Tensor | None = None,  # [B, D] of -1 and 1, to estimate the divergence by; None = it is not asked for
) -> tuple[Tensor, Tensor]:
    """x at `end`, and the integral of the divergence of the velocity on the way there [B] (zeros without a probe):
    how much the logarithm of the density falls (Chen et al. 2018, theorem 1).

    Runge and Kutta's method of order 4 with steps of one length. The divergence is Hutchinson's estimate, one product
    with the Jacobian (Grathwohl et al. 2019, equation 7)."""

    def slopes(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        if probe is None:
            return velocity(x, t), x.new_zeros(len(x))
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            flow = velocity(x, t)
            (product,) = torch.autograd.grad((flow * probe).sum(), x, create_graph=learning)
        return flow, (product * probe).sum(1)

    total, step = x.new_zeros(len(x)), (end - start) / steps
    for number in range(steps):
        t = start + number * step
        k1, d1 = slopes(x, t)
        k2, d2 = slopes(x + step / 2 * k1, t + step / 2)
        k3, d3 = slopes(x + step / 2 * k2, t + step / 2)
        k4, d4 = slopes(x + step * k3, t + step)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total = total + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return x, total


class StyleFlow(ModelMixin, ConfigMixin):
    """The flow and the axes in which it sees w.

    Args:
        names: K keys of attributes, all of which it is given and any of which can be edited.
        num_ws, w_dim: the shape of w.
        size: how many principal axes of w it moves.
        width: of its hidden layers.
        blocks: flows that follow one another.
        steps: of the solver, in each block.
        space, fingerprint: as of `Directions`.

    Buffers: `mean` [num_ws * w_dim] and `axes` [size, num_ws * w_dim] of w, `spreads` [size] along them; `logit_mean`
    and `logit_spread` [K] of the classifier's logits over the photos.
    """

    @register_to_config
    def __init__(
        self,
        names: tuple[str, ...] = (),
        num_ws: int = 14,
        w_dim: int = 256,
        size: int = 64,
        width: int = 192,
        blocks: int = 2,
        steps: int = 2,
        space: Literal["inversion", "origin"] = "inversion",
        fingerprint: str = "",
    ):
        super().__init__()
        self.flows = nn.ModuleList(FlowBlock(size, len(names), width) for _ in range(blocks))
        self.register_buffer("mean", torch.zeros(num_ws * w_dim))
        self.register_buffer("axes", torch.zeros(size, num_ws * w_dim))
        self.register_buffer("spreads", torch.ones(size))
        self.register_buffer("logit_mean", torch.zeros(len(names)))
        self.register_buffer("logit_spread", torch.ones(len(names)))

    @property
    def names(self) -> list[str]:
        return list(self.config.names)

    @property
    def logit_names(self) -> list[str]:
        """What the classifier calls the K attributes (CelebA's names)."""
        return [ATTRIBUTES[name].celeba for name in self.names]

    def conditions(self, logits: Tensor) -> Tensor:
        """Logits [B, K] -> standard scores [B, K], no further out than photos are."""
        return ((logits - self.logit_mean) / self.logit_spread).clamp(-MOST_CONDITION, MOST_CONDITION)

    def coordinates(self, w: Tensor) -> Tensor:
        """w [B, num_ws, w_dim] -> its place along the axes [B, size], in spreads."""
        return (w.flatten(1) - self.mean) @ self.axes.T / self.spreads

    def to_noise(self, x: Tensor, conditions: Tensor, probe: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coordinates [B, size] -> z [B, size], and the logarithm of the density of x given the conditions [B], which
        is told with a probe only (see `integrate`)."""
        total = x.new_zeros(len(x))
        for block in reversed(self.flows):
            # Backwards in time the integral has the other sign.
            x, divergence = integrate(
                lambda x, t, block=block: block(x, t, conditions), x, 1.0, 0.0, self.config.steps, probe
            )
            total = total + divergence
        return x, total - 0.5 * (x.square() + LOG_2PI).sum(1)

    def from_noise(self, z: Tensor, conditions: Tensor) -> Tensor:
        """z [B, size] -> coordinates [B, size]."""
        for block in self.flows:
            z, _ = integrate(lambda x, t, block=block: block(x, t, conditions), z, 0.0, 1.0, self.config.steps)
        return z

    @torch.no_grad()
    def edit(
        self,
        w: Tensor,  # [B, num_ws, w_dim]
        logits: Tensor,  # [B, K] of the photos, by `logit_names`
        strengths: Mapping[str, float],  # in standard deviations of the logits
    ) -> Tensor:
        """w as it is with other attributes [B, num_ws, w_dim]; without strengths, w itself.

        Raises:
            ValueError: an unknown attribute or an impossible strength, see `check_strengths`.
        """
        strengths = check_strengths(strengths, self.names)
        # More of an attribute whose slider is the opposite of the label is less of the label.
        moved = [strengths.get(name, 0.0) * ATTRIBUTES[name].sign for name in self.names]
        before = self.conditions(logits)
        z, _ = self.to_noise(self.coordinates(w), before)
        # Less what the same way gives for the attributes as they were: the solver's error is in both.
        change = self.from_noise(z, before + before.new_tensor(moved)) - self.from_noise(z, before)
        return w + (change * self.spreads @ self.axes).unflatten(1, w.shape[1:])
