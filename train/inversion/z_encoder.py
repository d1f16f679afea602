r"""Photos -> z: an encoder to the space before the mapping network, as Pix2NeRF has it (Cai et al. 2022; the paper's
Pixel2NeRF, Tables 1, 2 and 7), for comparison with the encoder to W+.

    photo ── encoder ──> z ── mapping ──> w, the same in all rows ── planes ──> head

    python -m train.z_encoder --weights weights/faces --photos dataset/photos --out runs/z --minutes 25
    python -m train.z_encoder ... --pictures 8 --lite0 lite0.safetensors --body-rate 1e-4 --batch 24    (a GPU)

Pix2NeRF's: an encoder to Z; pictures that the generator makes must give their z back; photos must come back from
their own camera, by pixels and a perceptual network (`--pictures`); z stays where the generator expects it.

Ours: the generator stays as it is and there is no adversary (for a generator that learns along see `train.faces`
without --heads); poses are known, which Pix2NeRF reads off the photo, too; of a picture also outline, relief and
dlib's identity are compared; the encoder starts as the bundled one, whose w goes through the mapping network's linear
inverse. And what stands in for pictures where there is no GPU: photos must give the planes, as far as the synthesis
network has drawn them at 32 px, that the bundled encoder's W+ gives. That is a tenth of a picture's work. A distance
in W+ itself would not do: there the encoder's rows differ so much that the mean of all photos is nearer to a photo
than the best w of the mapping network.

Killed, the same command goes on. Makes OUT/checkpoint.pt, OUT/encoder/ (a PortraitEncoder with one row, z),
OUT/events, OUT/sheets, OUT/report.json (held-out photos)."""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from preim3d.camera import camera_from_angles
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.stylegan2 import SynthesisNetwork, second_moment_norm
from train.loop import checkpoint
from train.loop.draws import on_device
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.precision import autocast
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, follow
from train.model import face_losses
from train.model.face_batches import FaceBatches, PhotoBatch
from train.model.faces import REPORTED, load_front, report_photos
from train.photos.real_photos import RealPhotos


COARSE_PX = 32  # side of the planes that photos are compared by
INVERTED = 20000  # samples of z from which the mapping network's inverse is found
# Of what a step asks for, beside face_losses.LOSS_WEIGHTS.
LOSS_WEIGHTS = {"z": 1.0, "planes": 5.0, "radius": 0.1}
AVERAGE_DECAY = 0.998
CLIP = 5.0


# ----------------------------------------------------------------------------
# The encoder.


def start_encoder(encoder: PortraitEncoder, generator: TriPlaneGenerator) -> PortraitEncoder:
    """An encoder with one row, z [B, 1, z_dim], that knows of heads what the encoder to W+ does: the mean of its rows,
    sent back through the mapping network by the best linear map."""
    config = generator.config
    # From the last of the layers that both have, all is linear, so the inverse can be multiplied into its weights.
    started = PortraitEncoder.from_config(
        dict(encoder.config) | {"num_ws": 1, "w_dim": config.z_dim, "latent_recipe": None}
    )
    inverse, shift = linear_inverse(generator)
    state = encoder.state_dict()
    weight = state["linear.weight"].unflatten(0, (encoder.config.num_ws, -1)).mean(0)  # [w_dim, feature_dim]
    bias = state["linear.bias"].unflatten(0, (encoder.config.num_ws, -1)).mean(0)
    state["linear.weight"], state["linear.bias"] = inverse @ weight, inverse @ bias
    state["latent_average"] = (inverse @ state["latent_average"].mean(0) + shift)[None]
    started.load_state_dict(state)
    return started


@torch.no_grad()
def linear_inverse(generator: TriPlaneGenerator) -> tuple[Tensor, Tensor]:
    """The map [z_dim, w_dim] and the shift [z_dim] from w to z, by least squares over z as they are drawn."""
    z = torch.randn(INVERTED, generator.config.z_dim, generator=torch.Generator().manual_seed(0))
    z = second_moment_norm(z)
    w = generator.mapping(z.to(generator.device), mapping_camera(generator, len(z)))[:, 0].cpu()
    with_one = torch.cat([w, torch.ones(len(w), 1)], 1).double()
    found = torch.linalg.lstsq(with_one, z.double()).solution.float()
    return found[:-1].t().contiguous(), found[-1]


