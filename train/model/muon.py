"""Muon (Jordan et al. 2024): momentum whose matrix is made orthogonal, for convolutions and style layers.

Adam scales each weight by itself; Muon moves all directions of a layer alike, the rare ones too, which in short runs
needs about half the steps. torch.optim.Muon takes matrices only; here a convolution is one, [out, in * k * k].
"""

import torch
from torch import Tensor


# The odd polynomial whose iteration drives singular values towards 1 (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 4
MATCH_ADAM = 0.2  # the root mean square of Adam's steps, relative to its rate (Liu et al. 2025, section 2.2)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values of about 1, [R, C] -> [R, C], in bfloat16 on a GPU."""
    a, b, c = COEFFICIENTS
    # CPUs of many kinds multiply bfloat16 more slowly than float32.
    x = matrix.to(torch.bfloat16 if matrix.device.type == "cuda" else torch.float32)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Rates are those that Adam would have: steps have the same root mean square."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov
                matrix = ahead.flatten(1)
                step = orthogonalised(matrix).to(parameter.dtype).view(parameter.shape)
                parameter.add_(step, alpha=-group["lr"] * MATCH_ADAM * max(matrix.shape) ** 0.5)
