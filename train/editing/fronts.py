r"""Heads inverted with detail -> what an edit draws into their front plane.

    python -m train.fronts --source heads_source.npz --weights weights/faces --photos dataset/real \
        --labels fairface_label_train.csv --add lipstick --out runs/fronts
    python -m train.bundle --directions runs/fronts/directions --out weights/faces

Detail (`preim3d.detail`) draws the photo's face over what w says, and so hides what an edit does to w: eyeglasses come
out as shadows. But what it draws is part of the inversion, and directions can be found there as the paper finds them
in w (section 3.4). What photos have no labels for: one synthetic person with and without it, as in `train.pairs`, both
through encoder, feedback and detail; what detail draws more where it is, on average, is what the edit draws. What they
have labels for: a linear regression, on all labels at once, of what detail draws on photos. Either way an offset of w
is found with it; strength 1 draws as much as the direction holds of that, and no more than all.

Makes OUT/fronts.npz, with which a killed run goes on, and OUT/directions: those of the weights, with fronts, and for
the names of --add new ones, half of a pair's offset long. All fronts are sums of --maps common maps, or each would
take half a megabyte."""

import argparse
import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import camera_from_angles
from preim3d.detail import draw_detail
from preim3d.directions import ATTRIBUTES, Directions, cosines
from preim3d.feedback import Photos, bring_nearer
from preim3d.files import whole_file
from preim3d.film import pictures
from preim3d.pipeline import Preim3DPipeline
from preim3d.tuning import TEXELS, offset_of
from train.editing.pairs import PAIRS, PITCH_STD, YAW_STD, Pair, draw_people, fields, picture
from train.heads.geometry import HeadBuilder
from train.heads.sampler import Person
from train.heads.source import HeadSource
from train.loop.arrays import open_arrays
from train.loop.options import run_stage, stage_parser
from train.photos.photo_labels import LABELS, kept_out, photo_labels
from train.photos.real_photos import RealPhotos


# The mean of many kinds is a blur: of what has an outline there is one kind.
FRAMES = {"glasses": 1.0, "frame_color": np.array([0.14, 0.09, 0.07]), "frame_radius": 0.015, "frame_width": 1.0}
ONE_KIND = {
    "eyeglasses": Pair(fields({}, FRAMES | {"sunglasses": 0.0})),
    "sunglasses": Pair(fields({}, FRAMES | {"sunglasses": 1.0})),
}
ADDED, ADDED_REACH = 0.5, 3.0  # of a pair's offset of w is strength 1 of a new direction; how far its slider goes
# Detail does not hide these colours of large areas (see `tuning.EDITS_BY`): drawn as well, grey hair is blue. And what
# is drawn of bald heads takes away less of other people's hair than going further does.
NOT_DRAWN = {"black_hair", "brown_hair", "blond_hair", "grey_hair", "pale_skin", "bald"}
# Of a direction with the offset of w that was found with a front: below, they are not about the same.
LEAST_COSINE = 0.5
MOST_YAW_RAD, MOST_PITCH_RAD = 0.3, 0.4  # of photos: what they do not show is drawn as a reflection
AT_ONCE = 4  # photos
SAVE_SECONDS = 60


class Inverter:
    """Synthetic people -> w and what detail draws, as the pipeline gives them of photos; but where the camera is, and
    what is the person, is known."""

    def __init__(self, pipeline: Preim3DPipeline, source: Path | str):
        self.pipeline, self.builder = pipeline, HeadBuilder(HeadSource(source))

    @torch.no_grad()
    def __call__(self, person: Person, camera: np.ndarray, background: np.ndarray) -> tuple[Tensor, Tensor]:
        """w [num_ws, w_dim] and the offset of the front plane [C, TEXELS, TEXELS]."""
        own, device = self.pipeline, self.pipeline.device
        image, mask = picture(person, self.builder, camera, background, own.encoder.config.input_size)
        parts = image, mask, torch.from_numpy(camera).float()
        photo = Photos(*(part[None].to(device) for part in parts))
        w = own.encoder(photo.crops)
        if own.feedback is not None:
            w = bring_nearer(w, photo, own.generator, own.identity, own.feedback)
        tuning = draw_detail(w, own.generator.planes(w), photo, own.generator, own.identity, own.detail)
        return w[0].cpu(), offset_of(tuning, w).cpu()


