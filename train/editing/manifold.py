r"""Photos -> the inversion manifold: the latent that the encoder gives each photo, and what the classifier says of it.

    python -m train.manifold --weights weights/faces --reader READER --data dataset/photos \
        --labels fairface_label_train.csv --out latents.npz
    python -m train.manifold --weights weights/faces --reader READER --data dataset/heads --samples 3000 \
        --out origin.npz
    python -m train.manifold --weights weights/cats --data cats.zip --out cats.npz

Section 3.4 of the paper: directions are learned here and not among sampled latents. DATA is a folder of packed photos
(`train.photos`; those that are held back are left out), of `train.heads render`, or any folder or zip of face crops
(an EG3D dataset; what `python -m preim3d edit` writes). For comparison `--samples` takes latents of the original
space: the mapping of random z, or, with --data, of the codes of rendered heads, and the classifier reads the pictures
that the generator makes of them. Without --reader nothing is classified, which principal components do not need.

Makes OUT with w [N, num_ws, w_dim], logits [N, A] and attribute_names [A] (with a classifier), space, the fingerprint
of the network that gave w (encoder or generator), names [N] of files or heads [N], labels [N, A] in [0, 1] where
anything is known (NaN where it is not), and of packed photos angles [N, 2] (yaw and pitch in radians) and groups [N]
(ancestry). Killed, it goes on where it was when it is run again. Many processes share the work: `accelerate launch -m
train.manifold ...`, or `--part 1/8` ... `--part 8/8` on as many machines with one disk; whoever finishes last puts the
parts together. Which processes there were changes nothing in OUT."""

import argparse
import hashlib
import io
import os
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from preim3d.directions import fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import load_component
from preim3d.reader import HeadReader
from train.heads.dataset import HeadsDataset
from train.judging.classifier import READER_HELP, AttributeClassifier, load_reader
from train.loop.options import run_stage, stage_parser
from train.model.batches import READ_RAYS, draw_photos, render_views
from train.photos import augment
from train.photos.photo_labels import LABELS, ancestries, photo_labels
from train.photos.real_photos import RealPhotos


BATCH = 32
SAVE_SECONDS = 30.0  # between two savings of a part
PICTURES = (".png", ".jpg", ".jpeg")


class Batch(NamedTuple):
    """Latents [B, num_ws, w_dim], the pictures that are classified [B, 3, S, S], what else is known of each, by
    name."""

    w: Tensor
    images: Tensor
    known: dict[str, np.ndarray]  # [B, ...] each


class Source(NamedTuple):
    """A number of batches, each made from its number."""

    count: int
    batch: Callable[[int], Batch]
    items: str  # digest of what is in it: a part that was begun with something else must not be gone on with


def photos_source(
    photos: RealPhotos, table: str | None, encoder: PortraitEncoder, count: int | None, names: list[str], seed: int
) -> Source:
    """The packed photos that are not held back, or `count` of them, inverted."""
    rows = np.random.default_rng(seed).permutation(np.nonzero(~photos.held)[0])[:count]
    labels, groups = by_names(photo_labels(photos, table), LABELS, names), ancestries(photos, table)
    batches = split(rows)

    def batch(number: int) -> Batch:
        rows, size = batches[number], encoder.config.input_size
        images = F.interpolate(photos.crops(rows), (size, size), mode="area").to(encoder.device)
        known = {
            "names": photos.names[rows],
            "labels": labels[rows],
            "groups": groups[rows],
            "angles": photos.pose[rows],
        }
        return Batch(encoder(images), images, known)

    return Source(len(batches), batch, digest([*batches, labels, groups]))


def by_names(labels: np.ndarray, own: Sequence[str], names: list[str]) -> np.ndarray:
    """labels [N,len(own)] in the columns of `names`, NaN where there are none."""
    columns = np.full((len(labels), len(names)), np.nan, np.float32)
    for name, column in zip(own, labels.T):
        if name in names:
            columns[:, names.index(name)] = column
    return columns


def heads_source(
    dataset: HeadsDataset, encoder: PortraitEncoder, count: int | None, names: list[str], seed: int
) -> Source:
    """One photo-like picture of each of the first `count` heads, inverted."""
    batches = split(dataset.ready[:count])

    def batch(number: int) -> Batch:
        # Each batch draws from generators of its own: it is the same whoever makes it.
        rng, draws = np.random.default_rng((seed, number)), torch.Generator().manual_seed(seed * 2**20 + number)
        heads = batches[number]
        rgba, theta, _ = draw_photos(dataset, heads, rng)
        size = encoder.config.input_size
        images, _ = augment.photo_like(rgba, draws, theta=theta, size=size, occluder_share=0.0)
        images = images.to(encoder.device)
        labels = by_names(np.asarray(dataset.attributes[heads]), dataset.attribute_names, names)
        return Batch(encoder(images), images, {"heads": heads, "labels": labels})

    return Source(len(batches), batch, digest(batches))


