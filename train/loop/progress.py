"""How far a stage is: its budget in minutes or steps, its loss terms, images/s and time left, as a bar on a terminal
and as a line now and then in a log."""

import math
import sys
import time

from torch import Tensor
from tqdm import tqdm


class Progress:
    """Counts steps against a budget of minutes, or of steps, over all the pieces of a resumed run.

    The learning rate follows `share` (0 at the start, 1 at the end), so a run's schedule fits whatever time it is
    given."""

    def __init__(
        self,
        minutes: float | None = None,  # Budget of wall time...
        steps: int | None = None,  # ...or of steps; with both, whichever comes first.
        *,
        step: int = 0,  # Steps done before (from a checkpoint).
        seconds: float = 0.0,  # Seconds spent before (from a checkpoint).
        every_seconds: float = 15.0,  # A line at most this often; a bar is drawn ten times as often.
        quiet: bool = False,  # Count, but print nothing: of several processes one reports.
    ):
        if minutes is None and steps is None:
            raise ValueError("Give a budget: `minutes` or `steps`.")
        self.minutes, self.steps, self.step, self.spent = minutes, steps, step, seconds
        self.quiet, self.started = quiet, time.monotonic()
        on_terminal = sys.stderr.isatty() and not quiet
        self.bar = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar:20}| {desc}") if on_terminal else None
        self.every_seconds = every_seconds / 10 if self.bar else every_seconds
        self.shown_at, self.images, self.averages = self.started, 0, {}

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    @property
    def share(self) -> float:
        by_time = self.seconds / (60 * self.minutes) if self.minutes else 0.0
        by_steps = self.step / self.steps if self.steps else 0.0
        return min(1.0, max(by_time, by_steps))

    @property
    def done(self) -> bool:
        return self.share >= 1.0

    def advance(self, images: int, **terms: float | Tensor) -> bool:
        """Count one step of `images` images and its loss terms; True when it was shown (a moment to save or to look).

        Raises FloatingPointError naming the step and the term that is not a number; terms on a GPU are looked at when
        they are shown and by `check`, as reading them would make every step wait."""
        self.step += 1
        self.images += images
        must_be_numbers(self.step, terms)
        for name, value in terms.items():
            value = value.detach() if isinstance(value, Tensor) else float(value)
            self.averages[name] = value if name not in self.averages else 0.95 * self.averages[name] + 0.05 * value
        now = time.monotonic()
        if now - self.shown_at < self.every_seconds and not self.done:
            return False
        self.check()
        share = max(self.share, 1e-6)
        left = self.seconds * (1 - share) / share
        losses = "  ".join(f"{name} {value:.4f}" for name, value in self.averages.items())
        rate = self.images / max(now - self.shown_at, 1e-6)
        line = f"step {self.step}  {losses}  {rate:.0f} images/s  {left / 60:.1f} min left"
        if self.bar is not None:
            self.bar.n = share
            self.bar.set_description_str(line)
            if self.done:
                self.bar.close()
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)
        self.shown_at, self.images = now, 0
        return True

    def check(self) -> None:
        """Raises FloatingPointError where a term has been no number in any step so far: call it before saving, so
        that what is saved is whole. The mean of such a term is none either."""
        self.averages = {name: float(value) for name, value in self.averages.items()}
        must_be_numbers(self.step, self.averages)


def must_be_numbers(step: int, terms: dict[str, float | Tensor]) -> None:
    """Raises FloatingPointError naming the step and the first of `terms` that is infinite or not a number. Tensors on
    a GPU are passed over: to read them is to wait for it."""
    for name, value in terms.items():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            continue
        if not math.isfinite(float(value)):
            raise FloatingPointError(f"Step {step}: the loss term `{name}` is {float(value)}.")


def cosine_rate(share: float, peak: float, *, warm: float = 0.02, floor: float = 0.02) -> float:
    """Learning rate at `share` of the run: linear warm-up over the first `warm`, then a cosine from `peak` to `floor
    * peak`."""
    if share < warm:
        return peak * max(share / warm, 0.01)
    turn = (share - warm) / (1 - warm)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * turn)))
