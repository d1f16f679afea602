r"""Real photos -> a small StyleGAN2 of pictures, and the encoder that it learned with.

    python -m train.picture_generator --photos dataset/real --lite0 lite0.safetensors --out runs/pictures --minutes 30

A game of pictures needs days; a core has half an hour. So synthesis learns to give back what an encoder of one w saw
(pixels over the person, EfficientNet-Lite0's features), first a quarter of the size, and the mapping network learns
the distribution of those w from a game in w, which costs nothing (`mapping.py`); in the end it alone goes on. A little
noise on w keeps what lies between two people a face. Pictures are soft: nothing asks for more detail than w tells.
They begin as the photos' mean.

Makes OUT/checkpoint.pt (from which the same command goes on), OUT/generator/ and OUT/encoder/ (moving averages),
OUT/events, OUT/sheets (held-out photos, their reconstructions, samples), OUT/report.json (held-out photos)."""

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.efficientnet import EfficientNetLite0
from train.inversion.rounds import resize
from train.loop import checkpoint
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, follow, set_rate
from train.model.face_batches import PhotoBatches
from train.model.face_losses import picture_losses
from train.photos.real_photos import RealPhotos
from train.pictures.mapping import LatentGame
from train.pictures.networks import PictureEncoder, PictureGenerator
from train.pictures.reconstructions import held_report


GENERATOR, ENCODER = {}, {}  # as the networks' keyword defaults
LOSS_WEIGHTS = {"pixels": 1.5, "squares": 1.0, "lite0": 1.5, "size_of_w": 2e-3}
NOISE = 0.15  # on w while synthesis learns; the spread of w is about 1
GROWS_AT = (0.2, 0.7)  # shares of the run from which pictures have half the size, and the whole
GAME_FROM = 0.5  # share from which the mapping network learns too; w moves too much before
MAPPING_FROM = 0.9  # share from which only the mapping network learns,
ALONE = 10  # so many steps of it at a time
CLIP = 5.0
AVERAGE_DECAY = 0.995
MEAN_OF = 4096  # latents whose mean is `w_avg`
AVERAGED = 200  # photos whose mean is the first picture