def crops_source(data: Path, encoder: PortraitEncoder, count: int | None) -> Source:
    """The face crops of a folder or zip, inverted; those that cannot be read are named and left out."""
    names = picture_names(data)[:count]
    batches = split(np.array(names))

    def batch(number: int) -> Batch:
        read, kept = [], []
        for name in batches[number]:
            try:
                read.append(read_crop(data, name, encoder.config.input_size))
                kept.append(name)
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for damaged files
                print(f"\n{data}: {name} cannot be read ({error}); it is left out.", file=sys.stderr)
        size = encoder.config.input_size
        images = torch.from_numpy(np.stack(read)) if read else torch.zeros(0, size, size, 3, dtype=torch.uint8)
        images = images.permute(0, 3, 1, 2).float().to(encoder.device) / 127.5 - 1
        return Batch(encoder(images), images, {"names": np.array(kept, dtype=str)})

    return Source(len(batches), batch, digest(batches))


def samples_source(
    generator: TriPlaneGenerator, count: int, seed: int, dataset: HeadsDataset | None, names: list[str]
) -> Source:
    """Latents of the original space and the pictures that the generator makes of them, from the front."""
    batches = split(np.arange(count))

    def batch(number: int) -> Batch:
        rng, size = np.random.default_rng((seed, number)), len(batches[number])
        if dataset is None:
            known, z = {}, rng.standard_normal((size, generator.config.z_dim))
        else:
            heads = rng.choice(dataset.ready, size)
            labels = by_names(np.asarray(dataset.attributes[heads]), dataset.attribute_names, names)
            known = {"heads": heads, "labels": labels}
            z = np.asarray(dataset.features[heads])
        z = torch.from_numpy(z).float().to(generator.device)
        camera = generator.frontal_camera()
        w = generator.mapping(z, camera.expand(size, -1))
        return Batch(w, render_views(generator, w, camera, READ_RAYS).to(generator.device), known)

    return Source(len(batches), batch, digest(batches if dataset is None else [*batches, dataset.ready]))


