"""Trained networks -> a folder in pipeline layout, in half precision and small files, with a card and checksums.

    python -m train.bundle --generator runs/generator/generator --encoder runs/encoder/encoder \
        --landmarks runs/landmarks/networks --identity dlib_face.safetensors --reader runs/attributes/reader \
        --out weights/faces
    python -m train.bundle --feedback runs/feedback/feedback --out weights/faces
    python -m train.bundle --detail runs/detail/detail --out weights/faces
    python -m train.bundle --perceptual efficientnet_lite0_blocks0-10.safetensors --out weights/faces
    python -m train.bundle --directions runs/directions --origin runs/origin/directions --out weights/faces
    python -m train.bundle --out weights/faces --readme README.md   # after train.evaluate: its figures into both cards

What is not given stays as it is in the folder. The reader goes beside the folder, as weights/reader."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from preim3d.detail import DetailNetwork
from preim3d.directions import Directions, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.face_mesh import FaceMesh
from preim3d.feedback import Feedback
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.landmarks import LandmarkNetwork
from preim3d.pipeline import Preim3DPipeline, load_component
from preim3d.reader import HeadReader
from preim3d.weights import PERCEPTUAL, checksum
from train.judging.evaluation import perceptual_network
from train.loop.command import command_parser, run_command
from train.publishing.identity_weights import from_dlib
from train.publishing.model_card import card, with_headlines


FILE_LIMIT_MB = 8  # a Space takes files of up to 10 MB without LFS
# A tensor that would take more than this in half precision is kept in eight bits: the generator's mean planes, whose
# file would be too large, and the encoder's widest layer. Pictures keep 58 dB to those of the unrounded networks.
HALF_LIMIT_MB = 6
# Kept in eight bits, too: what is added to planes in eight bits, and colours that nothing looks at from near.
ROUGH = {"front_maps", "back.color"}
WEIGHTS_LIMIT_MB = 80  # everything in weights/
STATISTICS = ("running_mean", "running_var")  # of batch norms


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.bundle")
    parser.add_argument("--generator", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--directions", type=Path)
    parser.add_argument("--origin", type=Path, metavar="DIRECTIONS", help="of the original space, to compare with")
    parser.add_argument("--feedback", type=Path, help="what brings w nearer to the photo")
    parser.add_argument("--detail", type=Path, help="what tunes the planes to the photo")
    parser.add_argument("--landmarks", type=Path)
    parser.add_argument("--identity", type=Path, metavar="FILE", help="dlib's face network, dlib_face.safetensors")
    parser.add_argument(
        "--perceptual", type=Path, metavar="FILE", help="EfficientNet-Lite0's first blocks, safetensors"
    )
    parser.add_argument("--reader", type=Path, help="what judges edits; goes to OUT/../reader")
    parser.add_argument("--readme", type=Path, help="the project's README, to get the newest figures too")
    parser.add_argument("--out", type=Path, required=True)
    return run_command("train.bundle", bundle, parser.parse_args(words))


def bundle(args: argparse.Namespace) -> None:
    if args.generator or args.encoder or args.directions or args.origin:
        assemble(args)
    if args.landmarks:
        for network, place in ((LandmarkNetwork, "."), (FaceMesh, "mesh")):
            found = load_component(network, args.landmarks / place, torch.float32)
            write(found, args.out / "landmarks" / place)
    if args.identity:
        write(from_dlib(load_file(args.identity)), args.out / "identity")
    if args.feedback:
        write_learned(Feedback, args.feedback, args.out / "feedback")
        shutil.rmtree(args.out / "detail", ignore_errors=True)  # it was learned with another one
    if args.detail:
        write_learned(DetailNetwork, args.detail, args.out / "detail")
    if args.perceptual:
        perceptual_network(args.perceptual)  # which says if it is something else
        with whole_file(args.out / PERCEPTUAL) as part:
            shutil.copyfile(args.perceptual, part)
    if args.reader:
        write(load_component(HeadReader, args.reader, torch.float32), args.out.parent / "reader")
    write_card(args.out)
    if args.readme:
        measured = json.loads((args.out / "evaluation.json").read_text())
        args.readme.write_text(with_headlines(args.readme.read_text("utf-8"), measured), "utf-8")
    check_size(args.out)


def assemble(args: argparse.Namespace) -> None:
    """Write the pipeline's components; those not given are taken from the folder as it is, but for directions that
    belong to another pair of networks: then there are none."""

    def component(network, given, name):
        folder = given or args.out / name
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no component; give one with --{name}.")
        return load_component(network, folder, torch.float32)

    encoder = component(PortraitEncoder, args.encoder, "encoder")
    generator = component(TriPlaneGenerator, args.generator, "generator")
    as_trained = fingerprint(encoder, generator)
    pair = fingerprint(stored(encoder), stored(generator))
    learned = {}
    for name, given in (("directions", args.directions), ("origin_directions", args.origin)):
        if not given and not (args.out / name / "config.json").is_file():
            continue
        directions = component(Directions, given, name)
        if directions.config.fingerprint not in ("", as_trained, pair):
            if given:
                raise ValueError(f"{given} was learned with another encoder or generator; learn it again.")
            continue
        directions.register_to_config(fingerprint=pair)
        learned[name] = stored(directions)
    if args.origin and learned["origin_directions"].config.space != "origin":
        raise ValueError(
            f"{args.origin} was not learned in the original space; make it with train.manifold --samples."
        )
    if "directions" not in learned:
        print("There are no directions of this encoder and generator yet: the bundle has no sliders.")
        empty = Directions(num_ws=generator.num_ws, w_dim=generator.config.w_dim, fingerprint=pair)
        learned["directions"] = stored(empty)
    if args.encoder or args.generator:
        for name in ("feedback", "detail"):  # they were learned with others
            shutil.rmtree(args.out / name, ignore_errors=True)
    pipeline = Preim3DPipeline(encoder, generator, **learned)
    for name in ("encoder", "generator", "directions", "origin_directions"):
        shutil.rmtree(args.out / name, ignore_errors=True)  # an old shard must not stay behind
    pipeline.save_pretrained(args.out, max_shard_size=f"{FILE_LIMIT_MB}MB")
    for name in ("encoder", "generator", *learned):
        forget_origin(args.out / name)


def write_learned(network_class: type, learned: Path, out: Path) -> None:
    """A network that was learned with the encoder and the generator beside which it is written."""
    encoder, generator = (
        load_component(network, out.parent / name, torch.float32)
        for network, name in ((PortraitEncoder, "encoder"), (TriPlaneGenerator, "generator"))
    )
    network = load_component(network_class, learned, torch.float32)
    if network.config.fingerprint != fingerprint(encoder, generator):
        raise ValueError(f"{learned} was learned with another encoder or generator; learn it again.")
    write(network, out)


def stored(network: nn.Module) -> nn.Module:
    """The network itself, as it is to lie on the disk: in half precision, but batch norms' statistics in float32, as
    variances of tens of thousands come near half precision's end; and in eight bits what is over `HALF_LIMIT_MB`, the
    `ROUGH`, and detail's convolutions, whose every offset is eight bits itself.

    Raises:
        ValueError: a number is too large for that.
    """
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith(STATISTICS):
            continue
        rough = name in ROUGH or (isinstance(network, DetailNetwork) and tensor.ndim > 1)
        small = 2 * tensor.numel() <= HALF_LIMIT_MB * 1e6
        kind = torch.half if small and not rough else torch.float8_e4m3fn
        if (tensor.abs() > torch.finfo(kind).max).any():
            raise ValueError(f"`{name}` of the {type(network).__name__} is too large for {kind}; train it smaller.")
        tensor.data = tensor.data.to(kind)
    return network


def write(network, folder: Path) -> None:
    """A network that stands beside the pipeline, in place of the one that was there."""
    stored(network)
    for old in folder.glob("*.safetensors*"):  # an old shard must not stay behind
        old.unlink()
    network.save_pretrained(folder, max_shard_size=f"{FILE_LIMIT_MB}MB")
    forget_origin(folder)


def forget_origin(folder: Path) -> None:
    """Takes from a component's settings where it lay on the machine that trained it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def check_size(folder: Path) -> None:
    """Raises ValueError where a file, or the folder and its reader, are larger than a Space or the README allows."""
    paths = [folder, folder.parent / "reader"]
    sizes = {path: path.stat().st_size / 1e6 for place in paths for path in place.rglob("*") if path.is_file()}
    largest = max(sizes, key=sizes.get)
    if sizes[largest] > 10:
        raise ValueError(f"{largest} has {sizes[largest]:.1f} MB; 10 MB are the most that a Space takes.")
    if sum(sizes.values()) > WEIGHTS_LIMIT_MB:
        parts = {part: sum(size for path, size in sizes.items() if part in path.parents) for part in folder.iterdir()}
        parts[paths[1]] = sum(size for path, size in sizes.items() if paths[1] in path.parents)
        told = ", ".join(f"{part.name} {parts[part]:.1f}" for part in sorted(parts, key=parts.get)[:-5:-1])
        raise ValueError(
            f"The weights have {sum(sizes.values()):.1f} MB, {WEIGHTS_LIMIT_MB} are allowed; make one smaller: {told}."
        )


def write_card(folder: Path) -> None:
    """README.md of the folder: its text, the evaluation's figures, the checksums of every other file."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md")
    checksums = "\n".join(f"{checksum(p)}  {p.relative_to(folder)}" for p in files)
    size_mb = sum(p.stat().st_size for p in files) / 1e6
    (folder / "README.md").write_text(card(folder, size_mb, checksums))
    print(f"wrote {folder / 'README.md'}: {len(files)} files, {size_mb:.1f} MB")
