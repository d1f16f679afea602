r"""Encoder, feedback, generator and photos -> `preim3d.detail`: the network that tunes a head's planes in one pass.

    python -m train.detail --weights weights/faces --photos dataset/photos --lite0 lite0.safetensors \
        --out runs/detail --minutes 75

Everything else stays as it is. A head is made of a photo by encoder and feedback; the network sees photo and picture,
and what it adds to the front plane is judged by what `train.faces` asks of a reconstruction, from the photo's camera
and from another one. No gradient goes back through the generator's convolutions, so that this is the one stage that
gets far on a CPU: five seconds of two cores for a step of four photos. Making the heads would be half of that:
they are kept for a while, and of each step's heads one is new.

Makes OUT/checkpoint.pt (resumable), OUT/detail (the component) and OUT/report.json (held-out photos: encoder and
feedback, and with detail)."""

import argparse
import copy
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preim3d.detail import DetailNetwork, compared, deviation, draw_detail
from preim3d.directions import fingerprint
from preim3d.efficientnet import perceptual_distance
from preim3d.feedback import Feedback, Photos, bring_nearer
from preim3d.generator import Planes, StitchedPlanes
from preim3d.inversion import MIRRORED_FROM_RAD, near_half
from preim3d.pipeline import load_component
from preim3d.tuning import add_to_front, tuned
from train.loop import checkpoint
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, follow, set_rate
from train.model.face_batches import PhotoBatch, PhotoBatches, side_cameras
from train.model.face_losses import LOSS_WEIGHTS, identity_aside, mean_over, photo_losses
from train.model.feedback_pairs import Networks
from train.model.held_photos import HeldPhotos, shown
from train.model.muon import Muon
from train.photos.real_photos import RealPhotos


# Likeness is bought with spots and lines where nothing else speaks for the face's own looks; and what differs from
# texel to texel looks like paint from any other side.
WEIGHTS = LOSS_WEIGHTS | {"lite0": 3.0, "identity_aside": 1.0, "far_half": 1.5, "nearness": 0.3, "roughness": 5.0}
FAR_LITE0 = 2.0  # of EfficientNet-Lite0's distance beside that of pixels, where a face's far half is compared
WARM_UP = 20  # steps
CLIP = 5.0
AVERAGE_DECAY = 0.98
RAYS_SPREAD = 0.85, 1.2
FINE_FROM = 0.55  # share of the budget
CAMERA_OFF_RAD = 0.03  # what the camera of a look-up is off by, as those that a landmark network finds are


class Made(NamedTuple):
    """A head made of one photo."""

    batch: PhotoBatch  # of one
    w: Tensor  # [1, num_ws, w_dim]
    planes: Planes  # in half precision


class Shelf:
    """The heads made last. Which photo the step `number` brings depends on the number alone, so that a resumed run
    finds the same."""

    def __init__(self, networks: Networks, feedback: Feedback | None, photos: RealPhotos, args: argparse.Namespace):
        self.networks, self.feedback, self.args = networks, feedback, args
        self.batches = PhotoBatches(photos, networks.encoder.config.input_size, args.device, keep=True)
        self.kept: OrderedDict[int, Made] = OrderedDict()

    def heads(self, number: int, rng: np.random.Generator) -> list[Made]:
        """Those of a step: its own, and others of the steps before."""
        before = min(number, self.args.kept - 1)
        others = rng.choice(before, min(self.args.batch - 1, before), replace=False) + 1
        made = [self.head(number - int(back)) for back in (0, *others)]
        for old in [old for old in self.kept if old <= number - self.args.kept]:
            del self.kept[old]
        return made

    @torch.no_grad()
    def head(self, number: int) -> Made:
        if number not in self.kept:
            rng = np.random.default_rng((self.args.seed, 0, number))
            draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
            batch = self.batches.draw_photos(1, rng, draws, plain=True)
            w = self.networks.encoder(batch.inputs)
            w, planes = begun(self.networks, self.feedback, shown(batch, self.networks), w)
            self.kept[number] = Made(batch, w, in_floats(planes, torch.float16))
        return self.kept[number]


