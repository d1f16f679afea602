"""The loop of every stage that trains: step after step until the budget is spent, logged, saved now and then, and
resumed where it stopped as if it never had."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from preim3d.files import whole_file
from train.loop import checkpoint, workers
from train.loop.progress import Progress, must_be_numbers
from train.loop.run_log import RunLog


class Training:
    """One run: OUT/checkpoint.pt, OUT/events and OUT/sheets.

    Of several processes (see `workers.py`) all take the same steps; the first alone writes and prints."""

    def __init__(
        self,
        out: Path,
        parts: dict[str, Any],  # what a checkpoint holds: whatever has state_dict()
        device: str | torch.device,
        *,
        rng: np.random.Generator | None = None,  # that steps draw from one after the other, as from torch's own...
        draws: torch.Generator | None = None,  # ...and this; not if every step has generators made of its number
        also_save: Callable[[], None] = lambda: None,  # what is written after each checkpoint
    ):
        """Goes on from OUT/checkpoint.pt where there is one: `step` and `seconds` tell how far it was, `notes` hold
        what was noted in it. Raises ValueError where that is a checkpoint of other parts."""
        self.out, self.path, self.parts = Path(out), Path(out) / "checkpoint.pt", parts
        self.rng, self.draws, self.also_save = rng, draws, also_save
        self.first = workers.join(str(device)).is_main_process
        self.step, self.seconds, self.notes = 0, 0.0, {}
        if not self.path.is_file():
            return
        try:
            state = checkpoint.load(self.path, parts, rng=rng)
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{self.path} was made with other options ({error}); give those, or another --out."
            ) from error
        self.step, self.seconds, self.notes = state["step"], state["seconds"], state["notes"]
        if draws is not None:
            draws.set_state(self.notes["draws"])
        if self.first:
            print(f"Resumed {self.path} at step {self.step}.")

    def run(
        self,
        take: Callable[[int, float], dict[str, Tensor]],  # steps done, share of the budget spent -> terms of a step
        images: int,  # of a step, in all processes together
        *,
        minutes: float | None,  # Budget of time...
        steps: int | None,  # ...or of steps.
        save_seconds: float,  # between checkpoints
        save_steps: int | None = None,  # or steps between them, whichever comes first
        sheets: int = 0,  # over the whole run
        look: Callable[[], list[Tensor]] = list,  # rows of a sheet
    ) -> None:
        """Until the budget is spent. What is left to do is to `save`, and to `finish` or to close the `log`.

        Raises FloatingPointError where a term is not a number. A disk that takes no more is reported, and the run goes
        on."""
        progress = self.progress = Progress(minutes, steps, step=self.step, seconds=self.seconds, quiet=not self.first)
        self.log = RunLog(self.out, self.step, quiet=not self.first)
        saved_at, saved_step = progress.seconds, progress.step
        # Clocks differ, and all processes must stop and save at the same step.
        while (share := workers.agree(progress.share)) < 1:
            terms = take(progress.step, share)
            self.log.scalars(progress.step + 1, terms)
            if progress.advance(images, **terms):
                self.log.flush()
            if self.first and int(progress.share * sheets) > int(share * sheets):
                self.log.sheet(progress.step, look())
            by_step = save_steps and progress.step - saved_step >= save_steps
            if workers.agree(by_step or progress.seconds - saved_at > save_seconds):
                checkpoint.attempt(self.save, self.path, progress.step)
                saved_at, saved_step = progress.seconds, progress.step

    def save(self) -> None:
        """Raises OSError with the earlier checkpoint whole, FloatingPointError where a term was not a number."""
        progress = self.progress
        progress.check()
        if not self.first:
            return
        self.log.flush()
        if self.draws is not None:
            self.notes["draws"] = self.draws.get_state()
        checkpoint.save(
            self.path,
            self.parts,
            step=progress.step,
            seconds=progress.seconds,
            rng=self.rng,
            notes=self.notes,
        )
        self.also_save()

    def finish(self, figures: dict[str, float], rows: list[Tensor]) -> None:
        """What came out: the last sheet, and OUT/report.json; the log is closed."""
        self.log.sheet(self.progress.step, rows)
        self.log.close()
        done = {"steps": self.progress.step, "minutes": round(self.progress.seconds / 60, 1)}
        with whole_file(self.out / "report.json") as partial:
            partial.write_text(json.dumps(figures | done, indent=2) + "\n")
        print(f"{self.out}: held-out photos {figures}")


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(
    number: int,  # of steps done
    loss: Tensor,
    terms: dict[str, Tensor],  # what the loss is made of
    optimizers: Iterable[Optimizer],
    clip: float = math.inf,  # the largest norm of the gradient
) -> Tensor:
    """One step of every optimizer down the gradient of `loss`; gives the norm that the gradient had.

    Raises FloatingPointError naming the step and the term that is not a number, before it spoils the weights; on a GPU
    `Progress.check` does so before they are saved."""
    optimizers = list(optimizers)
    must_be_numbers(number + 1, {name: term.detach() for name, term in terms.items()})
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    must_be_numbers(number + 1, {"gradient": norm})
    for optimizer in optimizers:
        optimizer.step()
    return norm


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """The exponential moving average of a network takes its step; running statistics follow, too."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for old, new in zip(average.buffers(), network.buffers()):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
