r"""Photos -> w: trains the encoder of one generator by alternating rounds (paper, sections 3.2, 3.3 and A.1).

    python -m train.encoder --data PHOTOS.zip --generator GENERATOR --identity model_ir_se50.pth \
        --lpips alexnet-owt-7be5be79.pth --out runs/encoder --steps 300000

    out-domain round   posed photos ── E ──> w ── G ──> L_2, L_LPIPS, L_ID at the photo's camera, L_ID around it
    in-domain round    G(w, random camera) ── E ──────> the same, and L_w against that w (Eq. 4)

`--data` is a folder or zip in EG3D's layout (`python -m train.prepare` makes one of raw photos). Recipes: `paper` is
the method as published; `released` has what its released code does otherwise. The bundled model's encoder learned by
another way, together with its generator: see `train.faces`. Several GPUs or machines: see train/README.md.

Makes OUT/checkpoint.pt (from which the same command goes on), OUT/encoder/, OUT/events (TensorBoard), OUT/sheets."""

import argparse
import math
from pathlib import Path

import torch

from train.inversion.encoder_run import EncoderRun
from train.loop import checkpoint, workers
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.precision import settle
from train.loop.training import Training, set_rate


# What a variant means; each can be given otherwise by its own option.
VARIANTS = {
    "paper": {"batch": 8, "round_order": "out-in"},
    "released": {
        "batch": 2, "round_order": "in-out", "optimizer": "ranger", "surround": "frontal", "truncation": 0.7,
        "latent_discriminator": True,
    },
}  # fmt: skip


def train(args: argparse.Namespace) -> None:
    out = Path(args.out)
    run = EncoderRun(args)
    training = Training(
        out, run.parts, args.device, also_save=lambda: checkpoint.save_component(run.result, out / "encoder")
    )
    set_rate(run.optimizer, args.rate)  # a run may go on at another
    workers.same_start(run.encoder)
    workers.share_statistics(run.encoder)
    size = run.encoder.config.input_size
    sample = torch.zeros(args.batch, 3, size, size, device=run.device)
    # What was measured once holds for the whole run.
    precision = training.notes.get("precision") or settle(args.precision, run.encoder, sample)
    training.notes["precision"] = precision
    run.start_reading(training.step)
    run.encoder.train()
    training.run(
        lambda number, share: run.step(number, precision),
        args.batch * args.accumulate * run.place.num_processes,
        **budget(args),
        save_steps=args.save_steps,
        sheets=args.sheets,
        look=run.sheet,
    )
    run.encoder.eval()
    training.save()
    training.log.close()


def main(words: list[str] | None = None) -> int:
    return run_stage("train.encoder", train, parse(words))


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = training_parser(__doc__, "train.encoder")
    parser.add_argument("--data", required=True, help="folder or zip with dataset.json")
    parser.add_argument("--generator", required=True, help="generator folder (config.json and weights)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--variant", choices=VARIANTS, default="paper")
    parser.add_argument("--identity", help="L_ID: weights/faces/identity, or the published model_ir_se50.pth, then "
                        "the encoder's first body too")  # fmt: skip
    parser.add_argument("--start", help="an encoder of this generator to go on from, e.g. weights/faces/encoder")
    parser.add_argument("--similarity", help="ResNet-50 file (MoCo's), for L_ID in domains without faces")
    parser.add_argument("--lpips", help="L_LPIPS: torchvision's alexnet-*.pth or vgg16-*.pth")
    parser.add_argument("--lpips-linear", help="alex.pth or vgg.pth of the lpips package: weights of the channels")
    parser.add_argument("--lite0", help="in its place: EfficientNet-Lite0's safetensors")
    parser.add_argument("--schedule-scale", type=float, default=1.0, help=".01: 3000 steps instead of 300000")
    parser.add_argument("--round-order", choices=("out-in", "in-out"), help="in-out: the released code's, which "
                        "drops the photos of an in-domain step")  # fmt: skip
    parser.add_argument("--optimizer", choices=("adamw", "ranger"), default="adamw")
    parser.add_argument("--surround", choices=("input", "frontal"), default="input", help="camera that the views of "
                        "Eq. 6 lie around: the paper's 4, or the released code's 3")  # fmt: skip
    parser.add_argument("--without", nargs="+", choices=("alternating", "surround"), default=[], help="for ablations "
                        "(Table 4): photos in every round; no views of Eq. 6")  # fmt: skip
    parser.add_argument("--truncation", type=float, default=1.0, help="of generated images' w; the released code: .7")
    parser.add_argument("--latent-discriminator", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--mirror", action="store_true", help="every posed photo a second time, mirrored")
    parser.add_argument("--size", type=int, default=256, help="side of the encoder's input where --identity starts it")
    parser.add_argument("--batch", type=int, help="images of a round, in each process")
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--clip", type=float, default=math.inf, help="largest norm of the gradient")
    parser.add_argument("--ema", type=float, default=0.0, help="decay of a moving average of the weights, which is "
                        "what is kept then, e.g. .999")  # fmt: skip
    parser.add_argument("--save-steps", type=int, help="or steps between them, whichever comes first")
    parser.add_argument("--sheets", type=int, default=4, help="sample sheets over the whole run")
    parser.add_argument("--workers", type=int, default=2, help="processes that read posed photos")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.set_defaults(**VARIANTS[parser.parse_args(words).variant])
    args = check_budget(parser, parser.parse_args(words))
    if not (args.lpips or args.lite0):
        parser.error("L_LPIPS needs --lpips (torchvision's alexnet-*.pth or vgg16-*.pth) or --lite0")
    if not (args.identity or args.similarity):
        parser.error(
            "L_ID needs --identity (weights/faces/identity or model_ir_se50.pth) or --similarity (where there are no"
            " faces)"
        )
    return args
