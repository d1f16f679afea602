"""The weights of Eq. 6 and 7 at each step: the paper's (A.1) and its released code's. `scale` makes a short run of a
long one: at step s * scale the weights are those of step s."""

DELTA_EVERY = 5000  # steps


def paper_weights(step: int, scale: float = 1.0) -> dict[str, float]:
    """A.1: L_w from step 20,000 on and the surrounding views from 100,000 on, each 1e-4 more every 5,000 steps."""
    return {
        "l2": 1.0,
        "lpips": 0.8,
        "id": 0.4,
        "w": 1e-4 * _deltas(step, 20_000, scale),
        "sur": 1e-4 * _deltas(step, 100_000, scale),
    }


def released_weights(step: int, entries: int, scale: float = 1.0) -> dict[str, float]:
    """The released code's: it takes the mean of the squares of the `entries` numbers of w, the paper their sum."""
    return {
        "l2": 1.0,
        "lpips": 0.8,
        "id": 0.4,
        "w": min(10.0, 0.1 * _deltas(step, 5000, scale)) / entries,
        "sur": 0.1 if _deltas(step, 100_000, scale) else 0.0,
    }


def _deltas(step: int, start: int, scale: float) -> int:
    """How many increments there have been: one at `start`, another every `DELTA_EVERY` steps."""
    return max(0, (round(step / scale) - start) // DELTA_EVERY + 1)
