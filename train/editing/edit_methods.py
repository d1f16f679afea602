r"""Ways of editing -> one table: what each drags along, and how far it leads from the person, where all alter the
attribute alike (paper, section 4.2 and Tables 3 and 5).

    python -m train.edit_methods --weights weights/faces --reader weights/reader --photos dataset/real \
        --latents runs/latents.npz --out runs/methods.json "InterFaceGAN=weights/faces/directions" \
        "original space=weights/faces/origin_directions" PCA=runs/pca/directions SeFa=runs/sefa/directions \
        StyleSpace=runs/stylespace/directions StyleFlow=runs/styleflow/directions

Each folder is what `python -m train.directions` made, with any --method, for these weights. Photos that no training
saw are encoded, edited, rendered (64 rays a side, |yaw| up to 30 and |pitch| up to 20 degrees, the same views for
all) and read again. AA is the mean change of the attribute's logit in standard deviations over photos, towards more of
it; AD the mean absolute change of all others; the distance dlib's, from the unedited head in the same view (strangers:
.8). Strengths are sought at which AA is `--level`; a way that never gets there is shown where its AA is largest.
Unnamed directions (PCA, SeFa) stand for the attribute that they alter most on heads of the latents. Makes OUT and,
beside it, a table in Markdown; killed, it goes on where it was when it is run again. One head in one view takes about
a second of a core, and each attribute of each way up to three of as many heads as `--count`."""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import camera_from_angles
from preim3d.directions import ATTRIBUTES, Directions, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import load_component
from preim3d.style_channels import StyleChannels
from preim3d.style_flow import StyleFlow
from preim3d.weights import read_json
from train.editing.calibration import EditTrial
from train.editing.directions import held_rows, held_trial, training_trial
from train.judging import metrics
from train.judging.attributes import read_images
from train.judging.classifier import READER_HELP
from train.judging.edit_figures import EQUAL_EDITS, SIDES_DEG, at_altering
from train.loop.arrays import open_arrays
from train.loop.options import run_stage, stage_parser
from train.photos.real_photos import RealPhotos


KINDS = {kind.__name__: kind for kind in (Directions, StyleChannels, StyleFlow)}
PICKING_STRENGTH = 2.0  # at which unnamed directions are compared
TRIES = 3  # strengths for each attribute of each way
MOST_STRENGTH = 5.0
NEAR = 0.95, 1.3  # times the level: from here to there AA is near enough to go straight from nothing


class Edited(NamedTuple):
    """Heads after an edit: w [N, num_ws, w_dim], and what is added to their styles [1, S]."""

    ws: Tensor
    styles_offset: Tensor | None = None


Way = Callable[[str, float], Edited]  # attribute and strength -> the photos' heads, edited


class JudgedPhotos:
    """Held-out photos, encoded, in the views that edits are judged by."""

    def __init__(self, trial: EditTrial, logits: Tensor):
        self.trial = trial
        self.logits = logits  # [N, A] what the classifier reads from the photos themselves
        self.names = list(trial.reader.config.attribute_names)

    def column(self, key: str) -> int:
        return self.names.index(ATTRIBUTES[key].celeba)

    def point(self, way: Way, key: str, strength: float) -> tuple[float, float, float, float]:
        """Strength, AA, AD and dlib's distance."""
        logits, people = self.trial.read(*way(key, strength))
        before, column, sigma = self.trial.logits, self.column(key), self.trial.sigma
        return (
            strength,
            ATTRIBUTES[key].sign * metrics.attribute_altering(before, logits, sigma, column),
            metrics.attribute_dependency(before, logits, sigma, column),
            metrics.distances(people, self.trial.people).mean().item(),
        )


def way_of(
    learned: Directions | StyleChannels | StyleFlow, heads: JudgedPhotos, picked: dict[str, tuple[str, int]]
) -> Way:
    """How a head is edited with what was learned; `picked`: attribute -> which direction stands for it, and whether
    forwards or backwards."""
    ws = heads.trial.ws
    if isinstance(learned, StyleFlow):
        logits = heads.logits[:, [heads.names.index(name) for name in learned.logit_names]]
        return lambda key, strength: Edited(learned.edit(ws, logits, {key: strength}))
    if isinstance(learned, StyleChannels):
        return lambda key, strength: Edited(ws, learned.offset({key: strength})[None])

    def along(key: str, strength: float) -> Edited:
        name, sign = picked.get(key, (key, 1))
        return Edited(ws + learned.offset({name: sign * strength}))

    return along


