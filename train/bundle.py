"""Trained components -> a folder in pipeline layout, in half precision and small files, with a card and checksums.

    python -m train.bundle --generator runs/generator/generator --encoder runs/encoder/encoder \
        --directions runs/directions --origin runs/origin/directions --landmarks runs/landmarks/networks \
        --out weights/faces
    python -m train.bundle --out weights/faces        # after train.evaluate: writes the card again, with its figures
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch

from preim3d.directions import Directions, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import Preim3DPipeline, load_component
from train.model_card import CARD
from train.report import tables


FILE_LIMIT = "8MB"  # a Space takes files of up to 10 MB without LFS


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m train.bundle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--directions", type=Path)
    parser.add_argument("--origin", type=Path, metavar="DIRECTIONS", help="of the original space, to compare with")
    parser.add_argument("--landmarks", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        if args.generator or args.encoder or args.directions or args.origin:
            assemble(args)
        write_card(args.out)
    except (OSError, ValueError) as mistake:
        print(f"train.bundle: {mistake}", file=sys.stderr)
        return 1
    return 0


def assemble(args: argparse.Namespace) -> None:
    """Write the components given; those not given are taken from the folder as it is, but for directions that belong
    to another pair of networks: then there are none."""

    def component(network, given, name):
        folder = given or args.out / name
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no component; give one with --{name}.")
        return load_component(network, folder, torch.float16)

    encoder = component(PortraitEncoder, args.encoder, "encoder")
    generator = component(TriPlaneGenerator, args.generator, "generator")
    pair = fingerprint(encoder, generator)
    learned = {}
    for name, given in (("directions", args.directions), ("origin_directions", args.origin)):
        if not given and not (args.out / name / "config.json").is_file():
            continue
        learned[name] = component(Directions, given, name)
        if learned[name].config.fingerprint not in ("", pair):
            if given:
                raise ValueError(f"{given} was learned with another encoder or generator; learn it again.")
            del learned[name]
    if args.origin and learned["origin_directions"].config.space != "origin":
        raise ValueError(
            f"{args.origin} was not learned in the original space; make it with train.manifold --samples."
        )
    if "directions" not in learned:
        print("There are no directions of this encoder and generator yet: the bundle has no sliders.")
        learned["directions"] = Directions(
            num_ws=generator.num_ws, w_dim=generator.config.w_dim, fingerprint=pair
        ).half()
    pipeline = Preim3DPipeline(encoder, generator, **learned)
    for name in ("encoder", "generator", "directions", "origin_directions"):
        shutil.rmtree(args.out / name, ignore_errors=True)  # an old shard must not stay behind
    pipeline.save_pretrained(args.out, max_shard_size=FILE_LIMIT)
    for path in args.out.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where the component lay on the machine that trained it
        path.write_text(json.dumps(config, indent=2) + "\n")
    if args.landmarks and args.landmarks.resolve() != (args.out / "landmarks").resolve():
        shutil.copytree(args.landmarks, args.out / "landmarks", dirs_exist_ok=True)


def write_card(folder: Path) -> None:
    """README.md of the folder: the card's text, the evaluation's figures, the checksums of every other file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    checksums = "\n".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder)}" for p in files)
    size = sum(p.stat().st_size for p in files) / 1e6
    card = CARD.format(checksums=checksums, size_mb=size, figures=figures(folder), **sizes(folder))
    (folder / "README.md").write_text(card)
    print(f"wrote {folder / 'README.md'}: {len(files)} files, {size:.1f} MB")


def sizes(folder: Path) -> dict[str, str]:
    """The generator's sizes, in words."""
    generator = json.loads((folder / "generator" / "config.json").read_text())
    directions = json.loads((folder / "directions" / "config.json").read_text())
    plane, rays, pixels = generator["plane_resolution"], generator["ray_resolution"], generator["image_resolution"]
    return {
        "w_size": f"{directions['num_ws']} x {directions['w_dim']}",
        "planes": f"3 x {generator['plane_channels']} x {plane} x {plane}",
        "rays": f"{rays} x {rays}",
        "pixels": f"{pixels} x {pixels}",
    }


def figures(folder: Path) -> str:
    """The evaluation as Markdown tables, or a sentence where there is none yet."""
    if not (folder / "evaluation.json").is_file():
        return "Not evaluated yet (`python -m train.evaluate`)."
    found = json.loads((folder / "evaluation.json").read_text())
    plain = {key: value for key, value in found.items() if isinstance(value, int | float)}
    lines = ["| figure | value |", "|---|---|", *(f"| `{key}` | {value} |" for key, value in plain.items())]
    directions = json.loads((folder / "directions" / "config.json").read_text())
    lines += ["", tables(found, dict(zip(directions["names"], directions["accuracies"])))]
    # Weights from before directions said it have no such list.
    for name, reason in (directions.get("left_out") or {}).items():
        lines.append(f"\nNo slider for `{name}`: {reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