def mapping_camera(generator: TriPlaneGenerator, count: int) -> Tensor:
    """[count, 25]: the pose that w is conditioned on where the generator has such conditions."""
    return generator.frontal_camera().expand(count, -1)


class ZInversion:
    """crop [B, 3, S, S] -> w [B, num_ws, w_dim] by way of z."""

    def __init__(self, encoder: PortraitEncoder, generator: TriPlaneGenerator):
        self.encoder, self.generator, self.config = encoder, generator, encoder.config

    def __call__(self, crops: Tensor) -> Tensor:
        return z_to_ws(self.encoder(crops)[:, 0], self.generator)


def z_to_ws(z: Tensor, generator: TriPlaneGenerator) -> Tensor:
    """[B, z_dim] -> w [B, num_ws, w_dim], all rows the same."""
    return generator.mapping(z, mapping_camera(generator, len(z)))


def coarse_planes(synthesis: SynthesisNetwork, ws: Tensor, most_px: int = COARSE_PX) -> Tensor:
    """The picture [B, 3 C, r, r] that the blocks up to a resolution have added up."""
    x = image = None
    for i, resolution in enumerate(synthesis.resolutions):
        if resolution > most_px:
            break
        rows = ws[:, max(2 * i - 1, 0) : 2 * i + 2].unbind(1)  # as in SynthesisNetwork.forward
        x, image = synthesis.get_submodule(f"b{resolution}")(x, image, rows)
    return image


# ----------------------------------------------------------------------------
# The run.


