"""A training run's state on disk: written whole or not at all, and enough of it that a resumed run goes on as if
never stopped."""

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError


def save(
    path: str | Path,
    parts: dict[str, Any],  # Whatever has state_dict(): modules, optimizers, averages.
    *,
    step: int,  # Steps done.
    seconds: float = 0.0,  # Time spent, over all the pieces of the run.
    rng: np.random.Generator | None = None,  # The run's own numpy generator; torch's global ones are always kept.
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
        # Dropout on a GPU draws from that GPU's own.
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy_rng": None if rng is None else rng.bit_generator.state,
        "notes": notes or {},
    }
    # In memory first: on a full disk torch's own writer fails with words that do not name the disk.
    packed = io.BytesIO()
    torch.save(state, packed)
    partial = path.with_name(f".{path.name}.part")
    try:
        with open(partial, "wb") as file:
            file.write(packed.getbuffer())
            file.flush()
            # Without it a power cut after the rename may leave an empty file under the final name.
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_component(model: Any, folder: str | Path) -> None:
    """`model.save_pretrained` beside `folder`, then each file into place, so that none is ever half written.

    Raises OSError with the earlier files whole."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        try:
            model.save_pretrained(partial)
        except SafetensorError as error:  # a full disk, in its own words
            raise OSError(None, str(error)) from error
        folder.mkdir(parents=True, exist_ok=True)
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def attempt(save: Any, path: str | Path, step: int) -> bool:
    """`save()`, or one sentence on stderr where the disk takes no more: the run goes on and will try again."""
    try:
        save()
    except OSError as error:
        print(
            f"Step {step} could not be saved to {path} ({error.strerror}); the earlier checkpoint is whole, and the "
            "next save will be tried: make room on the disk.",
            file=sys.stderr,
            flush=True,
        )
        return False
    return True


def load(
    path: str | Path,
    parts: dict[str, Any],
    *,
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """Put a checkpoint's state back into `parts` (by name; a name the file lacks is a KeyError), wherever they are,
    and into the random generators.

    Returns {"step", "seconds", "notes"}; tensors among the notes are on the CPU, as the states of generators must be.
    Nothing in the file is executed (weights_only)."""
    # Not to the device of the parts: optimisers count their steps on the CPU, and each part copies what it takes.
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    torch.set_rng_state(state["torch_rng"])
    for place, kept in zip(range(torch.cuda.device_count()), state.get("cuda_rng", [])):
        torch.cuda.set_rng_state(kept, place)
    if rng is not None and state["numpy_rng"] is not None:
        rng.bit_generator.state = state["numpy_rng"]
    return {"step": state["step"], "seconds": state["seconds"], "notes": state["notes"]}