def pick(trial: EditTrial, directions: Directions) -> dict[str, tuple[str, int]]:
    """Attribute -> the direction that alters it most, and whether forwards or backwards towards more of it."""
    responses = {
        name: trial.effect(directions.offset({name: PICKING_STRENGTH})).response
        for name in tqdm(directions.names, desc="picking")
    }
    names, picked = list(trial.reader.config.attribute_names), {}
    for key in EQUAL_EDITS:
        column = names.index(ATTRIBUTES[key].celeba)
        name = max(responses, key=lambda name, column=column: abs(responses[name][column].item()))
        picked[key] = name, int(np.sign(ATTRIBUTES[key].sign * responses[name][column].item())) or 1
    return picked


def equal_point(point: Callable[[float], tuple[float, ...]], level: float) -> dict[str, float]:
    """Strength, AA, AD and distance where AA is `level`; where it is largest, if it never is. `point` measures them at
    a strength."""
    points = [point(1.0)]
    while len(points) < TRIES:
        strength, aa = points[-1][:2]
        # As if AA grew evenly, but no leap that a bent curve would punish.
        ask = float(np.clip(strength * level / max(aa, 1e-3), strength / 4, min(strength * 4, MOST_STRENGTH)))
        if NEAR[0] * level <= aa <= NEAR[1] * level or ask == strength:
            break
        points.append(point(ask))
    curve = np.array([(0.0, 0.0, 0.0, 0.0), *sorted(points)])
    most = curve[:, 1].max()
    return at_altering(curve, min(level, most))


def unnamed(learned: Directions | StyleChannels | StyleFlow) -> bool:
    return isinstance(learned, Directions) and not set(learned.names) & set(ATTRIBUTES)


def load(folder: Path, pair: str) -> Directions | StyleChannels | StyleFlow:
    """Raises ValueError where the folder holds something else, or what was learned with other weights."""
    kind = read_json(folder / "config.json", "_class_name")["_class_name"]
    if kind not in KINDS:
        raise ValueError(f"{folder} holds a {kind}, not what `python -m train.directions` makes.")
    learned = load_component(KINDS[kind], folder, torch.float32)
    if learned.config.fingerprint not in ("", pair):
        raise ValueError(f"{folder} was learned with another encoder or generator; run train.directions again.")
    return learned


def compare(args: argparse.Namespace) -> None:
    started = time.monotonic()
    weights = Path(args.weights)
    encoder = load_component(PortraitEncoder, weights / "encoder", torch.float32).to(args.device)
    generator = load_component(TriPlaneGenerator, weights / "generator", torch.float32).to(args.device)
    pair = fingerprint(encoder, generator)
    ways = {name: load(folder, pair) for name, folder in args.ways}
    latents = open_arrays(args.latents, ("w", "logits", "attribute_names"), "python -m train.manifold")
    args.heads, args.precision = args.picked, "float32"
    trial = training_trial(latents, args, generator)
    missing = [ATTRIBUTES[key].celeba for key in EQUAL_EDITS]
    missing = [name for name in missing if name not in trial.reader.config.attribute_names]
    if missing:
        raise ValueError(f"The classifier in {args.reader} does not read {', '.join(missing)}; give another one.")
    if trial.identity is None:
        raise ValueError(f"{weights} has no identity network, which tells how far edits lead from the person.")
    heads = held_heads(RealPhotos(args.photos), args, encoder, trial)

    out, about = (
        Path(args.out),
        {"n": len(heads.trial.ws), "seed": args.seed, "level": args.level, "fingerprint": pair},
    )
    figures, before = begun(out, about)
    for name, learned in ways.items():
        made = fingerprint(learned)
        if figures.get(name, {}).get("learned") != made:
            figures[name] = {"learned": made, "edits": {}}
        row = figures[name]["edits"]
        picked = pick(trial, learned) if unnamed(learned) and len(row) < len(EQUAL_EDITS) else {}
        way = way_of(learned, heads, picked)
        for key in tqdm(EQUAL_EDITS, desc=name):
            if key not in row and (key in learned.names or key in picked):
                row[key] = equal_point(lambda strength, way=way, key=key: heads.point(way, key, strength), args.level)
                if key in picked:
                    row[key]["picked"] = picked[key][0]
                hardware = f"{platform.machine()}, {args.device}, {args.threads} threads, torch {torch.__version__}"
                seconds = round(before + time.monotonic() - started)
                summary = about | {"hardware": hardware, "seconds": seconds, "methods": figures}
                with whole_file(out) as partial:
                    partial.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    text = table({name: figures[name]["edits"] for name in ways}, args.level)
    with whole_file(out.with_suffix(".md")) as partial:
        partial.write_text(text + "\n")
    print(text)