class ZRun:
    """The networks, the data and what a step does with them."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args, device = args, torch.device(args.device)
        self.generator = load_front(f"{args.weights}/generator").to(device, memory_format=torch.channels_last)
        self.generator.eval().requires_grad_(False)
        self.teacher = PortraitEncoder.from_pretrained(f"{args.weights}/encoder", dtype=torch.float32)
        # Batch norms keep their statistics: photos and generated pictures come in unlike numbers.
        self.encoder = start_encoder(self.teacher, self.generator).to(device).eval()
        self.teacher.to(device).eval().requires_grad_(False)
        head = {"linear.weight", "linear.bias"}
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(name in head or args.body_rate > 0)
        self.kept = copy.deepcopy(self.encoder).requires_grad_(False)
        parameters = dict(self.encoder.named_parameters())
        groups = [{"params": [parameters.pop(name) for name in sorted(head)], "peak": args.rate}]
        if args.body_rate:
            groups.append({"params": list(parameters.values()), "peak": args.body_rate})
        self.optimizer = torch.optim.Adam(groups, args.rate, betas=(0.9, 0.99))
        self.photos = RealPhotos(args.photos)
        self.batches = FaceBatches(self.photos, None, self.generator, self.encoder.config.input_size, device)
        self.identity = FaceIdentity.from_pretrained(
            args.identity or f"{args.weights}/identity", dtype=torch.float32
        ).to(device)
        self.identity.eval().requires_grad_(False)
        self.teachers = {"lite0": EfficientNetLite0.load(args.lite0).to(device)} if args.lite0 else {}

    @property
    def parts(self) -> dict:
        """What a checkpoint holds."""
        return {"encoder": self.encoder, "kept": self.kept, "optimizer": self.optimizer}

    def step(self, number: int, share: float) -> dict[str, Tensor]:
        """One step; its loss terms. Drawn from the step's number alone, so that a run that was killed draws the same
        again."""
        args = self.args
        rng = np.random.default_rng((args.seed, number))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_rate(share, group["peak"])
        photos = self.batches.draw_photos(args.batch, rng, draws)
        z, pictures = self.generated(args.generated, rng, draws)
        inputs = torch.cat([photos.inputs, pictures])
        with autocast(args.device, args.precision):
            features = self.encoder.features(inputs)
            found = self.encoder.of_features(features)[:, 0].float()
            with torch.no_grad():
                # The same body until it learns.
                same = features[: args.batch] if not args.body_rate else self.teacher.features(photos.inputs)
                wanted = self.teacher.of_features(same).float()
        of_photos, of_pictures = found.split([args.batch, args.generated])
        terms = {
            # The mapping network sees z's direction only: its length would drift.
            "radius": (found.square().mean(1) - 1).square().mean(),
            "planes": self.plane_error(of_photos, wanted),
        }
        if args.generated:
            terms["z"] = (second_moment_norm(of_pictures) - second_moment_norm(z)).square().mean()
        if args.pictures:
            terms |= self.picture_terms(photos, of_photos, draws)
        weights = face_losses.LOSS_WEIGHTS | LOSS_WEIGHTS
        loss = sum(weights[name] * term for name, term in terms.items())
        values = {name: term.detach() for name, term in terms.items()}
        values["gradient"] = descend(number, loss, values, [self.optimizer], CLIP)
        follow(self.kept, self.encoder, min(AVERAGE_DECAY, (1 + number) / (10 + number)))
        return values

    @torch.no_grad()
    def generated(self, count: int, rng: np.random.Generator, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """z [B, z_dim] as the generator draws them, and pictures of them [B, 3, S, S] that look like photos: from
        where photos are taken, before rooms, a little misaligned."""
        generator, config = self.generator, self.generator.config
        z = torch.randn(count, config.z_dim, generator=draws).to(self.args.device)
        if not count:
            return z, torch.zeros(0, 3, self.batches.size, self.batches.size, device=self.args.device)
        pose = torch.from_numpy(self.photos.pose[self.batches.draw_rows(count, rng)])
        with autocast(self.args.device, self.args.precision):
            ws = z_to_ws(z, generator)
            view = generator.render(
                generator.planes(ws).float(), self.cameras(pose), ws, ray_resolution=config.ray_resolution // 2
            )
        return z, self.batches.as_photos(view.image, view.opacity, config.background, rng, draws)

    def cameras(self, pose: Tensor) -> Tensor:
        config = self.generator.config
        yaw, pitch = pose.to(self.args.device).unbind(1)
        return camera_from_angles(yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)

    def plane_error(self, z: Tensor, wanted: Tensor) -> Tensor:
        """How far the coarse planes are from those of the teacher's w [B, num_ws, w_dim], as a share of what theirs
        vary by."""
        synthesis = self.generator.backbone.synthesis
        with autocast(self.args.device, self.args.precision):
            with torch.no_grad():
                truth = coarse_planes(synthesis, wanted).float()
            seen = coarse_planes(synthesis, z_to_ws(z, self.generator)).float()
        return (seen - truth).square().mean() / truth.var()

    def picture_terms(self, photos: PhotoBatch, z: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
        """Those of `face_losses`, of the first photos at their own cameras."""
        count = self.args.pictures
        some = PhotoBatch(**{name: column[:count] for name, column in vars(photos).items()})
        with autocast(self.args.device, self.args.precision):
            ws = z_to_ws(z[:count], self.generator)
            planes = self.generator.planes(ws).float()
            view = self.generator.render(
                planes, self.cameras(some.pose), ws, generator=on_device(draws, planes.device),
                ray_resolution=self.generator.config.ray_resolution // 2,
            )  # fmt: skip
            return face_losses.photo_losses(view, some, self.identity, self.teachers, self.generator)[0]

    def report(self) -> tuple[dict[str, float], list[Tensor]]:
        """Figures of held-out photos, and rows of a sheet: see `faces.report_photos`."""
        inversion = ZInversion(self.kept, self.generator)
        return report_photos(self.generator, inversion, self.photos, self.identity)


def train(args: argparse.Namespace) -> None:
    run = ZRun(args)
    training = Training(
        args.out, run.parts, args.device,
        also_save=lambda: checkpoint.save_component(run.kept, args.out / "encoder"),
    )  # fmt: skip
    training.run(run.step, args.batch + args.generated, **budget(args))
    training.save()
    figures, rows = run.report()
    training.finish(figures | {"n": REPORTED}, rows)


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.z_encoder")
    parser.add_argument("--weights", required=True, help="folder with generator/ and encoder/: weights/faces")
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument("--identity", help="dlib's network; default: that of the weights")
    parser.add_argument("--lite0", help="EfficientNet-Lite0's safetensors: with --pictures, a perceptual loss")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8, help="photos a step")
    parser.add_argument("--generated", type=int, default=1, help="generated pictures a step, whose z is known")
    parser.add_argument("--pictures", type=int, default=0, help="of the photos, also compared as pictures")
    parser.add_argument("--rate", type=float, default=5e-3, help="peak learning rate of the last layer")
    parser.add_argument("--body-rate", type=float, default=0.0, help="and of all before it; 0: it stays as it is")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = check_budget(parser, parser.parse_args(words))
    if not 0 <= args.pictures <= args.batch:
        parser.error(f"--pictures are some of the --batch {args.batch} photos; {args.pictures} are not")
    return run_stage("train.z_encoder", train, args)
