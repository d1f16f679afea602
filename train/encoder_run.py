"""The networks, the data and the rounds of one encoder training: what a step of `train.encoder` does."""

import argparse
import copy
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from train import latent_discriminator, losses, schedules, workers
from train.attributes import HeadReader
from train.features import load_features
from train.heads.dataset import HeadsDataset
from train.heads_photos import HeadsPhotos, encoder_from_reader, latent_metric, photographed
from train.identity import encoder_from_identity, load_identity
from train.latent_discriminator import LatentDiscriminator
from train.lpips import load_lpips
from train.picture_metric import expression_weights
from train.posed_photos import PosedPhotos, Shuffled, load_batches
from train.precision import autocast
from train.progress import must_be_numbers
from train.ranger import Ranger
from train.rounds import Batch, GeneratedImages, Objective, cameras_of, resize, sample_latents


SHEET_PHOTOS, SHEET_YAW_DEG = 5, 25.0


class EncoderRun:
    """The networks, the data and the rounds of one run, in one of its processes."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.place = args, workers.join(args.device)
        # "cpu:0", as accelerate has it, cannot be read back from a checkpoint.
        device = self.device = torch.device("cpu") if args.device == "cpu" else self.place.device
        torch.manual_seed(args.seed)
        generator = TriPlaneGenerator.from_pretrained(args.generator).to(device).eval().requires_grad_(False)
        reader = None
        if args.reader:
            reader = HeadReader.from_pretrained(args.reader).to(device).eval().requires_grad_(False)
        self.encoder = self._new_encoder(generator, reader).to(device)
        size = self.encoder.config.input_size

        # The photos, and w of generated images.
        self.heads = self.rays = None
        if (Path(args.data) / "heads.npz").is_file():
            self.heads = HeadsPhotos(HeadsDataset(args.data), generator, size, args.plain_share)
            self.latents = self.heads.latents
            if args.recipe == "heads":
                self.rays = self.heads.rays
        else:
            self.posed = PosedPhotos(args.data, size, args.mirror)
            self.latents = partial(sample_latents, generator)
        truncated = self.latents if self.heads else partial(self.latents, truncation=args.truncation)
        seen = photographed if args.recipe == "heads" else lambda images, draws: images
        self.generated = GeneratedImages(generator, truncated, size, args.pool, seen, self.rays)
        self.real: Iterator | None = None

        self.objective = self._new_objective(generator, reader)
        kind = {"adamw": partial(torch.optim.AdamW, weight_decay=0.01), "ranger": Ranger}[args.optimizer]
        self.optimizer = kind(self.encoder.parameters(), args.rate)
        self.parts = {"encoder": self.encoder, "optimizer": self.optimizer}
        if args.ema:
            self.average = self.parts["average"] = copy.deepcopy(self.encoder).requires_grad_(False)
        if args.latent_discriminator:
            self.discriminator = LatentDiscriminator(generator.config.w_dim).to(device)
            rate = latent_discriminator.RATE
            self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), rate)
            self.parts["discriminator"] = self.discriminator
            self.parts["discriminator_optimizer"] = self.discriminator_optimizer

    def _new_encoder(self, generator: TriPlaneGenerator, reader: HeadReader | None) -> PortraitEncoder:
        """From `--start`; from the identity network's body, as in pSp and the paper; from the reader; or from
        nothing."""
        args = self.args
        if args.start:
            encoder = PortraitEncoder.from_pretrained(args.start)
            given, wanted = (encoder.config.num_ws, encoder.config.w_dim), (generator.num_ws, generator.config.w_dim)
            if given != wanted:
                raise ValueError(
                    f"{args.start} gives w of {given[0]} x {given[1]}, but {args.generator} takes {wanted[0]} x"
                    f" {wanted[1]}: give an encoder of that generator, or leave --start out."
                )
            return encoder
        if args.recipe == "heads":
            return encoder_from_reader(generator, reader)
        if args.identity:
            encoder = encoder_from_identity(generator, load_identity(args.identity), args.size)
        elif reader is not None:
            encoder = encoder_from_reader(generator, reader)
        else:
            config = generator.config
            encoder = PortraitEncoder(input_size=args.size, num_ws=generator.num_ws, w_dim=config.w_dim)
        encoder.latent_average.copy_(generator.latent_average().cpu().expand_as(encoder.latent_average))
        return encoder

    def _new_objective(self, generator: TriPlaneGenerator, reader: HeadReader | None) -> Objective:
        args, device = self.args, self.device
        if args.lpips:
            perceptual = load_lpips(args.lpips, args.lpips_linear).to(device)
        else:
            perceptual = partial(losses.perceptual_loss, reader)
        if args.similarity:
            identity = load_features(args.similarity).to(device)
        elif args.identity:
            identity = load_identity(args.identity).to(device).eval().requires_grad_(False)
        else:
            identity = reader
        objective = Objective(generator, perceptual, identity, surround=args.surround, rays=self.rays)
        if args.recipe == "heads":
            weights = expression_weights(self.heads.dataset.images.shape[2], device=device)  # the pictures' side
            objective.pixel_weights = weights / weights.mean()
            objective.metric = latent_metric(self.heads)
        return objective

    def photos(self, rng: np.random.Generator, draws: torch.Generator, pictures: int) -> Batch:
        """An out-domain batch; the first `pictures` of it have pictures to compare with."""
        if self.heads:
            return self.heads.draw(self.args.batch, rng, draws, pictures)
        images, cameras = (tensor.to(self.device) for tensor in next(self.real))
        return Batch(images, None, [(images, cameras)])

    def start_reading(self, step: int) -> None:
        """Posed photos from where a run of `step` steps stopped."""
        if self.heads:
            return
        order = self.args.round_order
        # Of the paper's order every other step takes photos; the released code's takes them always and drops half.
        taken = (step + 1) // 2 if order == "out-in" and "alternating" not in self.args.without else step
        shuffled = Shuffled(
            len(self.posed), self.args.batch, self.args.seed, process=self.place.process_index,
            processes=self.place.num_processes, first=taken * self.args.accumulate,
        )  # fmt: skip
        self.real = load_batches(self.posed, shuffled, self.args.workers)

    def rounds(self, step: int, share: float, rng: np.random.Generator, draws: torch.Generator):
        """The rounds of a step: where (out or in), batch, weights of its terms."""
        args = self.args
        if args.recipe == "heads":
            yield from self._heads_rounds(step, share, rng, draws)
            return
        weights = self.weights(step)
        order = {"out-in": ("out", "in"), "in-out": ("in", "out")}.get(args.round_order)
        places = ("out", "in") if order is None else (order[step % 2],)
        for place in ("out",) if "alternating" in args.without else places:
            if place == "out" or args.round_order == "in-out":
                batch = self.photos(rng, draws, args.batch)
            if place == "in":
                batch = self.generated.draw(args.batch, rng, draws)
            # L_w where w is the generator's own; the w of synthetic heads is left unused here, as that of photos is.
            yield place, batch, weights if place == "in" else weights | {"w": 0.0}

    def _heads_rounds(self, step: int, share: float, rng: np.random.Generator, draws: torch.Generator):
        args = self.args
        due = step % args.picture_every == 0
        if due and share >= args.pool_from:
            self.generated.grow(max(1, args.picture_batch // 2), rng)
        pictures = args.picture_batch if due and share >= args.pictures_from else 0
        weights = {"w": args.w_weight, "l2": 1.0, "edge": 0.3, "lpips": args.lpips_weight, "id": args.id_weight}
        yield "out", self.photos(rng, draws, pictures), weights
        if len(self.generated):
            yield "in", self.generated.draw(max(1, args.batch // 4), rng, draws), {"w": 0.25 * args.w_weight}

    def weights(self, step: int) -> dict[str, float]:
        scale = self.args.schedule_scale
        if self.args.recipe == "released":
            weights = schedules.released_weights(step, self.encoder.latent_average.numel(), scale)
        else:
            weights = schedules.paper_weights(step, scale)
        return weights | {"sur": 0.0} if "surround" in self.args.without else weights

    def step(self, step: int, share: float, precision: str) -> dict[str, float]:
        """One optimiser step; gives its terms, those of the in-domain round with `_in` behind their names.

        Raises FloatingPointError naming a term that is not a number, before it spoils the weights."""
        args = self.args
        # Drawn from the step's own number: a resumed run draws what one never stopped would have.
        rng = np.random.default_rng((args.seed, self.place.process_index, step))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.optimizer.zero_grad(set_to_none=True)
        shown, encoded = {}, []
        for _ in range(args.accumulate):
            for place, batch, weights in self.rounds(step, share, rng, draws):
                with autocast(self.device, precision):
                    w = self.encoder(batch.images)
                    # The renderer would fail on such a w in words of its own.
                    must_be_numbers(step + 1, {"size of w": w.detach().abs().max().item()})
                    terms = self.objective.terms(w, batch, weights, rng)
                    if args.latent_discriminator:
                        weights = weights | {"adversary": latent_discriminator.WEIGHT}
                        terms["adversary"] = latent_discriminator.encoder_loss(self.discriminator(w.flatten(0, 1)))
                        encoded.append(w.detach().float().flatten(0, 1))
                if terms:
                    (sum(weights[name] * term for name, term in terms.items()) / args.accumulate).backward()
                for name, term in terms.items():
                    name += "_in" * (place == "in")
                    shown[name] = shown.get(name, 0.0) + term.item() / args.accumulate
        workers.average_gradients(self.encoder)
        shown["gradient"] = nn.utils.clip_grad_norm_(self.encoder.parameters(), args.clip).item()
        must_be_numbers(step + 1, shown)
        self.optimizer.step()
        if args.ema:
            self._move_average()
        if args.latent_discriminator:
            shown["discriminator"] = self._discriminator_step(step, torch.cat(encoded), rng, draws)
        return shown

    @torch.no_grad()
    def _move_average(self) -> None:
        for kept, new in zip(self.average.state_dict().values(), self.encoder.state_dict().values()):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - self.args.ema)
            else:
                kept.copy_(new)

    def _discriminator_step(self, step: int, encoded: Tensor, rng: np.random.Generator, draws) -> float:
        """The mapping network's own rows, not truncated, against those that the encoder gave in this step."""
        network = self.discriminator
        real = self.latents(len(encoded), rng)[:, 0]
        loss = latent_discriminator.discriminator_loss(network(real), network(network.mix(encoded, draws)))
        total = loss
        if step % latent_discriminator.R1_EVERY == 0:
            total = total + latent_discriminator.r1_penalty(network, real)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        total.backward()
        workers.average_gradients(network)
        must_be_numbers(step + 1, {"discriminator": total.item()})
        self.discriminator_optimizer.step()
        return loss.item()

    @property
    def result(self) -> PortraitEncoder:
        return self.average if self.args.ema else self.encoder

    @cached_property
    def _sheet_photos(self) -> tuple[Tensor, Tensor]:
        """Images [N,3,S,S] and their cameras [N,25], the same in every piece of a run."""
        if self.heads:
            count, draws = 2 * SHEET_PHOTOS, torch.Generator().manual_seed(0)
            batch = self.heads.draw(count, np.random.default_rng(0), draws, count)
            # The last ones: those in the generator's light come first.
            return batch.images[-SHEET_PHOTOS:], batch.targets[0][1][-SHEET_PHOTOS:]
        photos = [self.posed[i] for i in range(min(SHEET_PHOTOS, len(self.posed)))]
        images, cameras = (torch.stack(column).to(self.device) for column in zip(*photos))
        return images.float() / 127.5 - 1, cameras

    @torch.no_grad()
    def sheet(self) -> list[Tensor]:
        """Rows of a sheet, always of the same photos: input, from its camera, from `SHEET_YAW_DEG` to either side."""
        generator, encoder = self.objective.generator, self.result
        images, cameras = self._sheet_photos
        was_training = encoder.training
        w = encoder.eval()(images)
        encoder.train(was_training)
        planes = generator.planes(w)
        yaw = torch.tensor([-SHEET_YAW_DEG, SHEET_YAW_DEG]).deg2rad()
        sides = cameras_of(generator, yaw, torch.zeros(2))
        views = [cameras, *(side.expand(len(w), -1) for side in sides)]
        rows = [generator.render(planes, camera, w).image.clamp(-1, 1) for camera in views]
        return [resize(images, rows[0].shape[-1]), *rows]
