r"""Real photos -> e4e's encoder (Tov et al. 2021) for a generator of `train.picture_generator`, which stays as it is.

    python -m train.picture_encoder --photos dataset/real --weights runs/pictures --identity weights/faces/identity \
        --lite0 lite0.safetensors --out runs/e4e --minutes 10

W+ as one w and an offset of each further row from it, which are let go one after the other over the first half of the
run and pulled to zero; a latent discriminator keeps the rows among the mapping network's (sections 4.1 and 4.2). Its
losses are e4e's: mean squares, a perceptual distance (EfficientNet-Lite0's in the place of LPIPS), identity (dlib's in
the place of ArcFace's), over the person. It begins with the encoder that the generator learned with.

Makes OUT/checkpoint.pt (from which the same command goes on), OUT/encoder/ (a moving average), OUT/events, OUT/sheets,
OUT/report.json (held-out photos)."""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from preim3d.efficientnet import EfficientNetLite0
from preim3d.identity import FaceIdentity
from preim3d.pipeline import load_component
from train.inversion import latent_discriminator
from train.inversion.latent_discriminator import LatentDiscriminator
from train.inversion.rounds import resize
from train.loop import checkpoint
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, follow, set_rate
from train.model.face_batches import PhotoBatches
from train.model.face_losses import picture_losses
from train.photos.real_photos import RealPhotos
from train.pictures.networks import PictureEncoder, PictureGenerator
from train.pictures.reconstructions import held_report


# e4e's for faces, but identity's, which is dlib's squared distance here and not a cosine.
LOSS_WEIGHTS = {
    "squares": 1.0, "lite0": 0.8, "identity": 0.1, "deltas": 2e-4, "adversary": latent_discriminator.WEIGHT,
}  # fmt: skip
FREE_UNTIL = 0.5  # share of the run at which the last row is let go
CLIP = 5.0
AVERAGE_DECAY = 0.99


class E4ERun:
    """The networks, the data and what a step does with them."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args, device, weights = args, torch.device(args.device), Path(args.weights)
        self.photos = RealPhotos(args.photos)
        self.generator = load_component(PictureGenerator, weights / "generator", torch.float32).to(device)
        self.encoder = load_component(PictureEncoder, weights / "encoder", torch.float32).to(device)
        self.generator.eval().requires_grad_(False)
        self.encoder.requires_grad_(True).body.requires_grad_(False)
        self.kept = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        self.identity = load_component(FaceIdentity, Path(args.identity), torch.float32).to(device)
        self.identity.eval().requires_grad_(False)
        self.teachers = {"lite0": EfficientNetLite0.load(args.lite0).to(device)}
        self.discriminator = LatentDiscriminator(self.generator.config.w_dim).to(device)
        self.batches = PhotoBatches(self.photos, self.generator.config.resolution, device, keep=True)
        learned = [p for p in self.encoder.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(learned, args.rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.adam = torch.optim.Adam(self.discriminator.parameters(), latent_discriminator.RATE)

    @property
    def parts(self) -> dict:
        """What a checkpoint holds."""
        networks = {"encoder": self.encoder, "kept": self.kept, "discriminator": self.discriminator}
        return networks | {"adamw": self.adamw, "adam": self.adam}

    def free(self, share: float) -> int:
        """How many rows of w may differ at this share of the run: two at first."""
        num_ws = self.generator.num_ws
        return min(num_ws, 2 + int(share / FREE_UNTIL * (num_ws - 1)))

    def step(self, number: int, share: float) -> dict[str, Tensor]:
        """One step; its loss terms. Drawn from the step's number alone, so that a run that was killed draws the same
        again."""
        args = self.args
        rng = np.random.default_rng((args.seed, number))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        set_rate(self.adamw, cosine_rate(share, args.rate))
        photos = self.batches.draw_photos(args.batch, rng, draws, plain=True)
        inputs = resize(photos.inputs, self.encoder.config.input_size)
        ws = self.encoder.train().rows(inputs, self.free(share))
        terms, _ = picture_losses(self.generator(ws), photos.targets, photos.compared, self.teachers, self.identity)
        terms["deltas"] = delta_size(ws)
        terms["adversary"] = latent_discriminator.encoder_loss(self.discriminator(ws.flatten(0, 1)))
        terms = {name: terms[name] for name in LOSS_WEIGHTS}
        values = {name: term.detach() for name, term in terms.items()}
        descend(number, sum(LOSS_WEIGHTS[name] * term for name, term in terms.items()), values, [self.adamw], CLIP)
        values |= self.tell_apart(number, ws.detach().flatten(0, 1), draws)
        follow(self.kept, self.encoder, min(AVERAGE_DECAY, (1 + number) / (10 + number)))
        return values

    def tell_apart(self, number: int, encoded: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
        """One step of the discriminator: the mapping network's rows against those of the encoder."""
        z = torch.randn(len(encoded), self.generator.config.z_dim, generator=draws)
        real, network = self.generator.mapping(z.to(encoded.device)), self.discriminator
        mixed = network.mix(encoded, draws)
        terms = {"told_apart": latent_discriminator.discriminator_loss(network(real), network(mixed))}
        if number % latent_discriminator.R1_EVERY == 0:
            terms["r1"] = latent_discriminator.r1_penalty(network, real)
        descend(number, sum(terms.values()), {k: v.detach() for k, v in terms.items()}, [self.adam])
        return {"told_apart": terms["told_apart"].detach()}

    def report(self) -> tuple[dict[str, float], list[Tensor]]:
        free = self.generator.num_ws
        return held_report(self.photos, self.args.held, self.kept, self.generator, free, self.identity)


def delta_size(ws: Tensor) -> Tensor:
    """e4e's regularisation: the lengths of the rows' offsets from the first, summed over rows; mean over the batch of
    ws [B, num_ws, w_dim]."""
    # The floor keeps the gradient finite where an offset is nothing.
    return ((ws[:, 1:] - ws[:, :1]).square().sum(2) + 1e-8).sqrt().sum(1).mean()


def train(args: argparse.Namespace) -> None:
    run = E4ERun(args)
    training = Training(
        args.out, run.parts, args.device, also_save=lambda: checkpoint.save_component(run.kept, args.out / "encoder")
    )

    def look() -> list[Tensor]:
        figures, rows = run.report()
        print(f"step {training.progress.step}  held-out {figures}", file=sys.stderr, flush=True)
        return rows

    training.run(run.step, args.batch, **budget(args), sheets=args.sheets, look=look)
    training.save()
    training.finish(*run.report())


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.picture_encoder")
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument("--weights", required=True, help="folder made by `python -m train.picture_generator`")
    parser.add_argument("--identity", required=True, help="dlib's network: weights/faces/identity")
    parser.add_argument("--lite0", required=True, help="EfficientNet-Lite0's safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8, help="photos a step")
    parser.add_argument("--rate", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--held", type=int, default=64, help="held-out photos that are reported on")
    parser.add_argument("--sheets", type=int, default=3, help="over the run")
    return run_stage("train.picture_encoder", train, check_budget(parser, parser.parse_args(words)))
