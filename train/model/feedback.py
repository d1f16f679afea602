r"""Encoder, generator and photos -> `preim3d.feedback`: the step of w that brings what a picture lacks.

    python -m train.feedback --weights weights/faces --photos dataset/photos --lite0 lite0.safetensors \
        --out runs/feedback --pairs 1500 --minutes 45

First pairs: w of a photo, and the same moved by a share of the difference of two other photos' w; both are rendered
from that photo's camera, and how dlib's embedding and the coarse colours changed is kept. The step is a ridge
regression of the moves on these changes. Forward passes only: about a second a pair on one core.

But no picture of the generator lacks what photos have and it cannot make. So then the step learns on photos: what it
reads and what it writes change by descent, through the generator that stays as it is, on what `train.faces` asks of a
reconstruction: three seconds a photo on one core.

Makes OUT/pairs.npz (resumable: a killed run loses at most the last minute), OUT/checkpoint.pt, OUT/feedback (the
component) and OUT/report.json (held-out photos: the encoder's w, after the step that pairs teach, after that of
photos)."""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from preim3d.directions import fingerprint
from preim3d.feedback import Feedback, Photos, bring_nearer, lacking
from preim3d.generator import Planes
from train.loop import checkpoint
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, follow, set_rate
from train.model.face_batches import PhotoBatch, PhotoBatches, side_cameras
from train.model.face_losses import LOSS_WEIGHTS, identity_aside, photo_losses
from train.model.feedback_pairs import Networks, Pairs, draw, learn
from train.model.held_photos import HeldPhotos, shown
from train.photos.real_photos import RealPhotos


# Likeness is bought with spots and lines where nothing else speaks for the face's own looks.
WEIGHTS = LOSS_WEIGHTS | {"lite0": 3.0}
WRITE_RATE = 0.15  # of what is written, in its own size, beside the rate of what is read
AVERAGE_DECAY = 0.98


class Descent:
    """Feedback that learns on photos."""

    def __init__(self, feedback: Feedback, networks: Networks, photos: RealPhotos, args: argparse.Namespace):
        self.args, self.networks, self.feedback = args, networks, feedback
        self.batches = PhotoBatches(photos, networks.encoder.config.input_size, args.device, keep=True)
        self.kept = copy.deepcopy(feedback)
        self.optimizers = [
            torch.optim.Adam(part.requires_grad_().parameters(), betas=(0.9, 0.97))
            for part in (feedback.read, feedback.write)
        ]
        self.rates = args.rate, args.rate * WRITE_RATE * feedback.write.weight.square().mean().sqrt().item()

    @property
    def parts(self) -> dict:
        """What a checkpoint holds."""
        read, write = self.optimizers
        return {"feedback": self.feedback, "kept": self.kept, "read_optimizer": read, "write_optimizer": write}

    def step(self, number: int, share: float) -> dict[str, Tensor]:
        """One step; its loss terms. Drawn from the step's number alone."""
        args = self.args
        rng = np.random.default_rng((args.seed, number))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for optimizer, rate in zip(self.optimizers, self.rates):
            set_rate(optimizer, cosine_rate(share, rate))
        batch = self.batches.draw_photos(args.batch, rng, draws, plain=True)
        terms = self.terms(batch, draws)
        loss = sum(WEIGHTS[name] * term for name, term in terms.items())
        values = {name: term.detach() for name, term in terms.items()}
        descend(number, loss, values, self.optimizers)
        follow(self.kept, self.feedback, min(AVERAGE_DECAY, (1 + number) / (10 + number)))
        return values

    def terms(self, batch: PhotoBatch, draws: torch.Generator) -> dict[str, Tensor]:
        """Those of WEIGHTS that w has something for, after the last step of feedback."""
        networks, generator = self.networks, self.networks.generator
        photos = shown(batch, networks)
        asked = photos, generator, networks.identity, self.feedback
        with torch.no_grad():
            w = networks.encoder(batch.inputs)
            for _ in range(self.feedback.config.steps - 1):
                w = w + self.feedback(*lacking(w, *asked))
        w = w + self.feedback(*lacking(w, *asked))
        planes, rays = generator.planes(w), {"ray_resolution": self.args.rays}
        view = generator.render(planes, photos.cameras, w, **rays)
        terms, wanted = photo_losses(view, batch, networks.identity, {"lite0": networks.lite0}, generator)
        aside = generator.render(planes, side_cameras(batch, draws, generator.config), w, **rays)
        return terms | {"identity_aside": identity_aside(aside.image, wanted, networks.identity)}


def train(args: argparse.Namespace) -> None:
    networks, photos = Networks(args), RealPhotos(args.photos)
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = Pairs(args.out / "pairs.npz", fingerprint(networks.encoder, networks.generator))
    draw(pairs, networks, photos, args)
    feedback = learn(pairs, networks.generator, args).to(networks.generator.device)
    held = HeldPhotos(networks, photos, args.held)

    def look(feedback: Feedback | None) -> tuple[dict, Tensor]:
        def head_of(photos: Photos, w: Tensor) -> tuple[Tensor, Planes]:
            if feedback is not None:
                w = bring_nearer(w, photos, networks.generator, networks.identity, feedback)
            return w, networks.generator.planes(w)

        return held.look(head_of)

    looks = {"encoder": look(None), "pairs": look(feedback)}
    run = Descent(feedback, networks, photos, args)

    def save() -> None:
        checkpoint.save_component(run.kept, args.out / "feedback")

    training = Training(args.out, run.parts, args.device, also_save=save)
    training.run(run.step, args.batch, **budget(args))
    training.save()
    looks["photos"] = look(run.kept)
    figures = {name: found for name, (found, _) in looks.items()} | {"n": len(held.w), "pairs_drawn": len(pairs)}
    training.finish(figures, [held.first_ones, *(pictures for _, pictures in looks.values())])


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.feedback")
    parser.add_argument("--weights", required=True, help="folder with generator/, encoder/ and identity/")
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument("--identity", help="dlib's network; default: that of the weights")
    parser.add_argument("--lite0", required=True, help="EfficientNet-Lite0's safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=1500, help="a second each on one core")
    parser.add_argument("--ridge", type=float, default=3.0, help="more: smaller steps, which fit photos better")
    parser.add_argument("--rank", type=int, default=64, help="directions of w that steps are made of")
    parser.add_argument("--colour-weight", type=float, default=0.1, help="of colours beside the embedding")
    parser.add_argument("--times", type=int, default=1, help="how often a step is taken; .3 s each on two cores")
    parser.add_argument("--cells", type=int, default=16, help="side of the coarse pictures that are compared")
    parser.add_argument("--rays", type=int, default=64, help="along a side of the pictures that are looked at")
    parser.add_argument("--batch", type=int, default=4, help="photos of a step of descent")
    parser.add_argument("--rate", type=float, default=0.02, help="peak learning rate, of numbers of size 1")
    parser.add_argument("--held", type=int, default=40, help="held-out photos of the report")
    return run_stage("train.feedback", train, check_budget(parser, parser.parse_args(words)))
