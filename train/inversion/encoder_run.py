"""The networks, the data and the rounds of one encoder training: what a step of `train.encoder` does."""

import argparse
import copy
from collections.abc import Iterator
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from preim3d.efficientnet import EfficientNetLite0, perceptual_distance
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.irse import IdentityNetwork
from train.inversion import latent_discriminator, schedules
from train.inversion.features import load_features
from train.inversion.identity import encoder_from_identity, load_identity
from train.inversion.latent_discriminator import LatentDiscriminator
from train.inversion.lpips import load_lpips
from train.inversion.ranger import Ranger
from train.inversion.rounds import Batch, GeneratedImages, Objective, cameras_of, resize, sample_latents
from train.loop import workers
from train.loop.precision import autocast
from train.loop.progress import must_be_numbers
from train.loop.training import follow
from train.photos.posed_photos import PosedPhotos, Shuffled, load_batches


SHEET_PHOTOS, SHEET_YAW_DEG = 5, 25.0


class EncoderRun:
    """The networks, the data and the rounds of one run, in one of its processes."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.place = args, workers.join(args.device)
        # "cpu:0", as accelerate has it, cannot be read back from a checkpoint.
        device = self.device = torch.device("cpu") if args.device == "cpu" else self.place.device
        torch.manual_seed(args.seed)
        generator = TriPlaneGenerator.from_pretrained(args.generator).to(device).eval().requires_grad_(False)
        self.encoder = self._new_encoder(generator).to(device)
        size = self.encoder.config.input_size

        # The photos, and w of generated images.
        self.posed = PosedPhotos(args.data, size, args.mirror)
        self.latents = partial(sample_latents, generator)
        self.generated = GeneratedImages(generator, partial(self.latents, truncation=args.truncation), size)
        self.real: Iterator | None = None

        self.objective = self._new_objective(generator)
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

    def _new_encoder(self, generator: TriPlaneGenerator) -> PortraitEncoder:
        """From `--start`; from the published IR-SE-50's body, as in pSp and the paper; or from nothing."""
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
        identity = load_identity(args.identity) if args.identity else None
        if isinstance(identity, IdentityNetwork):
            encoder = encoder_from_identity(generator, identity, args.size)
        else:
            config = generator.config
            encoder = PortraitEncoder(input_size=args.size, num_ws=generator.num_ws, w_dim=config.w_dim)
        encoder.latent_average.copy_(generator.latent_average().cpu().expand_as(encoder.latent_average))
        return encoder

    def _new_objective(self, generator: TriPlaneGenerator) -> Objective:
        args, device = self.args, self.device
        if args.lpips:
            perceptual = load_lpips(args.lpips, args.lpips_linear).to(device)
        else:
            network = EfficientNetLite0.load(args.lite0).to(device)

            def perceptual(images: Tensor, truth: Tensor) -> Tensor:
                return perceptual_distance(network, images, truth, torch.ones_like(truth[:, :1]))

        identity = load_features(args.similarity) if args.similarity else load_identity(args.identity)
        identity = identity.to(device).eval().requires_grad_(False)
        return Objective(generator, perceptual, identity, surround=args.surround)

    def photos(self) -> Batch:
        """An out-domain batch."""
        images, cameras = (tensor.to(self.device) for tensor in next(self.real))
        return Batch(images, None, [(images, cameras)])

    def start_reading(self, step: int) -> None:
        """Posed photos from where a run of `step` steps stopped."""
        order = self.args.round_order
        # Of the paper's order every other step takes photos; the released code's takes them always and drops half.
        taken = (step + 1) // 2 if order == "out-in" and "alternating" not in self.args.without else step
        shuffled = Shuffled(
            len(self.posed), self.args.batch, self.args.seed, process=self.place.process_index,
            processes=self.place.num_processes, first=taken * self.args.accumulate,
        )  # fmt: skip
        self.real = load_batches(self.posed, shuffled, self.args.workers)

    def rounds(self, step: int, rng: np.random.Generator):
        """The rounds of a step: where (out or in), batch, weights of its terms."""
        args = self.args
        weights = self.weights(step)
        order = {"out-in": ("out", "in"), "in-out": ("in", "out")}[args.round_order]
        for place in ("out",) if "alternating" in args.without else (order[step % 2],):
            if place == "out" or args.round_order == "in-out":
                batch = self.photos()
            if place == "in":
                batch = self.generated.draw(args.batch, rng)
            # L_w where w is known, which is the generator's own.
            yield place, batch, weights if place == "in" else weights | {"w": 0.0}

    def weights(self, step: int) -> dict[str, float]:
        scale = self.args.schedule_scale
        if self.args.variant == "released":
            weights = schedules.released_weights(step, self.encoder.latent_average.numel(), scale)
        else:
            weights = schedules.paper_weights(step, scale)
        return weights | {"sur": 0.0} if "surround" in self.args.without else weights

    def step(self, step: int, precision: str) -> dict[str, Tensor]:
        """One optimiser step; gives its terms, those of the in-domain round with `_in` behind their names.

        Raises FloatingPointError naming a term that is not a number, before it spoils the weights; on a GPU
        `Progress.check` does so before they are saved."""
        args = self.args
        # Drawn from the step's own number: a resumed run draws what one never stopped would have.
        rng = np.random.default_rng((args.seed, self.place.process_index, step))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.optimizer.zero_grad(set_to_none=True)
        shown, encoded = {}, []
        for _ in range(args.accumulate):
            for place, batch, weights in self.rounds(step, rng):
                with autocast(self.device, precision):
                    w = self.encoder(batch.images)
                    # The renderer would fail on such a w in words of its own.
                    must_be_numbers(step + 1, {"size of w": w.detach().abs().max()})
                    terms = self.objective.terms(w, batch, weights, rng)
                    if args.latent_discriminator:
                        weights = weights | {"adversary": latent_discriminator.WEIGHT}
                        terms["adversary"] = latent_discriminator.encoder_loss(self.discriminator(w.flatten(0, 1)))
                        encoded.append(w.detach().float().flatten(0, 1))
                if terms:
                    (sum(weights[name] * term for name, term in terms.items()) / args.accumulate).backward()
                for name, term in terms.items():
                    name += "_in" * (place == "in")
                    shown[name] = shown.get(name, 0.0) + term.detach() / args.accumulate
        workers.average_gradients(self.encoder)
        shown["gradient"] = nn.utils.clip_grad_norm_(self.encoder.parameters(), args.clip)
        must_be_numbers(step + 1, shown)
        self.optimizer.step()
        if args.ema:
            follow(self.average, self.encoder, args.ema)
        if args.latent_discriminator:
            shown["discriminator"] = self._discriminator_step(step, torch.cat(encoded), rng, draws)
        return shown

    def _discriminator_step(self, step: int, encoded: Tensor, rng: np.random.Generator, draws) -> Tensor:
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
        must_be_numbers(step + 1, {"discriminator": total.detach()})
        self.discriminator_optimizer.step()
        return loss.detach()

    @property
    def result(self) -> PortraitEncoder:
        return self.average if self.args.ema else self.encoder

    @cached_property
    def _sheet_photos(self) -> tuple[Tensor, Tensor]:
        """Images [N, 3, S, S] and their cameras [N, 25], the same in every piece of a run."""
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