def begun(out: Path, about: dict) -> tuple[dict, float]:
    """What an earlier run measured in the same way, and its seconds; nothing where there is none.

    Raises ValueError where it measured otherwise."""
    if not out.is_file():
        return {}, 0.0
    stored = read_json(out, *about, "seconds", "methods")
    for name, value in about.items():
        if stored[name] != value:
            raise ValueError(f"{out} was begun with another {name}; delete it or give another --out.")
    return stored["methods"], stored["seconds"]


def held_heads(
    photos: RealPhotos, args: argparse.Namespace, encoder: PortraitEncoder, trial: EditTrial
) -> JudgedPhotos:
    """As many photos as `--count`, encoded; views of them at random angles, and what the photos themselves say."""
    rows = held_rows(photos, args.count)
    if len(rows) < 2:
        raise ValueError(f"{args.photos} has fewer than two photos that are held out of training: nothing to measure.")
    rng, config = np.random.default_rng(args.seed), trial.generator.config
    angles = [
        torch.from_numpy(np.radians(rng.uniform(*between, len(rows)) * rng.choice((-1, 1), len(rows)))).float()
        for between in SIDES_DEG
    ]
    cameras = camera_from_angles(*angles, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
    networks = trial.generator, trial.reader, trial.sigma, trial.precision, trial.identity
    held = held_trial(photos, args.count, encoder, *networks, cameras)
    return JudgedPhotos(held, read_images(trial.reader, photos.crops(rows)).logits)


def table(figures: dict, level: float) -> str:
    """Markdown: a line for each way; in each cell AA, AD and dlib's distance."""
    lines = [
        "| AA / AD / distance | " + " | ".join(EQUAL_EDITS) + " | AD per AA, mean |",
        "|---" * (len(EQUAL_EDITS) + 2) + "|",
    ]
    for name, row in figures.items():
        ratios = [found["ad"] / found["aa"] for found in row.values() if found["aa"] > level / 4]
        whole = f"{np.mean(ratios):.2f}" if len(ratios) == len(EQUAL_EDITS) else "-"
        lines.append(f"| {name} | {' | '.join(cell(row.get(key)) for key in EQUAL_EDITS)} | {whole} |")
    return "\n".join(lines)


def cell(found: dict | None) -> str:
    if found is None:
        return "-"
    if found["aa"] <= 0:
        return "alters nothing"
    return f"{found['aa']:.2f} / {found['ad']:.2f} / {found['distance']:.2f}"


def parse_way(word: str) -> tuple[str, Path]:
    name, equals, folder = word.rpartition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"`{word}` is not of the form NAME=FOLDER; for example SeFa=runs/sefa")
    return name, Path(folder)


def parse_count(word: str) -> int:
    if not word.isdecimal() or int(word) < 2:
        raise argparse.ArgumentTypeError(f"`{word}` photos are none to average over; give 2 or more")
    return int(word)


def parse_level(word: str) -> float:
    try:
        level = float(word)
    except ValueError:
        level = 0.0
    if not 0 < level <= 5:
        raise argparse.ArgumentTypeError(f"`{word}` is no AA that edits reach; give a number above 0, up to 5")
    return level


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.edit_methods")
    parser.add_argument(
        "ways", type=parse_way, nargs="+", metavar="NAME=FOLDER", help="what train.directions made, and its name"
    )
    parser.add_argument("--weights", required=True, help="pipeline folder")
    parser.add_argument("--reader", required=True, help=READER_HELP)
    parser.add_argument("--photos", required=True, help="folder of packed photos, some of which are held back")
    parser.add_argument("--latents", required=True, help="of `train.manifold`: they tell the unit of AA")
    parser.add_argument("--out", required=True, help="the .json to write")
    parser.add_argument("--count", type=parse_count, default=16, help="held-out photos")
    parser.add_argument("--picked", type=int, default=3, help="heads on which unnamed directions are picked")
    parser.add_argument("--level", type=parse_level, default=0.5, help="AA at which all are compared")
    return run_stage("train.edit_methods", compare, parser.parse_args(words))
