"""The heads that the page shows before any upload: synthetic portraits, and all that the page needs of them.

    python -m train.examples --source heads.npz --weights weights/faces --seeds 31 44 61

Each goes through what a visitor's photo goes through, so examples must be made again whenever encoder, generator or
directions change. Makes WEIGHTS/examples/portrait-SEED/: portrait.png, its crop.png, grid.png and head.glb, the
turning viewer's turn.webp and depth.webp, and result.json with the latent and the angles of the portrait's camera."""

import argparse
import json
from pathlib import Path

import torch

from preim3d.mesh import mesh_bytes
from preim3d.photo import load_photo
from preim3d.pipeline import Preim3DPipeline, as_array, grid_sheet
from preim3d.turntable import GRID, cameras, pack, turn_angles
from train.heads.__main__ import draw_portrait


def make_example(pipeline: Preim3DPipeline, portrait: Path, folder: Path) -> None:
    """All that the page shows of a portrait, into `folder`."""
    photo = load_photo(portrait)
    angles = pipeline.aligner.choose(photo).angles_deg
    crop = pipeline.align(photo)
    head = pipeline.head(pipeline.encode(crop))
    frames, depths = pipeline.views_and_depths(head, cameras(turn_angles(angles), pipeline.generator.config.pivot))
    folder.mkdir(parents=True, exist_ok=True)
    crop.save(folder / "crop.png")
    grid_sheet(frames[GRID]).save(folder / "grid.png")
    pack(frames).save(folder / "turn.webp", quality=90)
    pack(depths).save(folder / "depth.webp", quality=90)
    (folder / "head.glb").write_bytes(mesh_bytes(pipeline.mesh(head), "glb"))
    result = {
        "weights": pipeline.directions.config.fingerprint,
        "photo_angles": angles,
        "w": as_array(head.w).tolist(),
    }
    (folder / "result.json").write_text(json.dumps(result) + "\n")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the .npz of `python -m train.heads build`")
    parser.add_argument("--weights", type=Path, required=True, help="pipeline folder; examples/ goes into it")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="which people")
    args = parser.parse_args(words)
    pipeline = Preim3DPipeline.from_pretrained(args.weights).to("cuda" if torch.cuda.is_available() else "cpu")
    for seed in args.seeds:
        folder = args.weights / "examples" / f"portrait-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        draw_portrait(args.source, folder / "portrait.png", seed, 0.0, 0.0, 640)
        make_example(pipeline, folder / "portrait.png", folder)
        print(f"Made {folder}.")


if __name__ == "__main__":
    main()
