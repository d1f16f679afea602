"""A training run's state on disk: written whole or not at all, and enough of it that a resumed run goes on as if
never stopped."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save(
    path: str | Path,
    parts: dict[str, Any],  # Whatever has state_dict(): modules, optimizers, averages.
    *,
    step: int,  # Steps done.
    seconds: float = 0.0,  # Time spent, over all the pieces of the run.
    rng: np.random.Generator | None = None,  # The run's own numpy generator; torch's global one is always kept.
    notes: dict[str, Any] | None = None,  # Plain numbers, strings, lists, tensors.
) -> None:
    """Write a checkpoint beside `path` and move it into place, so that a kill at any moment leaves the old file or
    the new one.

    Raises OSError (disk full, folder not writable) with the earlier checkpoint untouched."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "step": step,
        "seconds": seconds,
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": None if rng is None else rng.bit_generator.state,
        "notes": notes or {},
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            # Without it a power cut after the rename may leave an empty file under the final name.
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(
    path: str | Path,
    parts: dict[str, Any],
    *,
    rng: np.random.Generator | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Put a checkpoint's state back into `parts` (by name; a name the file lacks is a KeyError) and into the random
    generators.

    Returns {"step", "seconds", "notes"}. Nothing in the file is executed (weights_only)."""
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["torch_rng"].cpu())
    if rng is not None and state["numpy_rng"] is not None:
        rng.bit_generator.state = state["numpy_rng"]
    return {"step": state["step"], "seconds": state["seconds"], "notes": state["notes"]}


def load_part(path: str | Path, name: str, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The state dict of one part, for a stage that starts from what another stage trained."""
    return torch.load(path, map_location=device, weights_only=True)["parts"][name]
