"""train/checkpoint.py and train/progress.py: a resumed run equals one never stopped; files are whole or not there."""

import pickle

import numpy as np
import pytest
import torch

from train import checkpoint
from train.progress import Progress, cosine_rate


def make_run():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return {"model": model, "optimizer": optimizer}, np.random.default_rng(0)


def train(parts, rng, steps):
    losses = []
    for _ in range(steps):
        x = torch.tensor(rng.standard_normal((4, 3)), dtype=torch.float32) + torch.rand(1)
        loss = parts["model"](x).square().mean()
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        losses.append(loss.item())
    return losses


def test_resumed_run_gives_the_same_losses(tmp_path):
    parts, rng = make_run()
    whole = train(parts, rng, 10)

    parts, rng = make_run()
    train(parts, rng, 4)
    checkpoint.save(tmp_path / "run.pt", parts, step=4, seconds=1.5, rng=rng, notes={"seed": 7})
    parts, rng = make_run()
    torch.rand(5)
    state = checkpoint.load(tmp_path / "run.pt", parts, rng=rng)
    assert state == {"step": 4, "seconds": 1.5, "notes": {"seed": 7}}
    assert train(parts, rng, 6) == whole[4:]


def test_a_failed_save_leaves_the_earlier_file(tmp_path):
    parts, _ = make_run()
    checkpoint.save(tmp_path / "run.pt", parts, step=1)
    before = (tmp_path / "run.pt").read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError, pickle.PicklingError)):
        checkpoint.save(tmp_path / "run.pt", parts, step=2, notes={"not picklable": lambda: 0})
    assert (tmp_path / "run.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_one_part_can_be_taken(tmp_path):
    parts, _ = make_run()
    checkpoint.save(tmp_path / "run.pt", parts, step=1)
    taken = checkpoint.load_part(tmp_path / "run.pt", "model")
    assert torch.equal(taken["weight"], parts["model"].weight)


def test_progress_ends_with_its_budget_and_names_a_nan():
    progress = Progress(steps=3)
    while not progress.done:
        progress.advance(2, l2=0.5)
    assert progress.step == 3
    with pytest.raises(FloatingPointError, match="Step 4: the loss term `l2` is nan"):
        progress.advance(2, l2=float("nan"))


def test_cosine_rate_warms_up_and_decays():
    rates = [cosine_rate(s, 1.0) for s in (0, 0.01, 0.02, 0.5, 1.0)]
    assert rates[0] == 0.01 and rates[1] == 0.5 and rates[2] == 1.0 and 0.4 < rates[3] < 0.6
    assert abs(rates[4] - 0.02) < 1e-9
