"""A folder of raw photos -> packed crops, masks, landmarks and poses (`real_photos.py` reads them), which train.faces
and train.landmarks learn from.

    python -m train.photos PHOTOS --weights weights/faces --out dataset/photos

    photo ── preim3d.align ──> crop 256 px, yaw, pitch ── mesh network ──> 120 points, the person

The largest face of every photo is taken, by the networks in WEIGHTS/landmarks. Makes OUT/NNNNN.npz, each written when
it is full, and OUT/failures.json: which photos could not be used, and why. Run again to go on where it stopped, or
when photos came in. Of the names, those whose hash says so are `held`, the same whatever else is in the folder."""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from preim3d.align import FaceAligner, crop_face, inside_photo, photo_corners
from preim3d.files import whole_file
from preim3d.fit import CROP_SIDE
from preim3d.photo import PhotoError, load_photo
from train.loop.arrays import open_arrays
from train.loop.command import command_parser, run_command
from train.photos.real_photos import CROP_PX, Packed, encode, pack


SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".ppm"}
WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "faces"
PER_FILE = 500  # photos; what a killed run loses at most
HELD_ONE_IN = 90
LEAST_SIDE_PX = 140  # of the crop in the photo: a smaller one teaches blur
LEAST_INSIDE, FULL_INSIDE = 0.38, 0.8  # share of the crop that the photo covers: to be of use; to have hair, shoulders


def find_photos(folder: Path) -> list[str]:
    """Paths of the pictures below `folder`, relative to it, sorted."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give one with photos in it.")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    if not names:
        raise FileNotFoundError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}) in it.")
    return names


def pack_photos(
    photos: Path, out: Path, weights: Path = WEIGHTS, processes: int = 1, held_one_in: int = HELD_ONE_IN
) -> tuple[int, dict[str, str]]:
    """Pack all photos that have not been; gives how many are packed, and the reasons of those that cannot be.

    Raises OSError where the disk takes no more; what is written stays."""
    names = find_photos(photos)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".*.npz"):  # of a run that was killed
        left.unlink()
    files = sorted(out.glob("*.npz"))
    packed = {str(name) for file in files for name in open_arrays(file, ("name",), "python -m train.photos")["name"]}
    failures = read_failures(out / "failures.json")
    todo = [name for name in names if name not in packed and name not in failures]
    number = 1 + max((int(file.stem) for file in files if file.stem.isdecimal()), default=-1)
    done: list[Packed] = []

    def write() -> None:
        nonlocal number
        if done:
            pack(out / f"{number:05d}.npz", done)
            packed.update(photo.name for photo in done)
            done.clear()
            number += 1
        with whole_file(out / "failures.json") as file:
            file.write_text(json.dumps(dict(sorted(failures.items())), ensure_ascii=False, indent=1) + "\n", "utf-8")

    for name, result in each_photo(photos, todo, weights, processes, pack_photo):
        if isinstance(result, str):
            failures[name] = result
            continue
        done.append(result._replace(name=name, held=is_held(name, held_one_in)))
        if len(done) == PER_FILE:
            write()
    write()
    return len(packed), failures


def is_held(name: str, one_in: int) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % one_in == 0


def read_failures(path: Path) -> dict[str, str]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def pack_photo(path: Path, aligner: FaceAligner) -> Packed:
    """One photo's entry, without its name and not held. Raises PhotoError where it cannot be used."""
    photo = load_photo(path)
    face = aligner.choose(photo)
    side = CROP_SIDE * face.fit.scale_px
    if side < LEAST_SIDE_PX:
        raise PhotoError(
            "face_too_small", f"The crop is {side:.0f} px wide in the photo; {LEAST_SIDE_PX} is the least."
        )
    corners = photo_corners(photo.size, face) * CROP_PX
    inside = inside_photo(torch.from_numpy(corners)[None], CROP_PX, 0).mean().item()
    if inside < LEAST_INSIDE:
        raise PhotoError(
            "outside", f"Only {100 * inside:.0f} % of the crop are photo; {100 * LEAST_INSIDE:.0f} is the least."
        )
    *_, reading = aligner.read(np.asarray(photo), [face.fit])
    mesh = (reading.points[0].numpy() + [1, 1, 0]) * CROP_PX / 2
    person = F.interpolate(reading.person.sigmoid(), (CROP_PX, CROP_PX), mode="bilinear")[0, 0].numpy()
    crop = crop_face(photo, face).resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS)
    rgba = np.dstack([np.asarray(crop), (person * 255).round().astype(np.uint8)])
    pose = tuple(math.radians(angle) for angle in face.angles_deg)
    return Packed(encode(rgba), corners, mesh, pose, inside > FULL_INSIDE, False, "")


# ---------------------------------------------------------------------------------------------------------------------
# Many processes.


def each_photo(
    photos: Path, names: list[str], weights: Path, processes: int, task: Callable[[Path, FaceAligner], Any]
) -> Iterator[tuple[str, Any]]:
    """Each name with what `task` gives of the photo, in order; with the reason where it raises PhotoError."""
    FaceAligner(weights / "landmarks")  # here first: a pool would start anew, for ever, workers that cannot load it
    # spawn: a process forked from one whose libraries run threads may hang.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start_worker, (photos, weights, task)) as pool:
        results = pool.imap(_work, names)
        yield from zip(names, tqdm(results, total=len(names), unit="photo", mininterval=2))


def _start_worker(photos: Path, weights: Path, task: Callable) -> None:
    global _worker
    torch.set_num_threads(1)  # the processes are many
    cv2.setNumThreads(1)
    _worker = photos, FaceAligner(weights / "landmarks"), task


def _work(name: str) -> Any:
    photos, aligner, task = _worker
    try:
        return task(photos / name, aligner)
    except PhotoError as error:
        return str(error)


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.photos")
    parser.add_argument("photos", type=Path, help="folder of photos; folders in it are searched, too")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with landmarks/ in it")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--held-one-in", type=int, default=HELD_ONE_IN, help="of so many photos one is held out")
    return run_command("train.photos", tell_packed, parser.parse_args(words))


def tell_packed(args: argparse.Namespace) -> None:
    packed, failures = pack_photos(args.photos, args.out, args.weights, args.processes, args.held_one_in)
    print(f"{packed} photos are in {args.out}; {len(failures)} could not be used: {args.out}/failures.json.")
