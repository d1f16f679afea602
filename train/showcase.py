"""Photos -> one sheet: each face's crop, its head from two sides, and some edits. For looking, not for measuring.

python -m train.showcase --weights weights/faces --out weights/faces/teaser.png portrait.png
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from PIL import Image

from preim3d.camera import camera_from_angles
from preim3d.files import whole_file
from preim3d.film import pose_sheet
from preim3d.photo import PhotoError, load_photo
from preim3d.pipeline import Preim3DPipeline
from preim3d.weights import WeightsError


EDITS = ("smile=2", "mouth_open=2", "eyeglasses=2", "age=2", "grey_hair=2", "blond_hair=2", "full_beard=2", "hat=2")
SIDES_DEG = ((0, 0), (30, 0))  # yaw and pitch of the reconstruction's views


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m train.showcase", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--weights", type=Path, help="a folder in pipeline layout; default: the bundled one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--edits", nargs="*", default=EDITS, metavar="NAME=STRENGTH")
    parser.add_argument("--cell", type=int, default=160, help="pixels of a cell")
    args = parser.parse_args()
    try:
        edits = {edit: dict([read_edit(edit)]) for edit in args.edits}
        pipeline = Preim3DPipeline.from_pretrained(args.weights)
        faces = [crop for photo in args.photos for crop in crops(pipeline, photo)]
        cells = [cell for crop in faces for cell in row(pipeline, crop, edits)]
        columns = 1 + len(SIDES_DEG) + len(edits)
        sheet = pose_sheet(
            [picture.resize((args.cell,) * 2) for picture, _ in cells], [label for _, label in cells], columns
        )
        with whole_file(args.out) as temporary:
            sheet.save(temporary)
    except (PhotoError, WeightsError, ValueError, OSError) as mistake:
        print(f"train.showcase: {mistake}", file=sys.stderr)
        return 1
    print(f"wrote {args.out}: {len(faces)} faces")
    return 0


def read_edit(text: str) -> tuple[str, float]:
    name, sign, strength = text.partition("=")
    if not sign:
        raise ValueError(f"`{text}` is no edit; write NAME=STRENGTH, for example smile=2.")
    return name, float(strength)


def crops(pipeline: Preim3DPipeline, path: Path) -> list[Image.Image]:
    """The crop of every face in a photo, the largest first."""
    photo = load_photo(path)
    count = len(pipeline.aligner.faces(photo))
    return [pipeline.align(photo, face) for face in range(max(1, count))]


def row(
    pipeline: Preim3DPipeline, crop: Image.Image, edits: dict[str, dict[str, float]]
) -> list[tuple[Image.Image, str]]:
    """Pictures and labels of one face: what the encoder saw, the head, the edits seen from the front."""
    w = pipeline.encode(crop)
    angles = torch.tensor([[math.radians(angle) for angle in side] for side in SIDES_DEG])
    pivot = pipeline.generator.config.pivot
    sides = pipeline.views(pipeline.head(w), camera_from_angles(angles[:, 0], angles[:, 1], pivot=pivot))
    cells = [(crop, "photo")] + list(zip(sides, [f"{yaw}°" for yaw, _ in SIDES_DEG]))
    for label, strengths in edits.items():
        front = camera_from_angles(0.0, 0.0, pivot=pivot)[None]
        cells.append((pipeline.views(pipeline.head(pipeline.edit(w, strengths)), front)[0], label))
    return cells


if __name__ == "__main__":
    sys.exit(main())
