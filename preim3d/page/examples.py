"""Heads to look at before any upload: all that the page shows of them lies on the disk, so nothing is computed."""

from pathlib import Path

import numpy as np
from PIL import Image

from preim3d.page.visitor import Visitor, data_uri
from preim3d.tuning import Tuning
from preim3d.turntable import COLUMNS
from preim3d.weights import read_json


def find_examples(folder: Path, fingerprint: str) -> list[Path]:
    """What `python -m train.examples` made of portraits with just these weights."""
    found = []
    for result in sorted(folder.glob("examples/*/result.json")):
        if read_json(result, "weights", "photo_angles")["weights"] == fingerprint:
            found.append(result.parent)
        else:
            print(f"The example {result.parent} was made with other weights and is not shown; make it again.")
    return found


def visit_example(folder: Path) -> Visitor:
    angles = read_json(folder / "result.json", "photo_angles")["photo_angles"]
    head = np.load(folder / "head.npz")
    with Image.open(folder / "turn.webp") as frames, Image.open(folder / "crop.webp") as crop:
        side = frames.width // COLUMNS
        return Visitor(
            origin="example",
            w=head["w"],
            tuning=Tuning.from_bytes(head["tuning"].tobytes()) if "tuning" in head else None,
            crop=crop.convert("RGB"),
            photo_angles=tuple(angles),
            front=frames.convert("RGB").crop((0, 0, side, side)),
            frames=data_uri(frames.convert("RGB")),
        )
