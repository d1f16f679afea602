"""A folder of raw photos -> posed crops in EG3D's layout, which `train.encoder --data` reads.

    python -m train.prepare PHOTOS --out dataset/photos

    photo ── preim3d.align ──> crop 512 px, yaw, pitch ──> camera label

The largest face of every photo is taken. Run again to go on where it stopped: OUT/journal.jsonl has a line for each
photo that is done. Makes OUT/NNNNN/*.png, OUT/dataset.json (the labels) and OUT/failures.json (which photos could not
be used, and why). `train.photos` packs small crops with masks and landmarks instead."""

import argparse
import functools
import json
import math
import os
from pathlib import Path

from preim3d.align import FaceAligner, crop_face
from preim3d.camera import FOCAL, PIVOT, RADIUS, camera_from_angles
from preim3d.files import whole_file
from preim3d.photo import load_photo
from train.loop.command import command_parser, run_command
from train.photos.packing import WEIGHTS, each_photo, find_photos


PER_FOLDER = 1000  # crops, as EG3D's tool lays them out


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
    weights: Path = WEIGHTS,
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
    images, number = {}, 0
    for name in (name for name in names if name not in journal):
        while (image := f"{number // PER_FOLDER:05d}/img{number:08d}.png") in taken:
            number += 1
        images[name] = image
        number += 1
    task = functools.partial(prepare_photo, places={photos / name: out / image for name, image in images.items()})
    with open(journal_path, "a", encoding="utf-8") as file:
        for name, angles in each_photo(photos, list(images), weights, processes, task):
            if isinstance(angles, str):
                entry = {"photo": name, "failure": angles}
            else:
                label = camera_from_angles(*angles, radius=camera[0], pivot=camera[1], focal=camera[2])
                entry = {"photo": name, "image": images[name], "camera": [round(x, 6) for x in label.tolist()]}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            journal[name] = entry
    _write(out / "dataset.json", {"labels": [[e["image"], e["camera"]] for e in journal.values() if "image" in e]})
    failures = {name: entry["failure"] for name, entry in sorted(journal.items()) if "failure" in entry}
    _write(out / "failures.json", failures)
    return journal


def prepare_photo(path: Path, aligner: FaceAligner, places: dict[Path, Path]) -> tuple[float, float]:
    """Writes the crop of a photo to its place; gives yaw and pitch in radians. Raises PhotoError."""
    photo = load_photo(path)
    face = aligner.choose(photo)
    with whole_file(places[path]) as file:
        crop_face(photo, face).save(file)
    yaw, pitch = face.angles_deg
    return math.radians(yaw), math.radians(pitch)


def _write(path: Path, content) -> None:
    with whole_file(path) as file:
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.prepare")
    parser.add_argument("photos", type=Path, help="folder of photos; folders in it are searched, too")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--generator", type=Path, help="folder of the generator, where its cameras are not EG3D's")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with landmarks/ in it")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    return run_command("train.prepare", tell_prepared, parser.parse_args(words))


def tell_prepared(args: argparse.Namespace) -> None:
    camera = RADIUS, PIVOT, FOCAL
    if args.generator:
        config = json.loads((args.generator / "config.json").read_text())
        camera = config["camera_radius"], tuple(config["pivot"]), config["focal"]
    journal = prepare(args.photos, args.out, args.weights, args.processes, camera)
    failed = sum("failure" in entry for entry in journal.values())
    print(f"{len(journal) - failed} photos are in {args.out}; {failed} could not be used: {args.out}/failures.json.")