class Drawn(NamedTuple):
    """What goes with an attribute."""

    moved: Tensor  # of w [num_ws, w_dim]
    front: Tensor  # of the front plane [C, TEXELS, TEXELS]
    agreement: float | None = None  # of pairs: mean cosine of the single fronts with their mean


def of_pairs(pair: Pair, heads: int, invert: Inverter, rng: np.random.Generator) -> Drawn:
    """The mean over so many people."""
    moved, fronts = [], []
    for person in draw_people(rng, heads, pair.suits):
        person = dataclasses.replace(person, hat=False, glasses=0.0, sunglasses=0.0)
        camera = camera_from_angles(rng.normal(0, YAW_STD), rng.normal(0, PITCH_STD)).numpy()
        background = rng.uniform(0.2, 0.9, 3)
        (w, front), (w_with, front_with) = (invert(one, camera, background) for one in pair.change(person, rng))
        moved.append(w_with - w)
        fronts.append(front_with - front)
    fronts = torch.stack(fronts)
    mean = fronts.mean(0)
    agreement = F.cosine_similarity(fronts.flatten(1), mean.flatten()[None]).mean()
    return Drawn(torch.stack(moved).mean(0), mean, float(agreement))


class Labelled:
    """Photos whose labels are all known: how w and what detail draws go with these. The sums of a linear regression,
    for as many photos as were read."""

    def __init__(self, pipeline: Preim3DPipeline, photos: RealPhotos, table: str, seed: int):
        self.pipeline, self.photos, self.labels = pipeline, photos, photo_labels(photos, table)
        yaw, pitch = abs(photos.pose).T
        usable = ~np.isnan(self.labels).any(1) & ~kept_out(photos) & (yaw < MOST_YAW_RAD) & (pitch < MOST_PITCH_RAD)
        self.rows = np.random.default_rng(seed).permutation(np.nonzero(usable)[0])

    def sums(self, first: int) -> np.ndarray:
        """Of `AT_ONCE` photos from number `first` on: [1 + L, 1 + L + M], their labels times their labels and what was
        found, flat."""
        rows = self.rows[first : first + AT_ONCE]
        heads = list(self.pipeline.reconstruct(*pictures(self.photos.crops(rows))))
        known = np.concatenate([np.ones((len(rows), 1)), self.labels[rows]], 1).astype(np.float32)
        found = [torch.cat([head.w[0].flatten(), offset_of(head.tuning, head.w).flatten()]) for head in heads]
        return known.T @ np.concatenate([known, torch.stack(found).cpu().numpy()], 1)


def regressed(sums: np.ndarray, w_shape: tuple[int, int], front_shape: tuple[int, int, int]) -> dict[str, Drawn]:
    """By CelebA's name of the label, what goes with one unit of it while the others stay."""
    count = len(LABELS) + 1
    slopes = torch.from_numpy(np.linalg.solve(sums[:, :count].astype(np.float64), sums[:, count:])[1:]).float()
    w_size = int(np.prod(w_shape))
    return {
        name: Drawn(row[:w_size].view(w_shape), row[w_size:].view(front_shape)) for name, row in zip(LABELS, slopes)
    }


