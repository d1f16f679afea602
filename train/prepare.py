"""A folder of raw photos -> posed crops in EG3D's layout, which `train.encoder --data` reads.

    python -m train.prepare PHOTOS --reader dataset/attributes/reader --out dataset/photos

    photo ── preim3d.align ──> crop 512 px ── reader ──> yaw, pitch ──> camera label

The largest face of every photo is taken. Run again to go on where it stopped: OUT/journal.jsonl has a line for each
photo that is done. Makes OUT/NNNNN/*.png, OUT/dataset.json (the labels) and OUT/failures.json (which photos could not
be used, and why). The angles are our own reader's: its error on held-out heads is in the report.json beside it."""

import argparse
import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from preim3d.align import FaceAligner
from preim3d.camera import FOCAL, PIVOT, RADIUS, camera_from_angles
from preim3d.photo import PhotoError
from train.attributes import HeadReader


SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".ppm"}
PER_FOLDER = 1000  # crops, as EG3D's tool lays them out
LANDMARKS = Path(__file__).parent.parent / "weights" / "faces" / "landmarks"


def find_photos(folder: Path) -> list[str]:
    """Paths of the pictures below `folder`, relative to it, sorted."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give one with photos in it.")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    if not names:
        raise FileNotFoundError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}) in it.")
    return names


def read_journal(path: Path) -> dict[str, dict]:
    """What was done before, by photo. The half line of a run that was killed is taken off the file."""
    if not path.exists():
        return {}
    written = path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        os.truncate(path, len(whole))
    return {entry["photo"]: entry for entry in map(json.loads, whole.decode().splitlines())}


def prepare(
    photos: Path,
    out: Path,
    reader: Path,
    landmarks: Path = LANDMARKS,
    processes: int = 1,
    camera: tuple[float, tuple[float, float, float], float] = (RADIUS, PIVOT, FOCAL),
) -> dict[str, dict]:
    """Prepare all photos that have not been; gives the journal: {photo: {"image", "camera"} or {"failure"}}.

    `camera`: distance, point looked at and focal length of the generator that the labels are for. Raises OSError where
    the disk takes no more; what is done stays done."""
    names, out = find_photos(photos), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    journal_path = out / "journal.jsonl"
    journal = read_journal(journal_path)
    # The crop's number is the photo's place among the names of now, or after those of before.
    taken = {entry["image"] for entry in journal.values() if "image" in entry}
    todo, number = [], 0
    for name in (name for name in names if name not in journal):
        while (image := f"{number // PER_FOLDER:05d}/img{number:08d}.png") in taken:
            number += 1
        todo.append((name, image))
        number += 1
    # spawn: a process forked from one whose libraries run threads may hang.
    context = multiprocessing.get_context("spawn")
    with (
        open(journal_path, "a", encoding="utf-8") as file,
        context.Pool(processes, _start_worker, (photos, out, reader, landmarks, camera)) as pool,
    ):
        for entry in tqdm(pool.imap_unordered(_prepare_photo, todo), total=len(todo), unit="photo", mininterval=2):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            journal[entry["photo"]] = entry
    _write(out / "dataset.json", {"labels": [[e["image"], e["camera"]] for e in journal.values() if "image" in e]})
    failures = {name: entry["failure"] for name, entry in sorted(journal.items()) if "failure" in entry}
    _write(out / "failures.json", failures)
    return journal


def _write(path: Path, content) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _start_worker(photos: Path, out: Path, reader: Path, landmarks: Path, camera) -> None:
    global _worker
    torch.set_num_threads(1)  # the processes are many
    network = HeadReader.from_pretrained(reader).eval()
    _worker = Path(photos), Path(out), network, FaceAligner(landmarks), camera


def _prepare_photo(task: tuple[str, str]) -> dict:
    name, image = task
    photos, out, reader, aligner, (radius, pivot, focal) = _worker
    try:
        crop = aligner.align_photo(photos / name)
    except PhotoError as error:
        return {"photo": name, "failure": str(error)}
    pixels = torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        yaw, pitch = reader(pixels).angles[0]
    path = out / image
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".part")
    crop.save(partial, format="PNG")
    os.replace(partial, path)
    camera = camera_from_angles(yaw, pitch, radius=radius, pivot=pivot, focal=focal)
    return {"photo": name, "image": image, "camera": [round(value, 6) for value in camera.tolist()]}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m train.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of photos; folders in it are searched, too")
    parser.add_argument("--reader", type=Path, required=True, help="made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", type=Path, help="folder of the generator, where its cameras are not EG3D's")
    parser.add_argument("--landmarks", type=Path, default=LANDMARKS, help="folder of the landmark network")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(words)
    try:
        camera = RADIUS, PIVOT, FOCAL
        if args.generator:
            config = json.loads((args.generator / "config.json").read_text())
            camera = config["camera_radius"], tuple(config["pivot"]), config["focal"]
        journal = prepare(args.photos, args.out, args.reader, args.landmarks, args.processes, camera)
    except OSError as mistake:
        print(f"train.prepare: {mistake}", file=sys.stderr)
        return 1
    failed = sum("failure" in entry for entry in journal.values())
    print(f"{len(journal) - failed} photos are in {args.out}; {failed} could not be used: {args.out}/failures.json.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
