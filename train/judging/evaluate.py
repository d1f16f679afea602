r"""Held-out photos -> evaluation.json, tables shaped like the paper's, contact sheets: how good generator, encoder and
directions are.

    python -m train.evaluate --weights weights/faces --data photos --reader weights/reader \
        --lite0 efficientnet_lite0_blocks0-10.safetensors --out weights/faces/evaluation.json --sheets sheets
    python -m train.evaluate ... --only edits --edited 24 --out weights/faces/evaluation.json
    python -m train.evaluate ... --only spaces --origin weights/faces/origin_directions --seeds 0 1 \
        --out weights/faces/evaluation.json
    python -m train.evaluate ... --inversion hybrid=50 latent=4 --out weights/faces/evaluation.json
    python -m train.evaluate ... --views 20 --mirror --out runs/paper.json
    python -m train.evaluate ... --seeds 0 1 --origin weights/faces/origin_directions --before first.json \
        --bench bench.json --compare "w/o ATS=runs/photos_only/encoder"

DATA holds packed photos, as `python -m train.photos` makes them, some of which no training saw (`held`). The metrics
are those of `metrics.py`; the protocol is written into the file with the figures, and beside it, as evaluation.md, a
table of goals and Tables 2, 3, 4, 5 and 7 of the paper. The first seed takes some 50 minutes of one thread beside
other work, half of it for the thousand photos of FID, which further seeds leave out; `--origin` (directions of the
original space) ten more a seed for each attribute, each `--compare` three. `--views 20` is the paper's protocol: 82
views of each photo in place of five. `--only` measures some parts alone, and adds them to the figures that OUT has;
so does `--inversion` with the ways of `preim3d.inversion`: a minute a photo for hybrid, a quarter of an hour for
latent. Two more ways have networks of their own, `--inversion z=runs/z=50 tuned=runs/tuned=50` (see `inversions.py`):
half a minute a photo."""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from preim3d.files import whole_file
from preim3d.methods import METHODS
from preim3d.options import whole_number
from train.judging.classifier import READER_HELP
from train.judging.curves import draw_curves
from train.judging.edit_figures import edit_figures, reader_figures, space_figures
from train.judging.evaluation import Evaluation
from train.judging.inversion_figures import (
    comparison_figures,
    draw_photos,
    population_figures,
    reconstruction_figures,
    time_figures,
    two_pose_figures,
)
from train.judging.inversions import LEARNED, Way, inversions_figures
from train.judging.report import (
    average,
    compared_before,
    compared_protocol,
    edits_protocol,
    inversions_protocol,
    protocol,
    spaces_protocol,
    tables,
    worst_group,
)
from train.loop.options import run_stage, stage_parser


class Part(NamedTuple):
    """Figures that can be measured apart from the others."""

    measure: Callable[[Evaluation], dict]
    protocol: Callable[[Evaluation], str]


PARTS = {
    "edits": Part(lambda evaluation: reader_figures(evaluation) | edit_figures(evaluation), edits_protocol),
    "spaces": Part(space_figures, spaces_protocol),
    "compared": Part(comparison_figures, compared_protocol),
}


def evaluate(args: argparse.Namespace) -> None:
    if args.inversion:
        compare_inversions(args)
        return
    if args.only:
        measure_parts(args)
        return
    started = time.monotonic()
    told = {name: read_figures(path) for name, path in (("before", args.before), ("bench", args.bench)) if path}
    parts = ["edits"] + ["compared"] * bool(args.compare) + ["spaces"] * bool(args.origin)
    by_seed, sheets = [], {}
    for seed in args.seeds:
        evaluation = Evaluation(args, seed)
        figures = reconstruction_figures(evaluation) | time_figures(evaluation)
        if seed == args.seeds[0]:
            figures |= population_figures(evaluation)
        for part in parts:
            figures |= PARTS[part].measure(evaluation)
        figures |= two_pose_figures(evaluation)  # last: what it draws must not change what others draw
        if args.sheets and not sheets:
            draw_photos(evaluation)
        by_seed.append(figures)
        sheets = sheets or evaluation.sheets
    figures = average(by_seed)
    figures |= {
        "worst_group": worst_group(figures["groups"]),
        "n": len(evaluation.heads.ws),
        "mirrored": args.mirror,
        "seed": args.seeds[0],
        "seeds": list(args.seeds),
        "protocol": protocol(evaluation),
        **{f"{part}_protocol": PARTS[part].protocol(evaluation) for part in parts},
        "hardware": f"{platform.machine()}, {args.device}, {args.threads} threads, torch {torch.__version__}",
        "seconds": round(time.monotonic() - started),
    }
    if "before" in told:
        figures["before"] = compared_before(told["before"], figures)
    if "bench" in told:
        figures["bench"] = told["bench"]
    write(args, evaluation, figures, sheets)