@dataclass
class Progress:
    """What was found so far, in a file."""

    path: Path
    about: dict[str, str | int]  # what it is found with
    pairs: dict[str, Drawn] = field(default_factory=dict)
    photos: int = 0  # that were read
    sums: np.ndarray | None = None  # of `Labelled`

    @classmethod
    def begun(cls, path: Path, about: dict[str, str | int]) -> "Progress":
        """Raises ValueError where the file was begun with something else."""
        progress = cls(path, about)
        if not path.is_file():
            return progress
        names = "names", "moved", "fronts", "agreement", "photos", "sums", *about
        stored = open_arrays(path, names, "python -m train.fronts")
        for name, value in about.items():
            if stored[name] != value:
                raise ValueError(f"{path} was begun with another {name}; delete it or give another --out.")
        moved, fronts = (torch.from_numpy(stored[name]).float() for name in ("moved", "fronts"))
        rows = zip(stored["names"], moved, fronts, stored["agreement"].tolist())
        progress.pairs = {str(name): Drawn(*row) for name, *row in rows}
        progress.photos, progress.sums = int(stored["photos"]), stored["sums"] if stored["sums"].size else None
        return progress

    def save(self) -> None:
        drawn = self.pairs.values()
        with whole_file(self.path) as part:
            np.savez(
                part,
                names=np.array(list(self.pairs), dtype=str),
                moved=np.array([one.moved.numpy() for one in drawn]),
                fronts=np.array([one.front.half().numpy() for one in drawn]),
                agreement=np.array([one.agreement for one in drawn]),
                photos=self.photos,
                sums=np.zeros(0) if self.sums is None else self.sums,
                **self.about,
            )


def find(args: argparse.Namespace, pipeline: Preim3DPipeline, progress: Progress) -> dict[str, Drawn]:
    """By name, what goes with each of the directions, and with those that are to be added."""
    wanted = [name for name in (*pipeline.directions.names, *args.add) if name not in NOT_DRAWN]
    labelled = [name for name in wanted if name in ATTRIBUTES and ATTRIBUTES[name].celeba in LABELS]
    photos = Labelled(pipeline, RealPhotos(args.photos), args.labels, args.seed)
    count = min(args.count, len(photos.rows))
    if count <= len(LABELS):
        raise ValueError(f"{count} photos whose labels are all known are too few: {len(LABELS)} labels need more.")
    invert = Inverter(pipeline, args.source)
    for number, (name, pair) in enumerate(tqdm((PAIRS | ONE_KIND).items(), "pairs", mininterval=5)):
        if name in wanted and name not in labelled and name not in progress.pairs:
            rng = np.random.default_rng((args.seed, number))
            progress.pairs[name] = of_pairs(pair, args.heads, invert, rng)
            progress.save()
    saved_at = time.monotonic()
    while progress.photos < count:
        sums = photos.sums(progress.photos)
        progress.sums = sums if progress.sums is None else progress.sums + sums
        progress.photos += AT_ONCE
        if time.monotonic() - saved_at > SAVE_SECONDS or progress.photos >= count:
            progress.save()
            saved_at = time.monotonic()
            print(f"{progress.photos} of {count} photos", file=sys.stderr)
    config = pipeline.generator.config
    shapes = (pipeline.generator.num_ws, config.w_dim), (config.plane_channels, TEXELS, TEXELS)
    slopes = regressed(progress.sums, *shapes)
    found = {name: one for name, one in progress.pairs.items() if name in wanted}
    for name in labelled:
        attribute = ATTRIBUTES[name]
        moved, front, _ = slopes[attribute.celeba]
        found[name] = Drawn(attribute.sign * moved, attribute.sign * front)
    return found


