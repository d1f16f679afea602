"""The heads that the page shows before any upload: public-domain portraits, and all that the page needs of them.

    python -m train.examples --photos PACKED --rows 7 1 3 --weights weights/faces

Each goes through what a visitor's photo goes through, so examples must be made again whenever a network changes. Makes
WEIGHTS/examples/portrait-N/, N from 1, in place of what was there: crop.webp, grid.webp and head.glb, the turning
viewer's turn.webp and depth.webp, head.npz with the latent and what its planes are tuned by, and result.json with the
angles of the photo's camera. Nothing says who it is.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from preim3d.align import CROP_PX
from preim3d.mesh import mesh_bytes
from preim3d.pipeline import Preim3DPipeline, as_array, grid_sheet
from preim3d.turntable import GRID, cameras, pack, turn_angles
from train.loop.command import command_parser, run_command
from train.photos.real_photos import RealPhotos


# Of the packed sets, those whose faces may be shown: works of the US government, in the public domain.
PUBLIC_DOMAIN = ("congress",)
MESH_FACES = 6_000  # of the page's 50,000: these files are bundled
QUALITY, DEPTH_QUALITY = 75, 60  # of WebP, likewise


def make_example(pipeline: Preim3DPipeline, crop: Image.Image, folder: Path) -> None:
    """All that the page shows of a crop, into `folder`."""
    ((head,), (angles_deg, _)) = pipeline.reconstruct(crop), pipeline.aligner.look(crop)
    angles = tuple(round(angle, 1) for angle in angles_deg)
    frames, depths, _ = pipeline.views_and_depths(head, cameras(turn_angles(angles), pipeline.generator.config.pivot))
    folder.mkdir(parents=True)
    crop.save(folder / "crop.webp", quality=QUALITY)
    grid_sheet(frames[GRID]).save(folder / "grid.webp", quality=QUALITY)
    pack(frames).save(folder / "turn.webp", quality=QUALITY)
    pack(depths).save(folder / "depth.webp", quality=DEPTH_QUALITY)
    (folder / "head.glb").write_bytes(mesh_bytes(pipeline.mesh(head, faces=MESH_FACES), "glb"))
    tuning = {} if head.tuning is None else {"tuning": np.frombuffer(head.tuning.to_bytes(), np.uint8)}
    np.savez(folder / "head.npz", w=as_array(head.w), **tuning)
    result = {"weights": pipeline.directions.config.fingerprint, "photo_angles": angles}
    (folder / "result.json").write_text(json.dumps(result) + "\n")


def choose(photos: RealPhotos, rows: list[int]) -> None:
    """Raises ValueError where a photo must not be shown, or was trained with."""
    for row in rows:
        if not 0 <= row < len(photos):
            raise ValueError(f"There is no photo {row}: there are {len(photos)}, numbered from 0.")
        if not photos.names[row].startswith(PUBLIC_DOMAIN):
            raise ValueError(f"Photo {row} is not in the public domain, so it is not shown; choose another row.")
        if not photos.held[row]:
            raise ValueError(f"Photo {row} was trained with, so it would flatter the model; choose another row.")


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.examples")
    parser.add_argument("--photos", type=Path, required=True, help="folder of packed photos")
    parser.add_argument("--rows", type=int, nargs="+", required=True, help="which of them; the first is shown first")
    parser.add_argument("--weights", type=Path, required=True, help="pipeline folder; examples/ goes into it")
    return run_command("train.examples", make_examples, parser.parse_args(words))


def make_examples(args: argparse.Namespace) -> None:
    photos = RealPhotos(args.photos)
    choose(photos, args.rows)
    pipeline = Preim3DPipeline.from_pretrained(args.weights)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    shutil.rmtree(args.weights / "examples", ignore_errors=True)
    for number, row in enumerate(args.rows, 1):
        folder = args.weights / "examples" / f"portrait-{number}"
        make_example(pipeline, crop_of(photos, row), folder)
        print(f"Made {folder}.")


def crop_of(photos: RealPhotos, row: int) -> Image.Image:
    """As `align` would give it, but that the packed photo has half its size."""
    pixels = photos.pixels(np.array([row]))[0, ..., :3]
    return Image.fromarray(pixels).resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS)
