r"""Photos -> w: trains the encoder of one generator by alternating rounds (paper, sections 3.2, 3.3 and A.1).

    python -m train.encoder --data PHOTOS.zip --generator GENERATOR --identity model_ir_se50.pth \
        --lpips alexnet-owt-7be5be79.pth --out runs/encoder --steps 300000

    out-domain round   posed photos ── E ──> w ── G ──> L_2, L_LPIPS, L_ID at the photo's camera, L_ID around it
    in-domain round    G(w, random camera) ── E ──────> the same, and L_w against that w (Eq. 4)

`--data` is a folder or zip in EG3D's layout (`python -m train.prepare` makes one of raw photos), or a folder of
`train.heads render`. Recipes: `paper` is the method as published; `released` has what its released code does
otherwise; `heads` is for synthetic heads with a `--reader`, whose true w is known in both rounds:

    python -m train.encoder --data dataset/heads --generator weights/faces/generator \
        --reader dataset/attributes/reader --out dataset/encoder --minutes 30

There the body starts from `train.attributes`, the last layer from a ridge regression of w; both rounds make one step,
and every few steps the pictures are compared from two sides. Several GPUs or machines: see train/README.md.

Makes OUT/checkpoint.pt (from which the same command goes on), OUT/encoder/, OUT/events (TensorBoard) and OUT/sheets.

Of the weights in weights/faces/encoder, all beside other work, seed 0, `--threads 1 --precision bfloat16`: 8748
heads, `--fit-batches 80`, 52 minutes, 1126 steps; `--start` from there with 3825 of these heads, `--minutes 71 --rate
2e-4 --pictures-from .05 --pool-from .02`, 2668 steps; when heads had become narrower, the same with 4344 of them and
`--fit-batches 80 --minutes 38`, 1546 steps; from there, without a fit, `--minutes 66 --pictures-from .02`, 2610
steps, for the generator of before its last 50 minutes."""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch

from train import checkpoint, workers
from train.encoder_run import EncoderRun
from train.heads_photos import fit_last_layer
from train.options import check_budget, run_stage, training_parser
from train.precision import settle
from train.progress import Progress, cosine_rate
from train.run_log import RunLog


# What a recipe means; each can be given otherwise by its own option.
RECIPES = {
    "paper": {"batch": 8, "rate": 1e-4, "clip": math.inf, "round_order": "out-in", "pool": 0},
    "released": {
        "batch": 2, "rate": 1e-4, "clip": math.inf, "round_order": "in-out", "pool": 0, "optimizer": "ranger",
        "surround": "frontal", "truncation": 0.7, "latent_discriminator": True,
    },
    "heads": {"batch": 32, "rate": 3e-4, "clip": 2.0, "round_order": "together", "pool": 2048},
}  # fmt: skip


def train(args: argparse.Namespace) -> None:
    out = Path(args.out)
    run = EncoderRun(args)
    first = run.place.is_main_process  # it alone writes
    path = out / "checkpoint.pt"
    state = {"step": 0, "seconds": 0.0, "notes": {}}
    if path.exists():
        state = resume(path, run)
        if first:
            print(f"Resumed {path} at step {state['step']}.")
    elif args.recipe == "heads" and args.fit_batches:
        rng, draws = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
        fitted = fit_last_layer(run.encoder, (run.photos(rng, draws, 0)[:2] for _ in range(args.fit_batches)))
        if args.ema:
            run.average.load_state_dict(run.encoder.state_dict())
        if first:
            print(f"The last layer explains {fitted:.2f} of the variance of w.")
    workers.same_start(run.encoder)
    workers.share_statistics(run.encoder)
    size = run.encoder.config.input_size
    sample = torch.zeros(args.batch, 3, size, size, device=run.device)
    # What was measured once holds for the whole run. In evaluation: the measurement must not move running statistics.
    precision = state["notes"].get("precision") or settle(args.precision, run.encoder.eval(), sample)
    run.start_reading(state["step"])
    progress = Progress(args.minutes, args.steps, step=state["step"], seconds=state["seconds"], quiet=not first)
    log = RunLog(out, progress.step) if first else None

    def save() -> None:
        pools = workers.collect(run.generated.state())
        if not first:
            return
        log.flush()
        notes = {"precision": precision, "pools": pools}
        checkpoint.save(path, run.parts, step=progress.step, seconds=progress.seconds, notes=notes)
        checkpoint.save_component(run.result, out / "encoder")

    saved_at, saved_step = progress.seconds, progress.step
    run.encoder.train()
    while (share := workers.agree(progress.share)) < 1:
        for group in run.optimizer.param_groups:
            group["lr"] = cosine_rate(share, args.rate, warm=0.05) if args.recipe == "heads" else args.rate
        terms = run.step(progress.step, share, precision)
        progress.advance(args.batch * args.accumulate * run.place.num_processes, **terms)
        if first:
            log.scalars(progress.step, terms)
        if first and int(progress.share * args.sheets) > int(share * args.sheets):
            log.sheet(progress.step, run.sheet())
        by_step = args.save_steps and progress.step - saved_step >= args.save_steps
        if workers.agree(by_step or progress.seconds - saved_at > args.save_seconds):
            checkpoint.attempt(save, path, progress.step)
            saved_at, saved_step = progress.seconds, progress.step
    run.encoder.eval()
    save()
    if first:
        log.close()


