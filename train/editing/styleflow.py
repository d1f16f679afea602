"""Labelled latents -> a flow between them and noise, given their attributes (StyleFlow, Abdal et al. 2021).

It maximises the likelihood of the latents' principal coordinates given the classifier's logits, one tenth of the
latents kept apart to tell when to stop. StyleFlow's rules of thumb on which rows of w an attribute may change are not
followed: the rows of our w move together."""

import copy

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor
from tqdm import tqdm

from preim3d.directions import ATTRIBUTES
from preim3d.style_flow import StyleFlow
from train.editing.boundaries import PrincipalAxes
from train.editing.stylespace import known
from train.loop.progress import cosine_rate


CONDITIONS = 17  # attributes that the flow is told, as many as StyleFlow's
FEWEST = 100  # latents
AXES = 64  # of w; they hold .987 of the variance of the bundled encoder's
BATCH, RATE, DECAY = 256, 4e-3, 1e-2
EPOCHS = 20  # more, and it learns the latents by heart
LOOKS = 10  # at the latents kept apart, in all


def learn(
    latents: NpzFile,
    keys: list[str] | None,  # attributes; None = the first that the classifier knows
    steps: int | None,  # of training; None = `EPOCHS` times through the latents
    seed: int,
    about: dict[str, str],  # space and fingerprint
) -> tuple[StyleFlow, dict]:
    """The flow, and a report.

    Raises:
        ValueError: there are too few latents.
        FloatingPointError: the loss is no number.
    """
    names = [str(name) for name in latents["attribute_names"]]
    w, logits = (torch.from_numpy(latents[name].astype(np.float32)) for name in ("w", "logits"))
    if len(w) < FEWEST:
        raise ValueError(f"A flow is learned from {FEWEST} latents or more, not from {len(w)}.")
    keys = known(keys, names, CONDITIONS)
    principal = PrincipalAxes(w.numpy())
    size = min(AXES, len(principal.axes))
    torch.manual_seed(seed)
    flow = StyleFlow(tuple(keys), *w.shape[1:], size=size, **about)
    read = logits[:, [names.index(ATTRIBUTES[key].celeba) for key in keys]]
    flow.mean.copy_(w.flatten(1).mean(0))
    flow.axes.copy_(torch.from_numpy(principal.axes[:size].copy()))
    flow.spreads.copy_(torch.from_numpy(principal.coordinates[:, :size].std(0)))
    flow.logit_mean.copy_(read.mean(0))
    flow.logit_spread.copy_(read.std(0).clamp(min=1e-3))
    variance = np.square(principal.coordinates).sum(0)
    steps = steps or round(EPOCHS * len(w) / BATCH)
    share = float(variance[:size].sum() / variance.sum())
    report = fit(flow, flow.coordinates(w), flow.conditions(read), steps, seed)
    return flow, {"attributes": keys, "axes": size, "variance": share, "steps": steps} | report


def fit(flow: StyleFlow, x: Tensor, conditions: Tensor, steps: int, seed: int) -> dict[str, float]:
    """Trains the flow on coordinates [N, size] and conditions [N, K], and leaves it as it was when those kept apart
    were likeliest. Gives negative log-likelihoods in nats per coordinate: theirs as a standard normal, theirs at the
    end, that of those learned from; and at which step they were likeliest."""
    draws = torch.Generator().manual_seed(seed)

    def probe(like: Tensor) -> Tensor:
        return torch.randint(2, like.shape, generator=draws) * 2.0 - 1

    def loss(rows: Tensor, probe: Tensor) -> Tensor:
        return -flow.to_noise(x[rows], conditions[rows], probe)[1].mean() / x.shape[1]

    order = torch.randperm(len(x), generator=draws)
    apart, learned = order[: len(x) // 10], order[len(x) // 10 :]
    fixed = probe(x[apart])
    with torch.no_grad():
        before = lowest = loss(apart, fixed).item()
    best, best_step, recent = copy.deepcopy(flow.state_dict()), 0, 0.0
    optimizer = torch.optim.AdamW(flow.parameters(), RATE, weight_decay=DECAY)
    for step in tqdm(range(1, steps + 1), desc="flow", mininterval=10):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step / steps, RATE)
        rows = learned[torch.randint(len(learned), (min(BATCH, len(learned)),), generator=draws)]
        value = loss(rows, probe(x[rows]))
        if not value.isfinite():
            raise FloatingPointError(f"The flow's loss is no number at step {step}; give another --seed.")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        recent += 0.05 * (value.item() - recent) if step > 1 else value.item()
        if step % max(1, steps // LOOKS) == 0:
            with torch.no_grad():
                reached = loss(apart, fixed).item()
            if reached < lowest:
                lowest, best, best_step = reached, copy.deepcopy(flow.state_dict()), step
    flow.load_state_dict(best)
    return {"nll_before": before, "nll": lowest, "nll_learned": recent, "step": best_step}
