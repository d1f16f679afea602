"""train/loop: a resumed run equals one never stopped; files are whole or not there; what is shown and logged."""

import copy
import io
import math
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
from train.loop.training import Training, descend, follow, set_rate


SHEET = torch.zeros(2, 3, 4, 4)


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


def learn(out, steps, stop_at=None):
    """A run of the loop that every stage shares, with dropout and generators that go on from step to step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    average = copy.deepcopy(model)
    rng, draws = np.random.default_rng(0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    training = Training(out, parts, "cpu", rng=rng, draws=draws)
    training.notes.setdefault("begun_at", training.step)

    def step(number, share):
        if number == stop_at:
            raise KeyboardInterrupt
        set_rate(optimizer, cosine_rate(share, 1e-2))
        x = torch.tensor(rng.standard_normal((4, 3)), dtype=torch.float32) + torch.rand(1, generator=draws)
        loss = model(x).square().mean()
        descend(number, loss, {"square": loss}, [optimizer], 1.0)
        follow(average, model, 0.9)
        return {"square": loss.detach()}

    training.run(step, 4, minutes=None, steps=steps, save_seconds=1e9, save_steps=2, sheets=1, look=lambda: [SHEET])
    training.save()
    training.log.close()
    return training


def test_the_loop_saves_logs_and_resumes(tmp_path, capsys):
    whole = learn(tmp_path / "whole", 7)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "killed", 7, stop_at=5)
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 4
    killed = learn(tmp_path / "killed", 7)
    assert "Resumed" in capsys.readouterr().out and killed.notes["begun_at"] == 0 and killed.step == 4
    averages = [training.parts["average"].state_dict() for training in (whole, killed)]
    for name, tensor in averages[0].items():
        assert torch.equal(tensor, averages[1][name]), name
    assert averages[0]["1.num_batches_tracked"] == 7
    logged = [event.step for event in EventAccumulator(str(tmp_path / "whole" / "events")).Reload().Scalars("square")]
    assert logged == [1, 2, 3, 4, 5, 6, 7]
    assert [path.name for path in (tmp_path / "whole" / "sheets").iterdir()] == ["0000007.png"]


def test_a_checkpoint_of_other_parts_is_refused(tmp_path):
    parts, _ = make_run()
    checkpoint.save(tmp_path / "checkpoint.pt", parts, step=1)
    with pytest.raises(ValueError, match="was made with other options"):
        Training(tmp_path, parts | {"more": parts["model"]}, "cpu")


def test_a_loss_that_is_no_number_leaves_the_weights_as_they_were():
    parts, _ = make_run()
    before = parts["model"].weight.detach().clone()
    weight = parts["model"].weight
    for loss, name in ((weight.sum() * math.nan, "square"), ((-weight.square()).sqrt().sum(), "gradient")):
        terms = {"square": loss if name == "square" else torch.tensor(1.0)}
        with pytest.raises(FloatingPointError, match=f"Step 3: the loss term `{name}` is nan"):
            descend(2, loss, terms, [parts["optimizer"]])
    assert torch.equal(parts["model"].weight, before)