def begun(networks: Networks, feedback: Feedback | None, photos: Photos, w: Tensor) -> tuple[Tensor, Planes]:
    """The w and the planes that detail is added to: the encoder's w, brought nearer where there is feedback."""
    if feedback is not None:
        w = bring_nearer(w, photos, networks.generator, networks.identity, feedback)
    return w, networks.generator.planes(w)


def in_floats(planes: Planes, kind: torch.dtype) -> Planes:
    if isinstance(planes, StitchedPlanes):
        return StitchedPlanes(*(part.to(kind) if part.is_floating_point() else part for part in planes))
    return planes.to(kind)


def together(heads: list[Made]) -> tuple[PhotoBatch, Tensor, Planes]:
    batch = PhotoBatch(**{
        name: torch.cat([getattr(made.batch, name) for made in heads]) for name in vars(heads[0].batch)
    })  # fmt: skip
    parts = [made.planes for made in heads]
    planes = StitchedPlanes(*map(torch.cat, zip(*parts))) if isinstance(parts[0], StitchedPlanes) else torch.cat(parts)
    return batch, torch.cat([made.w for made in heads]), in_floats(planes, torch.float32)


class Descent:
    """Detail that learns on photos."""

    def __init__(self, network: DetailNetwork, networks: Networks, shelf: Shelf, args: argparse.Namespace):
        self.args, self.networks, self.shelf, self.network = args, networks, shelf, network
        self.kept = copy.deepcopy(network)
        matrices, others = matrices_of(network)
        self.optimizers = [Muon(matrices, args.rate), torch.optim.Adam(others, args.rate, betas=(0.9, 0.97))]

    @property
    def parts(self) -> dict:
        """What a checkpoint holds."""
        muon, adam = self.optimizers
        return {"network": self.network, "kept": self.kept, "muon": muon, "adam": adam}

    def step(self, number: int, share: float) -> dict[str, Tensor]:
        """One step; its loss terms. Drawn from the step's number alone."""
        rng = np.random.default_rng((self.args.seed, 1, number))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for optimizer in self.optimizers:
            set_rate(optimizer, cosine_rate(share, self.args.rate) * min(1, (number + 1) / WARM_UP))
        terms = self.terms(*together(self.shelf.heads(number, rng)), draws, self.rays(share, rng))
        loss = sum(WEIGHTS[name] * term for name, term in terms.items())
        values = {name: term.detach() for name, term in terms.items()}
        descend(number, loss, values, self.optimizers, CLIP)
        follow(self.kept, self.network, min(AVERAGE_DECAY, (1 + number) / (10 + number)))
        return values

    def rays(self, share: float, rng: np.random.Generator) -> int:
        """Along a side of the photo's view. A few more or less each time: always at the same places of the planes,
        they would draw a lattice into the skin. In the end as many as people are shown."""
        if share >= FINE_FROM:
            return self.networks.generator.config.ray_resolution
        return round(self.args.rays * rng.uniform(*RAYS_SPREAD))

    def terms(
        self, batch: PhotoBatch, w: Tensor, planes: Planes, draws: torch.Generator, rays: int
    ) -> dict[str, Tensor]:
        """Those of WEIGHTS that planes have something for."""
        networks, generator = self.networks, self.networks.generator
        photos = shown(batch, networks)
        off = CAMERA_OFF_RAD * torch.randn(batch.pose.shape, generator=draws).to(batch.pose)
        looked = photos._replace(cameras=networks.cameras(batch.pose + off))
        offset = self.network(*compared(w, planes, looked, generator, networks.identity))
        planes = generator.survey(add_to_front(planes, deviation(planes) * offset))
        view = generator.render(planes, photos.cameras, w, ray_resolution=rays)
        terms, wanted = photo_losses(view, batch, networks.identity, {"lite0": networks.lite0}, generator)
        sides = side_cameras(batch, draws, generator.config)
        aside = generator.render(planes, sides, w, ray_resolution=self.args.rays)
        turned = batch.pose[:, 0].abs() > MIRRORED_FROM_RAD
        if turned.any():
            terms["far_half"] = self.far_half(turned, batch, w, planes)
        return terms | {
            "identity_aside": identity_aside(aside.image, wanted, networks.identity),
            "nearness": offset.square().mean(),
            "roughness": sum(offset.diff(dim=axis).square().mean() for axis in (2, 3)),
        }

    def far_half(self, turned: Tensor, batch: PhotoBatch, w: Tensor, planes: Planes) -> Tensor:
        """Of faces that look aside: how far the half that the photo hardly shows is from the other half's reflection,
        as in `inversion.mirrored`; the share of the batch that they are."""
        networks, generator = self.networks, self.networks.generator
        cameras = networks.cameras(batch.pose[turned] * batch.pose.new_tensor([-1, 1]))
        few = StitchedPlanes(*(x[turned] for x in planes)) if isinstance(planes, StitchedPlanes) else planes[turned]
        view = generator.render(few, cameras, w[turned], ray_resolution=self.args.rays)
        truth, person = (x[turned].flip(-1) for x in (batch.targets, batch.person))
        weight = person * F.interpolate(near_half(view, cameras), person.shape[2:], mode="bilinear")
        image = F.interpolate(view.image, truth.shape[2:], mode="area")
        shown = weight * image + (1 - weight) * truth
        alike = perceptual_distance(networks.lite0, shown, truth, weight)
        return (mean_over((image - truth).abs(), weight) + FAR_LITE0 * alike) * turned.float().mean()