def measure_parts(args: argparse.Namespace) -> None:
    """Some parts alone, among the figures that are there."""
    figures, by_seed, sheets = figures_to_join(args.out), [], {}
    for seed in args.seeds:
        evaluation = Evaluation(args, seed)
        by_seed.append({name: x for part in args.only for name, x in PARTS[part].measure(evaluation).items()})
        sheets = sheets or evaluation.sheets
    found = average(by_seed) | {f"{part}_protocol": PARTS[part].protocol(evaluation) for part in args.only}
    # What was measured before with several seeds, and now with one, has no spread any longer.
    spread = {name: x for name, x in figures.get("spread", {}).items() if name not in found} | found.pop("spread", {})
    write(args, evaluation, figures | found | ({"spread": spread} if spread else {}), sheets)


def figures_to_join(path: str) -> dict:
    figures = read_figures(path) if Path(path).is_file() else {}
    if "aa" not in figures:
        there = "lacks those of a whole evaluation" if Path(path).is_file() else "is not there"
        raise ValueError(f"{path} {there}: evaluate the whole first, whose figures these join.")
    return figures


def compare_inversions(args: argparse.Namespace) -> None:
    """The ways of inversion, among the figures that are there."""
    figures, by_seed, sheets = figures_to_join(args.out), [], {}
    for seed in args.seeds:
        evaluation = Evaluation(args, seed)
        by_seed.append(inversions_figures(evaluation, args.inversion, seed))
        sheets = sheets or evaluation.sheets
    found = average(by_seed)
    protocol = inversions_protocol(args)
    for way in found["inversions"].values():
        way["protocol"] = protocol
    # Ways that are not measured now keep what they have.
    figures["inversions"] = figures.get("inversions", {}) | found["inversions"]
    spread = figures.get("spread", {})
    of_ways = {name: value for name, value in spread.get("inversions", {}).items() if name not in found["inversions"]}
    of_ways |= found.get("spread", {}).get("inversions", {})
    figures["spread"] = spread | ({"inversions": of_ways} if of_ways else {})
    write(args, evaluation, figures, sheets)


def write(args: argparse.Namespace, evaluation: Evaluation, figures: dict, sheets: dict) -> None:
    """The figures, their tables, and the sheets."""
    with whole_file(args.out) as partial:
        partial.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    config = evaluation.directions.config
    text = tables(figures, dict(zip(config.names, config.accuracies)))
    with whole_file(Path(args.out).with_suffix(".md")) as partial:
        partial.write_text(text + "\n")
    if args.sheets:
        drawn = {"curves": draw_curves({"3D": figures["spaces"]})} if figures.get("spaces") else {}
        for name, picture in (sheets | drawn).items():
            with whole_file(Path(args.sheets) / f"{name}.png") as partial:
                picture.save(partial)
    print(text)


def read_figures(path: str) -> dict:
    """Raises OSError where there is no such file, ValueError where it holds no figures."""
    try:
        found = json.loads(Path(path).read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON of figures, as `train.evaluate` and `preim3d bench --json` write it.")
    return found


def parse_compared(word: str) -> tuple[str, Path]:
    name, equals, folder = word.rpartition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f'`{word}` is not of the form NAME=ENCODER; for example "w/o ATS=runs/plain"')
    return name, Path(folder)


