"""Portraits -> one sheet: each face's crop, its head at once and improved, and some edits. For looking, not for
measuring.

    python -m train.showcase portrait.jpg --out sheet.png
    python -m train.showcase --packed PACKED --rows 7 1 3 4 --out weights/faces/photos.jpg
    python -m train.showcase --packed PACKED --rows 7 --teaser --out weights/faces/teaser.jpg

A face takes a minute, as its likeness is improved. A teaser shows one as it is at once: the photo, its head from nine
sides, up to nine edits. Only rows that `train.examples` takes are shown: in the public domain, and never trained with.
tests/screenshot.py makes weights/faces/page.jpg."""

import argparse
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from preim3d.camera import PITCHES_DEG, YAWS_DEG, camera_from_angles
from preim3d.files import whole_file
from preim3d.film import angle_label, pose_sheet
from preim3d.photo import load_photo
from preim3d.pipeline import Preim3DPipeline
from preim3d.tuning import Tuning
from train.loop.command import command_parser, run_command
from train.photos.real_photos import RealPhotos
from train.publishing.examples import choose, crop_of


EDITS = (
    "smile=2", "eyeglasses=1", "sunglasses=2", "age=2", "full_beard=2", "heavy_makeup=1", "grey_hair=2",
    "blond_hair=2", "gender=2",
)  # fmt: skip
SIDES_DEG = ((0, 0), (30, 0))  # yaw and pitch of the reconstruction's views
TEASER_EDITS = 9


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.showcase")
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--packed", type=Path, help="folder of packed photos, with --rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[], help="which of the packed photos")
    parser.add_argument("--weights", type=Path, help="a folder in pipeline layout; default: the bundled one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--edits", nargs="*", metavar="NAME=STRENGTH", help="default: those of the usual ones that the weights know"
    )
    parser.add_argument("--teaser", action="store_true", help="the first face only, from nine sides")
    parser.add_argument("--cell", type=int, default=160, help="pixels of a cell")
    return run_command("train.showcase", show, parser.parse_args(words))


def show(args: argparse.Namespace) -> None:
    pipeline = Preim3DPipeline.from_pretrained(args.weights)
    known = [edit for edit in EDITS if edit.partition("=")[0] in pipeline.directions.names]
    edits = {edit: dict([read_edit(edit)]) for edit in (known if args.edits is None else args.edits)}
    faces = [crop for photo in args.photos for crop in crops(pipeline, photo)]
    faces += packed_crops(args.packed, args.rows)
    if not faces:
        raise ValueError("There is no photo to show: name files, or --packed and --rows.")
    sheet = teaser(pipeline, faces[0], edits, args.cell) if args.teaser else rows(pipeline, faces, edits, args.cell)
    with whole_file(args.out) as temporary:
        sheet.save(temporary, quality=75)  # JPEG's; PNG has none
    print(f"wrote {args.out}: {1 if args.teaser else len(faces)} faces, {sheet.width} x {sheet.height}")


def read_edit(text: str) -> tuple[str, float]:
    name, sign, strength = text.partition("=")
    if not sign:
        raise ValueError(f"`{text}` is no edit; write NAME=STRENGTH, for example smile=2.")
    return name, float(strength)


def crops(pipeline: Preim3DPipeline, path: Path) -> list[Image.Image]:
    """The crop of every face in a photo, the largest first."""
    photo = load_photo(path)
    count = len(pipeline.aligner.faces(photo))
    return [pipeline.align(photo, face) for face in range(1, max(1, count) + 1)]


def packed_crops(folder: Path | None, numbers: list[int]) -> list[Image.Image]:
    if folder is None or not numbers:
        return []
    photos = RealPhotos(folder)
    choose(photos, numbers)
    return [crop_of(photos, number) for number in numbers]


def rows(
    pipeline: Preim3DPipeline, faces: list[Image.Image], edits: dict[str, dict[str, float]], cell_px: int
) -> Image.Image:
    """A row for each face: what the encoder saw, the head at once, the improved one from two
    sides, and its edits seen from the front."""
    cells = []
    for crop in faces:
        ((w, _, tuning),), head = pipeline.reconstruct(crop), improved(pipeline, crop)
        cells += [(crop, "photo"), (views(pipeline, w, tuning, [(0, 0)])[0], "at once")]
        cells += zip(views(pipeline, *head, SIDES_DEG), [f"improved, {yaw}°" for yaw, _ in SIDES_DEG])
        cells += edited(pipeline, *head, edits)
    return sheet_of(cells, 2 + len(SIDES_DEG) + len(edits), cell_px)


def improved(pipeline: Preim3DPipeline, crop: Image.Image) -> tuple[torch.Tensor, Tuning]:
    """w and what its planes are tuned by."""
    (reached,) = deque(pipeline.invert(crop), maxlen=1)
    return reached.w, reached.tuning


def teaser(
    pipeline: Preim3DPipeline, crop: Image.Image, edits: dict[str, dict[str, float]], cell_px: int
) -> Image.Image:
    """Side by side, three cells high: the photo, the nine views of the pose grid, nine edits at most."""
    ((w, _, tuning),) = pipeline.reconstruct(crop)
    head = w, tuning
    sides = [(yaw, pitch) for pitch in PITCHES_DEG for yaw in YAWS_DEG]
    nine = sheet_of([*zip(views(pipeline, *head, sides), [angle_label(*side) for side in sides])], 3, cell_px)
    parts = [crop.resize((nine.height, nine.height), Image.Resampling.LANCZOS), nine]
    if edits:
        parts.append(sheet_of(edited(pipeline, *head, dict([*edits.items()][:TEASER_EDITS])), 3, cell_px))
    gap = cell_px // 10
    whole = Image.new("RGB", (sum(part.width + gap for part in parts) - gap, nine.height), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + gap
    return whole


def views(
    pipeline: Preim3DPipeline,
    w: torch.Tensor,
    tuning: Tuning | None,
    sides_deg: Sequence[tuple[float, float]],
    strengths: dict[str, float] | None = None,
) -> list[Image.Image]:
    """A head, edited, from some (yaw, pitch)."""
    yaw, pitch = torch.tensor(sides_deg, dtype=torch.float32).deg2rad().T
    cameras = camera_from_angles(yaw, pitch, pivot=pipeline.generator.config.pivot)
    return pipeline.views(pipeline.head(w, tuning, strengths), cameras)


def edited(
    pipeline: Preim3DPipeline, w: torch.Tensor, tuning: Tuning | None, edits: dict[str, dict[str, float]]
) -> list[tuple[Image.Image, str]]:
    """The front view after each edit, and the edit's name."""
    return [(views(pipeline, w, tuning, [(0, 0)], edit)[0], label) for label, edit in edits.items()]


def sheet_of(cells: list[tuple[Image.Image, str]], columns: int, cell_px: int) -> Image.Image:
    pictures = [picture.resize((cell_px, cell_px), Image.Resampling.LANCZOS) for picture, _ in cells]
    return pose_sheet(pictures, [label for _, label in cells], columns)