def matrices_of(network: DetailNetwork) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that Muon moves, and the others: what is added to planes has its own size, which Adam keeps."""
    last = set(network.last.parameters())
    matrices = [p for p in network.parameters() if p.ndim > 1 and p not in last]
    return matrices, [p for p in network.parameters() if p.ndim == 1 or p in last]


def train(args: argparse.Namespace) -> None:
    networks, photos = Networks(args), RealPhotos(args.photos)
    args.out.mkdir(parents=True, exist_ok=True)
    generator, folder = networks.generator, Path(args.weights, "feedback")
    feedback = load_component(Feedback, folder, torch.float32).to(generator.device) if folder.is_dir() else None
    torch.manual_seed(args.seed)
    network = DetailNetwork(
        plane_channels=generator.config.plane_channels,
        embedding_size=networks.identity.config.embedding_size,
        fingerprint=fingerprint(networks.encoder, generator),
    ).to(generator.device)
    run = Descent(network, networks, Shelf(networks, feedback, photos, args), args)
    held = HeldPhotos(networks, photos, args.held)

    def without(photos: Photos, w: Tensor) -> tuple[Tensor, Planes]:
        return begun(networks, feedback, photos, w)

    def with_detail(photos: Photos, w: Tensor) -> tuple[Tensor, Planes]:
        w, planes = begun(networks, feedback, photos, w)
        tuning = draw_detail(w, planes, photos, generator, networks.identity, run.kept)
        return w, generator.survey(tuned(planes, tuning))

    def save() -> None:
        checkpoint.save_component(run.kept, args.out / "detail")

    training = Training(args.out, run.parts, args.device, also_save=save)
    training.run(
        run.step, args.batch, **budget(args), sheets=args.sheets,
        look=lambda: [held.first_ones, held.look(with_detail)[1]],
    )  # fmt: skip
    training.save()
    looks = {"feedback": held.look(without), "detail": held.look(with_detail)}
    figures = {name: found for name, (found, _) in looks.items()} | {"n": len(held.w)}
    training.finish(figures, [held.first_ones, *(pictures for _, pictures in looks.values())])


def main(words: list[str] | None = None) -> int:
    asked = parser()
    return run_stage("train.detail", train, check_budget(asked, asked.parse_args(words)))


def parser() -> argparse.ArgumentParser:
    parser = training_parser(__doc__, "train.detail")
    parser.add_argument(
        "--weights", required=True, help="folder with generator/, encoder/, identity/ and, if any, feedback/"
    )
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument("--identity", help="dlib's network; default: that of the weights")
    parser.add_argument("--lite0", required=True, help="EfficientNet-Lite0's safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4, help="heads of a step")
    parser.add_argument("--kept", type=int, default=400, help="heads in memory, of which a step draws; 14 MB each")
    parser.add_argument("--rays", type=int, default=64, help="along a side of the pictures that are judged at first")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--held", type=int, default=40, help="held-out photos of the report")
    parser.add_argument("--sheets", type=int, default=4, help="pictures of held-out photos over the run")
    return parser
