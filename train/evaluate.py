r"""Held-out photos -> evaluation.json, tables shaped like the paper's, contact sheets: how good generator, encoder and
directions are.

    python -m train.evaluate --weights weights/faces --data dataset/heldout --source heads_source.npz \
        --reader dataset/attributes/reader --out weights/faces/evaluation.json --sheets sheets
    python -m train.evaluate --weights WEIGHTS --data celeba_hq.zip --reader READER --views 20 --edited 300 \
        --identity ir_se50 --fid-network inception-2015-12-05.pt --out evaluation.json

The metrics are those of `train.metrics`; the protocol is written into the file with the figures, and beside it, as
evaluation.md, Tables 2, 3, 4, 5 and 7 of the paper. With 200 heads of 256 px it takes some 20
minutes of one core; `--seeds 0 1` twice that, and gives the spread; `--origin` (directions of the original space) and
each `--compare` some minutes more, `--optimised 8` many minutes a head."""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from preim3d.files import whole_file
from train.evaluation import Evaluation
from train.options import run_stage, stage_parser
from train.report import average, protocol, tables


def evaluate(args: argparse.Namespace) -> None:
    started = time.monotonic()
    by_seed, sheets = [], {}
    for seed in args.seeds:
        evaluation = Evaluation(args, seed)
        figures = evaluation.generator_figures() | evaluation.reconstruction_figures() | evaluation.side_figures()
        figures |= evaluation.time_figures() | evaluation.edit_figures()
        if args.optimised:
            figures |= evaluation.optimisation_figures()
        by_seed.append(figures)
        sheets = sheets or evaluation.sheets
    figures = average(by_seed)
    figures |= {
        "n": len(evaluation.ws),
        "seeds": list(args.seeds),
        "protocol": protocol(evaluation),
        "hardware": f"{platform.machine()}, {args.device}, {args.threads} threads, torch {torch.__version__}",
        "seconds": round(time.monotonic() - started),
    }
    with whole_file(args.out) as partial:
        partial.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    config = evaluation.directions.config
    text = tables(figures, dict(zip(config.names, config.accuracies)))
    with whole_file(Path(args.out).with_suffix(".md")) as partial:
        partial.write_text(text + "\n")
    for name, picture in sheets.items():
        if args.sheets:
            with whole_file(Path(args.sheets) / f"{name}.png") as partial:
                picture.save(partial)
    print(text)


def parse_compared(word: str) -> tuple[str, Path]:
    name, equals, folder = word.rpartition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f'`{word}` is not of the form NAME=ENCODER; for example "w/o ATS=runs/plain"')
    return name, Path(folder)


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.evaluate", seed=False)
    parser.add_argument("--weights", required=True, help="pipeline folder")
    parser.add_argument(
        "--data", required=True,
        help="folder of `python -m train.heads render` with a seed of its own, or an EG3D dataset of photos",
    )  # fmt: skip
    parser.add_argument("--source", help="the .npz of `python -m train.heads build`, to render heads' truth anywhere")
    parser.add_argument("--reader", required=True, help="folder made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument(
        "--identity",
        help="folder of `train.identity`, or the published model_ir_se50.pth; default: the reader's embedding",
    )
    parser.add_argument(
        "--fid-network", help="TorchScript file as StyleGAN's inception-2015-12-05.pt; default: the reader's embedding"
    )
    parser.add_argument("--out", required=True, help="the .json to write; the tables come beside it")
    parser.add_argument("--sheets", help="folder for the contact sheets")
    parser.add_argument("--heads", type=int, default=200, help="photos, from the first on")
    parser.add_argument("--views", type=int, default=1, help="of each head in each band of yaw; the paper: 20")
    parser.add_argument("--edited", type=int, default=24, help="heads that every direction edits")
    parser.add_argument("--origin", help="directions of the original space, to compare with at equal AA (Table 5)")
    parser.add_argument("--optimised", type=int, default=0, help="heads to invert by descent too (300 steps each)")
    parser.add_argument(
        "--compare", type=parse_compared, nargs="*", default=[], metavar="NAME=ENCODER",
        help="other encoders of this generator, for the ablation (Table 4)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="with several: their mean and spread")
    return run_stage("train.evaluate", evaluate, parser.parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