def split(items: np.ndarray) -> list[np.ndarray]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def digest(arrays: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def picture_names(data: Path) -> list[str]:
    """The pictures of a folder or zip, sub-folders too, by name."""
    if data.is_dir():
        names = [str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()]
    else:
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
    names = sorted(name for name in names if name.lower().endswith(PICTURES))
    if not names:
        raise FileNotFoundError(f"{data} holds no .png or .jpg crops; make them with `python -m preim3d edit`.")
    return names


def read_crop(data: Path, name: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    if data.is_dir():
        file = data / name
    else:
        with zipfile.ZipFile(data) as archive:
            file = io.BytesIO(archive.read(name))
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


@torch.no_grad()
def invert(
    source: Source,
    reader: HeadReader | AttributeClassifier | None,
    path: Path,
    part: int,
    parts: int,
    about: dict[str, np.ndarray],
) -> None:
    """This part's batches into the file `path`, which is saved now and then; batches already in it are kept."""
    columns, done = load_part(path, about)
    rows = [columns] if columns else []
    own = range(part - 1, source.count, parts)
    saved_at = time.monotonic()
    with tqdm(total=len(own), initial=len(done), unit="batch", desc="inverting") as bar:
        for number in own:
            if number in done:
                continue
            w, images, known = source.batch(number)
            row = {"w": w.float().cpu().numpy(), **known, "batch": np.full(len(w), number)}
            if reader is not None:
                row["logits"] = reader(images).logits.float().cpu().numpy()
            rows.append(row)
            done.add(number)
            bar.update()
            if time.monotonic() - saved_at > SAVE_SECONDS:
                save_part(path, joined(rows), done, about)
                saved_at = time.monotonic()
    save_part(path, joined(rows), done, about)


def joined(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each column of several batches as one array; the list is left with that alone."""
    rows[:] = [{name: np.concatenate([row[name] for row in rows]) for name in rows[0]}] if rows else []
    return rows[0] if rows else {}


def save_part(path: Path, columns: dict[str, np.ndarray], done: set[int], about: dict[str, np.ndarray]) -> None:
    with whole_file(path) as partial:
        np.savez(partial, **columns, done=np.array(sorted(done), int), **{f"about_{k}": v for k, v in about.items()})


def load_part(path: Path, about: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], set[int]]:
    """Columns and batches done of an unfinished part; nothing where there is none."""
    if not path.is_file():
        return {}, set()
    stored = dict(np.load(path))
    for name, value in about.items():
        if not np.array_equal(stored.pop(f"about_{name}", None), value):
            raise ValueError(f"{path} was begun with another {name}; delete it or give another --out.")
    return stored, set(stored.pop("done").tolist())


def merge(paths: list[Path], batches: int, out: Path, about: dict[str, np.ndarray]) -> bool:
    """All parts as one file, in the order of the batches; False while one of them is unfinished."""
    try:
        found = [load_part(path, about) for path in paths]
    except FileNotFoundError:  # another process put them together meanwhile
        return finished(out, about)
    if sum(len(done) for _, done in found) < batches:
        return finished(out, about)
    columns = joined([columns for columns, _ in found if columns])
    order = np.argsort(columns.pop("batch"), kind="stable")
    with whole_file(out) as partial:
        np.savez(partial, **{name: column[order] for name, column in columns.items()}, **about)
    for path in paths:
        path.unlink(missing_ok=True)
    return True


def finished(out: Path, about: dict[str, np.ndarray]) -> bool:
    """Whether `out` is there, made of the same."""
    if not out.is_file():
        return False
    stored = np.load(out)
    return all(name in stored and np.array_equal(stored[name], value) for name, value in about.items())


def make(args: argparse.Namespace) -> None:
    part, parts = args.part
    out = Path(args.out)
    if out.suffix != ".npz":
        raise ValueError(f"--out {out} must end in .npz.")
    if args.samples is None and args.data is None:
        raise ValueError("Give --data, the photos to invert, or --samples, how many latents to draw.")
    reader, names = None, []
    if args.reader:
        reader = load_reader(args.reader, args.device)
        names = list(reader.config.attribute_names)
    rendered = args.data is not None and (Path(args.data) / "heads.npz").is_file()
    dataset = HeadsDataset(args.data) if rendered else None
    space = "inversion" if args.samples is None else "origin"
    folder, kind = ("encoder", PortraitEncoder) if space == "inversion" else ("generator", TriPlaneGenerator)
    network = load_component(kind, Path(args.weights) / folder, torch.float32).to(args.device)
    if space == "origin":
        source = samples_source(network, args.samples, args.seed, dataset, names)
    elif dataset:
        source = heads_source(dataset, network, args.heads, names, args.seed)
    elif packed(Path(args.data)):
        source = photos_source(RealPhotos(args.data), args.labels, network, args.heads, names, args.seed)
    else:
        source = crops_source(Path(args.data), network, args.heads)
    done = collect(source, reader, network, space, args.seed, out, part, parts)
    print(done or f"Part {part} of {parts} is done; the last one to finish writes {out}.")


def collect(
    source: Source,
    reader: HeadReader | None,  # None: latents without labels
    network: nn.Module,
    space: str,
    seed: int,
    out: Path,
    part: int,
    parts: int,
) -> str | None:
    """This part of the batches, and OUT where it was the last: then one sentence on it. None while others are not
    done. `network` gave the latents."""
    about = {
        "network": np.array(fingerprint(network)),
        "space": np.array(space),
        "seed": np.array(seed),
        "items": np.array(source.items),
        "reader": np.array("" if reader is None else fingerprint(reader)),
    }
    if reader is not None:
        about["attribute_names"] = np.array(reader.config.attribute_names)
    paths = [out.with_name(f".{out.stem}.{number}-of-{parts}.npz") for number in range(1, parts + 1)]
    if finished(out, about) and not any(path.is_file() for path in paths):
        return f"{out} is there already, made of the same weights and photos."
    invert(source, reader, paths[part - 1], part, parts, about)
    return f"{len(np.load(out)['w'])} latents in {out}." if merge(paths, source.count, out, about) else None


def packed(data: Path) -> bool:
    return data.is_dir() and any(data.glob("*.npz"))


def parse_part(words: str) -> tuple[int, int]:
    number, _, count = words.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"`{words}` is no part; write I/N, for example 1/8")
    return int(number), int(count)


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.manifold")
    parser.add_argument("--weights", required=True, help="pipeline folder: encoder/, or generator/ with --samples")
    parser.add_argument("--reader", help=f"{READER_HELP}; not needed for PCA")
    parser.add_argument("--data", help="packed photos, rendered heads, or a folder or zip of face crops")
    parser.add_argument("--labels", help="FairFace's table of ages and sexes, for packed photos")
    parser.add_argument("--samples", type=int, help="draw so many latents of the original space instead")
    parser.add_argument("--out", required=True, help="the .npz to write")
    parser.add_argument("--heads", type=int, help="photos or heads to invert, from the first on; default: all")
    # accelerate and torchrun say in the environment which of how many processes this is.
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    parser.add_argument(
        "--part", type=parse_part, default=(int(rank) + 1, int(world)), metavar="I/N", help="do the I-th of N parts"
    )
    return run_stage("train.manifold", make, parser.parse_args(words))