class GeneratorRun:
    """The networks, the data and what a step does with them."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args, device = args, torch.device(args.device)
        self.photos = RealPhotos(args.photos)
        self.generator = PictureGenerator(**GENERATOR).to(device)
        config = self.generator.config
        self.encoder = PictureEncoder(num_ws=self.generator.num_ws, w_dim=config.w_dim, **ENCODER).to(device)
        lite0 = EfficientNetLite0.load(args.lite0).to(device)
        self.encoder.body.load_state_dict(lite0.state_dict())
        self.teachers = {"lite0": lite0}
        self.game = LatentGame(self.generator.mapping, config.w_dim).to(device)
        size = config.resolution
        self.batches = {side: PhotoBatches(self.photos, side, device) for side in (size // 2, size)}
        self.generator.average.copy_(self.mean_picture(size))
        self.kept = {
            name: copy.deepcopy(network).eval().requires_grad_(False)
            for name, network in (("generator", self.generator), ("encoder", self.encoder))
        }
        learned = [p for p in self.encoder.parameters() if p.requires_grad]
        self.optimizers = {
            "adam": torch.optim.Adam(self.generator.synthesis.parameters(), args.rate, betas=(0.9, 0.99)),
            "adamw": torch.optim.AdamW(learned, args.encoder_rate, betas=(0.9, 0.99), weight_decay=1e-4),
        }

    @property
    def parts(self) -> dict:
        """What a checkpoint holds."""
        learned = {"generator": self.generator, "encoder": self.encoder, "game": self.game}
        kept = {f"kept_{name}": network for name, network in self.kept.items()}
        return learned | kept | self.optimizers | self.game.optimizers

    def save_kept(self) -> None:
        for name, network in self.kept.items():
            checkpoint.save_component(network, self.args.out / name)

    def step(self, number: int, share: float) -> dict[str, Tensor]:
        """One step; its loss terms. Drawn from the step's number alone, so that a run that was killed draws the same
        again."""
        rng = np.random.default_rng((self.args.seed, number))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        values = self.learn_pictures(number, share, rng, draws) if share < MAPPING_FROM else {}
        if share >= GAME_FROM:
            rate = cosine_rate(max(0.0, (share - MAPPING_FROM) / (1 - MAPPING_FROM)), 1.0, warm=0.0)
            for _ in range(ALONE if share >= MAPPING_FROM else 1):
                values |= self.game.step(self.generator.mapping, self.generator.config.z_dim, number, rate, draws)
        decay = min(AVERAGE_DECAY, (1 + number) / (10 + number))
        follow(self.kept["generator"], self.generator, decay)
        follow(self.kept["encoder"], self.encoder, decay)
        return values

    def learn_pictures(
        self, number: int, share: float, rng: np.random.Generator, draws: torch.Generator
    ) -> dict[str, Tensor]:
        """One step of encoder and synthesis on photos."""
        args, encoder, generator = self.args, self.encoder.train(), self.generator
        size = generator.config.resolution
        rate = cosine_rate(share / MAPPING_FROM, 1.0, floor=0.05)
        set_rate(self.optimizers["adam"], rate * args.rate)
        set_rate(self.optimizers["adamw"], rate * args.encoder_rate)
        halved = sum(share < grows for grows in GROWS_AT)
        photos = self.batches[size // 2 if halved else size].draw_photos(args.batch, rng, draws, plain=True)
        ws = encoder.rows(resize(photos.inputs, encoder.config.input_size), 1)
        self.game.remember(ws[:, 0])
        noise = torch.randn(len(ws), 1, ws.shape[2], generator=draws).to(ws.device)
        images = generator(ws + NOISE * noise, halved)
        targets, compared = (
            F.interpolate(x, images.shape[-2:], mode="area") for x in (photos.targets, photos.compared)
        )
        # Features of pictures a quarter as large say nothing.
        terms, _ = picture_losses(images, targets, compared, self.teachers if halved < 2 else {}, None)
        terms["size_of_w"] = ws[:, 0].square().mean()
        values = {name: term.detach() for name, term in terms.items()}
        loss = sum(LOSS_WEIGHTS[name] * term for name, term in terms.items())
        descend(number, loss, values, self.optimizers.values(), CLIP)
        return values

    def mean_picture(self, size: int) -> Tensor:
        """[3, size, size]: the mean of some photos, each pixel over those that show it."""
        photos = self.batches[size].draw_photos(
            AVERAGED, np.random.default_rng(self.args.seed), torch.Generator().manual_seed(self.args.seed), plain=True
        )
        weight = photos.compared + 1e-3  # plain grey, as targets have it, where no photo shows anything
        return (photos.targets * weight).sum(0) / weight.sum(0)

    @torch.no_grad()
    def set_mean_latent(self) -> None:
        """The mean w, towards which truncation pulls."""
        mapping = self.kept["generator"].mapping
        z = torch.randn(MEAN_OF, self.generator.config.z_dim, generator=torch.Generator().manual_seed(0))
        mapping.w_avg.copy_(mapping(z.to(self.args.device)).mean(0))

    def report(self) -> tuple[dict[str, float], list[Tensor]]:
        return held_report(self.photos, self.args.held, self.kept["encoder"], self.kept["generator"], 1, None)


def train(args: argparse.Namespace) -> None:
    run = GeneratorRun(args)
    training = Training(args.out, run.parts, args.device, also_save=run.save_kept)

    def look() -> list[Tensor]:
        figures, rows = run.report()
        print(f"step {training.progress.step}  held-out {figures}", file=sys.stderr, flush=True)
        return rows

    training.run(run.step, args.batch, **budget(args), sheets=args.sheets, look=look)
    run.set_mean_latent()
    training.save()
    training.finish(*run.report())


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.picture_generator")
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument("--lite0", required=True, help="EfficientNet-Lite0's safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=12, help="photos a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate of synthesis")
    parser.add_argument("--encoder-rate", type=float, default=1e-3, help="peak learning rate of the encoder")
    parser.add_argument("--held", type=int, default=64, help="held-out photos that are reported on")
    parser.add_argument("--sheets", type=int, default=6, help="over the run")
    return run_stage("train.picture_generator", train, check_budget(parser, parser.parse_args(words)))
