"""Muon: every direction of a matrix moves alike."""

import torch

from train.model.muon import Muon, orthogonalised


def test_muon_moves_every_direction_alike():
    torch.manual_seed(0)
    skewed = torch.randn(12, 6) @ torch.diag(torch.logspace(0, -2, 6))
    for matrix in (skewed, skewed.T):
        values = torch.linalg.svdvals(orthogonalised(matrix).float())
        assert values.min() > 0.4 and values.max() < 1.4, values
    kernel = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))
    kernel.grad = torch.randn_like(kernel)
    Muon([kernel], lr=0.1).step()
    # A step has the root mean square of Adam's, and goes downhill.
    assert 0.1 < kernel.detach().square().mean().sqrt() / 0.02 < 1.5 and (kernel * kernel.grad).sum() < 0


def test_muon_reaches_a_minimum_that_is_steep_in_one_direction_only():
    torch.manual_seed(0)
    target, scales = torch.randn(5, 7), torch.logspace(0, -2, 7)
    weight = torch.nn.Parameter(torch.zeros(5, 7))
    optimizer = Muon([weight], lr=0.3)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
        weight.grad = (weight.detach() - target) * scales
        optimizer.step()
    assert (weight - target).abs().max() < 0.05