def parse_inversion(word: str) -> Way:
    before, equals, count = word.rpartition("=")
    method, in_folder, folder = before.partition("=")
    whole = equals and count.isdecimal() and int(count) >= 2
    if whole and method in METHODS and not in_folder:
        return Way(method, int(count))
    if whole and method in LEARNED and folder:
        return Way(method, int(count), Path(folder))
    raise argparse.ArgumentTypeError(
        f"`{word}` is neither WAY=PHOTOS with one of {', '.join(METHODS)} nor WAY=FOLDER=PHOTOS with one of"
        f" {', '.join(LEARNED)}, and 2 photos or more"
    )


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.evaluate", seed=False)
    parser.add_argument("--weights", required=True, help="pipeline folder")
    parser.add_argument("--data", required=True, help="folder of packed photos (`python -m train.photos`)")
    parser.add_argument("--reader", required=True, help=READER_HELP)
    parser.add_argument(
        "--lite0", required=True, help="EfficientNet-Lite0's first blocks as safetensors (see train.model.perceptual)"
    )
    parser.add_argument(
        "--identity", help="folder of `train.publishing.identity_weights`; default: that of the weights"
    )
    parser.add_argument(
        "--mesh", help="folder of the network that reads poses; default: landmarks/mesh of the weights"
    )
    parser.add_argument(
        "--fid-network", help="TorchScript file as StyleGAN's inception-2015-12-05.pt; default: EfficientNet-Lite0"
    )
    parser.add_argument("--labels", help="FairFace's CSV of labels; default: that beside the photos, if there is one")
    parser.add_argument("--out", required=True, help="the .json to write; the tables come beside it")
    parser.add_argument("--sheets", help="folder for the contact sheets")
    parser.add_argument("--photos", type=int, help="held-out photos at most, from the first on; default: all")
    parser.add_argument("--fid-photos", type=int, default=1000, help="for FID and KID, others than held ones included")
    parser.add_argument("--group-photos", type=int, default=100, help="of each group of people, likewise")
    parser.add_argument(
        "--views", type=whole_number(1), metavar="V",
        help="20 is the paper's protocol: V views of each photo over all of yaw, for ID and APD, and V more in each"
        " band, for ID_a-b; default: one view in each band, which stand for both",
    )  # fmt: skip
    parser.add_argument("--mirror", action="store_true", help="every photo a second time, left and right exchanged")
    parser.add_argument(
        "--two-poses", type=whole_number(2), default=50, metavar="HEADS",
        help="that are seen from two cameras each: of the generator, and of photos",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=[], metavar="PART",
        help=f"measure these alone ({', '.join(PARTS)}), and add that to the figures of --out",
    )  # fmt: skip
    parser.add_argument("--edited", type=int, default=24, help="heads that every direction edits")
    parser.add_argument("--origin", help="directions of the original space, to compare with at equal AA (Table 5)")
    parser.add_argument("--origin-photos", type=int, default=200, help="for it, others than held ones included")
    parser.add_argument(
        "--inversion", type=parse_inversion, nargs="+", default=[], metavar="WAY=PHOTOS",
        help="measure these ways of inversion alone, on so many held-out photos, and add them to the figures of --out;"
        " z and tuned: WAY=FOLDER=PHOTOS",
    )  # fmt: skip
    parser.add_argument("--outcomes", help="folder that keeps each photo's inversion, so that a killed run goes on")
    parser.add_argument(
        "--compare", type=parse_compared, nargs="*", default=[], metavar="NAME=ENCODER",
        help="other encoders of this generator, for the ablation (Table 4)",
    )  # fmt: skip
    parser.add_argument("--before", help="evaluation.json of earlier weights, to stand beside these figures")
    parser.add_argument("--bench", help="what `python -m preim3d bench --json` printed, to stand among the figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="with several: their mean and spread")
    args = parser.parse_args(words)
    if args.mirror and args.inversion:
        parser.error("--mirror is of the encoder's figures: leave it out with --inversion")
    for part, option, given in (("spaces", "--origin", args.origin), ("compared", "--compare", args.compare)):
        if part in args.only and not given:
            parser.error(f"--only {part} needs {option}")
    return run_stage("train.evaluate", evaluate, args)