def resume(path: Path, run: EncoderRun) -> dict:
    try:
        state = checkpoint.load(path, run.parts, device=run.device)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} was made with other options ({error}); give those, or another --out.") from error
    pools = state["notes"]["pools"]
    run.generated.restore(pools[run.place.process_index % len(pools)])
    return state


def main(words: list[str] | None = None) -> int:
    return run_stage("train.encoder", train, parse(words))


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = training_parser(__doc__, "train.encoder")
    parser.add_argument("--data", required=True, help="folder or zip with dataset.json, or folder of rendered heads")
    parser.add_argument("--generator", required=True, help="generator folder (config.json and weights)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--recipe", choices=RECIPES, help="default: heads for rendered heads, paper for photos")
    parser.add_argument("--reader", help="folder made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument("--identity", help="folder of `train.identity`, or the published model_ir_se50.pth: L_ID, and "
                        "the encoder's first body; default: the reader")  # fmt: skip
    parser.add_argument("--start", help="an encoder to go on from, e.g. weights/faces/encoder; was it another "
                        "generator's, then with --fit-batches")  # fmt: skip
    parser.add_argument("--similarity", help="ResNet-50 file (MoCo's), for L_ID in domains without faces")
    parser.add_argument("--lpips", help="torchvision's alexnet-*.pth or vgg16-*.pth; default: the reader's features")
    parser.add_argument("--lpips-linear", help="alex.pth or vgg.pth of the lpips package: weights of the channels")
    parser.add_argument("--schedule-scale", type=float, default=1.0, help=".01: 3000 steps instead of 300000")
    parser.add_argument("--round-order", choices=("out-in", "in-out", "together"), help="together: both in one step; "
                        "in-out: the released code's, which drops the photos of an in-domain step")  # fmt: skip
    parser.add_argument("--optimizer", choices=("adamw", "ranger"), default="adamw")
    parser.add_argument("--surround", choices=("input", "frontal"), default="input", help="camera that the views of "
                        "Eq. 6 lie around: the paper's 4, or the released code's 3")  # fmt: skip
    parser.add_argument("--without", nargs="+", choices=("alternating", "surround"), default=[], help="for ablations "
                        "(Table 4): photos in every round; no views of Eq. 6; not for recipe heads")  # fmt: skip
    parser.add_argument("--truncation", type=float, default=1.0, help="of generated images' w; the released code: .7")
    parser.add_argument("--latent-discriminator", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--mirror", action="store_true", help="every posed photo a second time, mirrored")
    parser.add_argument("--size", type=int, default=256, help="side of the encoder's input where --identity starts it")
    parser.add_argument("--batch", type=int, help="images of a round, in each process")
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one step")
    parser.add_argument("--rate", type=float, help="learning rate; recipe heads: its peak")
    parser.add_argument("--clip", type=float, help="largest norm of the gradient")
    parser.add_argument("--ema", type=float, default=0.0, help="decay of a moving average of the weights, which is "
                        "what is kept then, e.g. .999")  # fmt: skip
    parser.add_argument("--pool", type=int, help="generated images kept for in-domain rounds; 0: new ones every time")
    parser.add_argument("--save-steps", type=int, help="or steps between them, whichever comes first")
    parser.add_argument("--sheets", type=int, default=4, help="sample sheets over the whole run")
    parser.add_argument("--workers", type=int, default=2, help="processes that read posed photos")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    heads = parser.add_argument_group("recipe heads")
    heads.add_argument("--picture-batch", type=int, default=4, help="images of a batch that are rendered for L_2 etc.")
    heads.add_argument("--picture-every", type=int, default=3, help="steps between these: rendering costs most time")
    heads.add_argument("--pictures-from", type=float, default=0.3, help="share of the run after which they begin")
    heads.add_argument("--pool-from", type=float, default=0.1, help="share after which in-domain rounds begin")
    heads.add_argument("--plain-share", type=float, default=0.2, help="of the inputs, in the generator's light")
    heads.add_argument("--w-weight", type=float, default=0.3, help="lambda_w; large, for w is known for photos too")
    heads.add_argument("--lpips-weight", type=float, default=0.2)
    heads.add_argument("--id-weight", type=float, default=0.1)
    heads.add_argument("--fit-batches", type=int, help="for the last layer's regression before the first step; "
                       "default: 100, with --start none")  # fmt: skip
    args = parser.parse_args(words)
    args.recipe = args.recipe or ("heads" if (Path(args.data) / "heads.npz").is_file() else "paper")
    parser.set_defaults(**RECIPES[args.recipe])
    args = argparse.Namespace(**vars(parser.parse_args(words)) | {"recipe": args.recipe})

    if args.fit_batches is None:
        args.fit_batches = 0 if args.start else 100
    check_budget(parser, args)
    if args.recipe == "heads" and not (args.reader and (Path(args.data) / "heads.npz").is_file()):
        parser.error("--recipe heads needs a folder of `python -m train.heads render` as --data, and a --reader")
    if args.recipe == "heads" and args.without:
        parser.error("--without is for --recipe paper or released")
    if not (args.reader or args.lpips):
        parser.error("L_LPIPS needs --lpips (torchvision's alexnet-*.pth or vgg16-*.pth) or a --reader")
    if not (args.reader or args.identity or args.similarity):
        parser.error(
            "L_ID needs --identity (model_ir_se50.pth), --similarity (where there are no faces) or a --reader"
        )
    return args


if __name__ == "__main__":
    sys.exit(main())