def common_maps(fronts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """fronts [K, C, r, r] -> maps [M, r, r], M = `count` at most, of deviation 1, and weights [K, C, M]: the sums of
    maps that are nearest to the fronts (Eckart and Young 1936)."""
    size = fronts.shape[-1]
    u, spreads, maps = torch.linalg.svd(fronts.flatten(0, 1).flatten(1), full_matrices=False)
    weights = u[:, :count] * spreads[:count] / size
    return size * maps[:count].unflatten(1, (size, size)), weights.unflatten(0, fronts.shape[:2])


def with_fronts(learned: Directions, found: dict[str, Drawn], added: list[str], maps: int) -> Directions:
    """The same directions with fronts of what was found, and then the added ones. A front is drawn as far as the
    direction goes along the offset of w that was found with it, but strength 1 never draws more than there was."""
    config = {name: value for name, value in learned.config.items() if not name.startswith("_")}
    vectors = torch.stack([*learned.vectors.float(), *(ADDED * found[name].moved for name in added)])
    about = [ATTRIBUTES[name] for name in added]
    more = {
        "names": added,
        "labels": [attribute.label for attribute in about],
        "groups": [attribute.group for attribute in about],
        "accuracies": len(added) * [None],
        "safe_range": len(added) * [[-ADDED_REACH, ADDED_REACH]],
    }
    config |= {column: [*config[column], *rows] for column, rows in more.items()}
    config |= {
        "sigmas": [*config["sigmas"], *len(added) * [None]] if config["sigmas"] else [],
        "cosines": [[round(value, 3) for value in row] for row in cosines(vectors).tolist()],
        "left_out": {name: reason for name, reason in (config["left_out"] or {}).items() if name not in added},
    }
    fronts = {}
    for name, vector in zip(config["names"], vectors):
        if name in found and F.cosine_similarity(vector.flatten(), found[name].moved.flatten(), 0) >= LEAST_COSINE:
            moved = found[name].moved
            share = (vector * moved).sum() / moved.square().sum()
            fronts[name] = min(share, 1.0) * found[name].front
    common, weights = common_maps(torch.stack(list(fronts.values())), maps)
    shape = len(common), weights.shape[1], common.shape[-1]
    drawn = Directions(**config | {"drawn": list(fronts), "front_shape": shape})
    for buffer, value in ((drawn.vectors, vectors), (drawn.front_maps, common), (drawn.front_weights, weights)):
        buffer.copy_(value)
    return drawn.half()


def make(args: argparse.Namespace) -> None:
    out = Path(args.out)
    pipeline = Preim3DPipeline.from_pretrained(args.weights).to(args.device)
    if pipeline.detail is None:
        raise ValueError(f"{args.weights} draws no detail, so no edit is hidden by it; run `python -m train.detail`.")
    without = [name for name in args.add if name not in {*PAIRS} - NOT_DRAWN or name in pipeline.directions.names]
    if without:
        raise ValueError(f"--add {' '.join(without)}: there is no pair for that, or a direction already.")
    learned = pipeline.directions.cpu()
    about = {"fingerprint": learned.config.fingerprint, "heads": args.heads, "seed": args.seed}
    progress = Progress.begun(out / "fronts.npz", about)
    found = find(args, pipeline, progress)
    directions = with_fronts(learned, found, args.add, args.maps)
    directions.save_pretrained(out / "directions")
    for name in directions.config.drawn:
        agreement = found[name].agreement
        print(f"{name}: {'from labels' if agreement is None else f'from pairs, agreement {agreement:.2f}'}")


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.fronts")
    parser.add_argument("--source", required=True, help="heads_source.npz, made by `python -m train.heads build`")
    parser.add_argument("--weights", required=True, help="pipeline folder with detail/ and directions/")
    parser.add_argument("--photos", required=True, help="folder of packed photos")
    parser.add_argument("--labels", required=True, help="FairFace's table of ages and sexes")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--add", nargs="*", default=[], metavar="NAME", help="attributes to add, of those with pairs")
    parser.add_argument("--heads", type=int, default=20, help="pairs for each attribute")
    parser.add_argument("--count", type=int, default=400, help="photos that are read")
    parser.add_argument("--maps", type=int, default=56, help="that fronts are sums of, 16 KB each")
    return run_stage("train.fronts", make, parser.parse_args(words))
