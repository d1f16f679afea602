"""train/loop/checkpoint.py and progress.py: a resumed run equals one never stopped; files are whole or not there."""

import io
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.loop import checkpoint
from train.loop.progress import Progress, cosine_rate, must_be_numbers
from train.loop.run_log import RunLog


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_run_on_a_gpu_resumes_with_its_generators(tmp_path):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5)).cuda()
        parts = {"model": model, "optimizer": torch.optim.Adam(model.parameters(), 1e-2)}
        return parts, torch.Generator().manual_seed(0)

    def go_on(parts, draws, steps):
        losses = []
        for _ in range(steps):
            loss = parts["model"](torch.rand(4, 3, generator=draws).cuda()).square().mean()
            parts["optimizer"].zero_grad()
            loss.backward()
            parts["optimizer"].step()
            losses.append(loss.item())
        return losses

    whole = go_on(*make(), 10)
    parts, draws = make()
    go_on(parts, draws, 4)
    checkpoint.save(tmp_path / "run.pt", parts, step=4, notes={"draws": draws.get_state()})
    parts, draws = make()
    torch.rand(5, device="cuda")
    draws.set_state(checkpoint.load(tmp_path / "run.pt", parts)["notes"]["draws"])
    assert {state["step"].device.type for state in parts["optimizer"].state.values()} == {"cpu"}
    assert go_on(parts, draws, 6) == whole[4:]


def test_progress_ends_with_its_budget_and_names_a_nan():
    progress = Progress(steps=3)
    while not progress.done:
        progress.advance(2, l2=0.5)
    assert progress.step == 3
    with pytest.raises(FloatingPointError, match="Step 4: the loss term `l2` is nan"):
        progress.advance(2, l2=float("nan"))


def test_what_is_on_a_gpu_is_looked_at_when_shown_and_before_saving():
    must_be_numbers(1, {"l2": torch.zeros((), device="meta")})  # read, this one would raise
    with pytest.raises(FloatingPointError, match="Step 1: the loss term `id` is inf"):
        must_be_numbers(1, {"l2": torch.zeros(()), "id": torch.tensor(float("inf"))})
    progress = Progress(steps=9)
    progress.averages["l2"] = torch.tensor(float("nan"))  # as a step on a GPU leaves it, unseen
    progress.step = 3
    progress.advance(2, l2=torch.tensor(0.5))
    with pytest.raises(FloatingPointError, match="Step 4: the loss term `l2` is nan"):
        progress.check()


def test_the_log_has_every_step_once_it_is_flushed(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.scalars(step, {"l2": torch.tensor(0.5 / step), "id": 0.25})
    log.flush()
    written = list(EventAccumulator(str(tmp_path / "events")).Reload().Scalars("l2"))
    assert [(event.step, event.value) for event in written] == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]
    log.scalars(4, {"l2": 1.0})
    log.close()
    assert EventAccumulator(str(tmp_path / "events")).Reload().Scalars("l2")[-1].step == 4


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(monkeypatch):
    class Stream(io.StringIO):
        def isatty(self):
            return self.terminal

    for terminal in (True, False):
        stream = Stream()
        stream.terminal = terminal
        monkeypatch.setattr("sys.stderr", stream)
        progress = Progress(steps=2, every_seconds=0)
        progress.advance(4, l2=0.5)
        progress.advance(4, l2=0.25)
        text = stream.getvalue()
        assert re.search(r"step 2  l2 0\.4875  \d+ images/s  0\.0 min left", text)
        assert ("100%|" in text) == terminal


def test_a_disk_that_takes_no_more_is_reported(tmp_path, capsys):
    def save():
        raise OSError(28, "No space left on device")

    assert not checkpoint.attempt(save, tmp_path / "run.pt", 7)
    said = capsys.readouterr().err
    assert "Step 7 could not be saved" in said and "No space left on device" in said
    assert checkpoint.attempt(lambda: None, tmp_path / "run.pt", 8)


def test_a_component_is_replaced_file_by_file(tmp_path):
    class Model:
        def __init__(self, files):
            self.files = files

        def save_pretrained(self, folder):
            folder.mkdir()
            for name, text in self.files.items():
                if text is None:
                    raise SafetensorError("I/O error: No space left on device (os error 28)")
                (folder / name).write_text(text)

    checkpoint.save_component(Model({"config.json": "1", "weights": "1"}), tmp_path / "encoder")
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_component(Model({"config.json": "2", "weights": None}), tmp_path / "encoder")
    assert {p.name: p.read_text() for p in (tmp_path / "encoder").iterdir()} == {"config.json": "1", "weights": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]


def test_cosine_rate_warms_up_and_decays():
    rates = [cosine_rate(s, 1.0) for s in (0, 0.01, 0.02, 0.5, 1.0)]
    assert rates[0] == 0.01 and rates[1] == 0.5 and rates[2] == 1.0 and 0.4 < rates[3] < 0.6
    assert abs(rates[4] - 0.02) < 1e-9
