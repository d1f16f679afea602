"""The flow against problems whose answer is known."""

import math

import numpy as np
import pytest
import torch

from preim3d.pipeline import load_component
from preim3d.style_flow import FlowBlock, StyleFlow, integrate
from train.editing.styleflow import fit, learn


def moving_flow(names=("smile", "age"), size=3) -> StyleFlow:
    """A flow that goes somewhere, as an untrained one does not."""
    torch.manual_seed(0)
    flow = StyleFlow(names, num_ws=2, w_dim=4, size=size, width=16, steps=4)
    for block in flow.flows:
        torch.nn.init.normal_(block.last.linear.weight, std=0.3)
        torch.nn.init.normal_(block.last.modulation.weight, std=0.3)
    flow.axes.copy_(torch.linalg.qr(torch.randn(8, size))[0].T)
    flow.spreads.copy_(torch.linspace(2, 1, size))
    flow.mean.normal_()
    return flow.requires_grad_(False)


def test_the_solver_knows_growth_and_turning():
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    grown, total = integrate(lambda x, t: math.log(2) * x, x, 0.0, 1.0, 8, torch.tensor([[1.0, -1.0]]).double())
    assert torch.allclose(grown, 2 * x, atol=1e-6) and total.item() == pytest.approx(2 * math.log(2))
    # A quarter turn, the faster the later: divergence 0.
    speed = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    turned, total = integrate(lambda x, t: math.pi * t * x @ speed, x, 0.0, 1.0, 16, torch.ones_like(x))
    assert torch.allclose(turned, torch.tensor([[-2.0, 1.0]]).double(), atol=1e-4) and abs(total.item()) < 1e-6
    assert integrate(lambda x, t: x, x, 0.0, 1.0, 4)[1].tolist() == [0.0]


def test_backwards_and_forwards_is_where_it_was():
    flow, x, conditions = moving_flow(), torch.randn(20, 3), torch.randn(20, 2)
    z, _ = flow.to_noise(x, conditions)
    assert (z - x).abs().max() > 0.1
    assert (flow.from_noise(z, conditions) - x).abs().max() < 1e-4


class Growth(torch.nn.Module):
    """dx/dt = log(2) x, whatever the attributes."""

    def forward(self, x, t, conditions):
        return math.log(2) * x


def test_the_density_is_that_of_a_wider_gaussian():
    flow = StyleFlow(("smile",), num_ws=1, w_dim=3, size=3, blocks=1, steps=8)
    flow.flows[0] = Growth()
    x = torch.randn(10, 3)
    z, density = flow.to_noise(x, torch.zeros(10, 1), torch.ones(10, 3))
    expected = torch.distributions.Normal(0, 2).log_prob(x).sum(1)
    assert torch.allclose(z, x / 2, atol=1e-5) and torch.allclose(density, expected, atol=1e-4)


def test_the_estimate_of_the_divergence_is_right_on_average():
    torch.manual_seed(0)
    block, x, conditions = FlowBlock(2, 1, 8), torch.randn(1, 2), torch.randn(1, 1)
    torch.nn.init.normal_(block.last.linear.weight)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x, 0.5, conditions)[0], x)[:, 0]
    # All four signs there are: their mean is the trace itself. The step is so short that nothing else changes.
    probes = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    _, total = integrate(lambda x, t: block(x, 0.5, conditions.expand(4, -1)), x.expand(4, -1), 0.0, 1e-4, 1, probes)
    assert total.mean().item() / 1e-4 == pytest.approx(jacobian.trace().item(), rel=1e-2)


def test_a_flow_that_learned_nothing_moves_nothing():
    flow, x = StyleFlow(("smile",), 1, 4, size=4), torch.randn(5, 4)
    assert torch.equal(flow.to_noise(x, torch.randn(5, 1))[0], x)


def test_an_edit_of_nothing_changes_nothing(tmp_path):
    flow, w, logits = moving_flow(), torch.randn(3, 2, 4), torch.randn(3, 2)
    assert torch.equal(flow.edit(w, logits, {}), w) and torch.equal(flow.edit(w, logits, {"smile": 0}), w)
    edited = flow.edit(w, logits, {"smile": 1})
    assert (edited - w).abs().max() > 0.01
    # What lies beside the axes stays.
    change = (edited - w).flatten(1)
    assert torch.allclose(change @ flow.axes.T @ flow.axes, change, atol=1e-5)
    flow.save_pretrained(tmp_path)
    assert torch.equal(load_component(StyleFlow, tmp_path, torch.float32).edit(w, logits, {"smile": 1}), edited)
    for strengths, said in (({"hat": 1}, "`hat` is no attribute"), ({"smile": 11}, "must lie in -10..10")):
        with pytest.raises(ValueError, match=said):
            flow.edit(w, logits, strengths)


@pytest.fixture(scope="module")
def learned():
    """Latents whose first entry is the smile and whose second the youth, and a flow that learned so."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((600, 3)).astype(np.float32)
    w = 0.3 * rng.standard_normal((600, 1, 4)).astype(np.float32)
    w[:, 0, :2] += logits[:, :2]
    names = np.array(["Smiling", "Young", "Narrow_Eyes"])
    latents = {"w": w, "logits": logits, "attribute_names": names}
    return latents, *learn(latents, ["smile", "age"], 60, 0, {"space": "origin", "fingerprint": "abc"})


def test_what_is_learned_is_likelier_than_a_gaussian(learned):
    _, flow, report = learned
    # A standard normal of 1.42 nats, of which two of four coordinates are told by the attributes to 29 %.
    assert report["nll_before"] == pytest.approx(1.42, abs=0.1) and report["nll"] < 1.0
    assert report["axes"] == 4 and report["attributes"] == ["smile", "age"] == flow.names
    assert flow.config.fingerprint == "abc" and flow.config.space == "origin"


def test_an_edit_moves_its_attribute_and_no_other(learned):
    latents, flow, _ = learned
    w, logits = torch.from_numpy(latents["w"][:100]), torch.from_numpy(latents["logits"][:100, :2])
    middle = logits.abs().max(1).values < 1.5
    w, logits = w[middle], logits[middle]
    change = (flow.edit(w, logits, {"smile": 1.0}) - w).mean(0)[0]
    assert change[0] == pytest.approx(1, abs=0.2) and change[1:].abs().max() < 0.2
    # Age is the opposite of youth.
    change = (flow.edit(w, logits, {"age": 1.0}) - w).mean(0)[0]
    assert change[1] == pytest.approx(-1, abs=0.2) and abs(change[0]) < 0.2


def test_the_same_seed_gives_the_same_flow(learned):
    latents, *_ = learned
    about = {"space": "origin", "fingerprint": ""}
    first, second, other = (learn(latents, None, 3, seed, about)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_mistakes_are_one_sentence(learned):
    latents, *_ = learned
    few = {name: column[:50] for name, column in latents.items()} | {"attribute_names": latents["attribute_names"]}
    with pytest.raises(ValueError, match="100 latents or more, not from 50"):
        learn(few, None, 3, 0, {})
    with pytest.raises(ValueError, match="`hat` is no attribute that the classifier reads"):
        learn(latents, ["hat"], 3, 0, {})
    flow = StyleFlow(("smile",), 1, 2, size=2)
    with pytest.raises(FloatingPointError, match="no number at step 1"):
        fit(flow, torch.full((100, 2), math.nan), torch.zeros(100, 1), 3, 0)
