r"""Held-out heads -> evaluation.json and contact sheets: how good generator, encoder and directions are.

    python -m train.evaluate --weights weights/heads --data dataset/heldout --source heads_source.npz \
        --reader dataset/attributes/reader --out weights/heads/evaluation.json --sheets sheets

The metrics are those of `train.metrics`; the protocol is written into the file with the figures. Takes minutes on a
CPU."""

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import FOCAL, camera_from_angles
from preim3d.directions import ATTRIBUTES, Directions
from preim3d.encoder import PortraitEncoder
from preim3d.film import pictures
from preim3d.generator import TriPlaneGenerator
from train import augment, losses, metrics
from train.attributes import HeadReader, read_images
from train.batches import draw_photos, render_views, to_float
from train.heads.dataset import BACKGROUND, HeadsDataset
from train.heads.geometry import HeadBuilder
from train.heads.renderer import RenderedHead
from train.heads.sampler import sample_head
from train.heads.source import HeadSource


EDIT_STRENGTH = 2.0
SHEET_HEADS = 8

PROTOCOL = """\
Heads that no network ever saw, seed {seed}. Generator: {n} heads, 3 of each head's frontal views (yaw within 45, \
nominal pitch within 32 degrees) from the head's true features, against the renders; PSNR is the mean over images \
of the PSNR of [0, 1] RGB. Encoder: one photo per head (random light, random background, aligned by its true five \
points, no other augmentation) -> w -> image at the photo's camera, against the render of the same head from there \
in the generator's light (encoder_psnr_db); the same with that render as input (encoder_plain_psnr_db). Identity: \
cosine of the embedding of train.attributes' network, which learned from synthetic heads only and whose body the \
encoder started from, between the photo and views within 10 and at 20-30 degrees of yaw (pitch within 20); `other` \
is the cosine with the views of another person, `match_of_10` how often the view at 20-30 degrees is nearest to \
its own photo among ten. lpips_like: distance of that network's features. AA and AD: {edited} inverted photos, \
frontal view, strength {strength:+.0f}, logits of the same network over their standard deviation on the photos; AD \
is the mean over the other {others} attributes, ad_per_aa = AD / AA."""


class Evaluation:
    """The networks, the held-out heads and their photos."""

    def __init__(self, args: argparse.Namespace):
        weights, device = Path(args.weights), torch.device(args.device)
        self.args, self.rng = args, np.random.default_rng(args.seed)
        self.generator = TriPlaneGenerator.from_pretrained(weights / "generator").float().to(device).eval()
        self.encoder = PortraitEncoder.from_pretrained(weights / "encoder").float().to(device).eval()
        self.directions = Directions.from_pretrained(weights / "directions").float()
        self.reader = HeadReader.from_pretrained(args.reader).float().to(device).eval()
        self.dataset = HeadsDataset(args.data)
        self.heads = self.dataset.ready[: args.heads]
        self.builder = HeadBuilder(HeadSource(args.source))

    @torch.no_grad()
    def generator_figures(self) -> tuple[dict, Image.Image]:
        features = torch.as_tensor(self.dataset.features[self.heads], device=self.generator.device)
        ws = self.generator.mapping(features).cpu()
        psnr, lpips, identity, rows = [], [], [], []
        order = np.stack([self.rng.permutation(4)[:3] for _ in self.heads])
        for view in tqdm(range(3), desc="generator"):
            truth = augment.plain(to_float(self.dataset.images[self.heads, order[:, view]]), BACKGROUND)
            camera = torch.from_numpy(np.array(self.dataset.cameras[self.heads, order[:, view]]))
            images = render_views(self.generator, ws, camera)
            psnr.append(metrics.psnr_db(images, truth))
            lpips.append(batched_lpips(self.reader, images, truth))
            identity.append(
                metrics.identity_cosine(
                    read_images(self.reader, images).embedding, read_images(self.reader, truth).embedding
                )
            )
            rows += [truth[:SHEET_HEADS], images[:SHEET_HEADS]]
        figures = {
            "generator_psnr_db": mean(psnr, 2),
            "generator_lpips_like": mean(lpips, 4),
            "generator_identity_cosine": mean(identity, 4),
        }
        return figures, sheet(rows)

    @torch.no_grad()
    def read_photos(self) -> None:
        """One photo of each head, its latent, and the truth from its camera in the generator's light."""
        size, draws = self.encoder.config.input_size, torch.Generator().manual_seed(self.args.seed)
        photos, plains, truths, cameras = [], [], [], []
        for part in tqdm(np.array_split(self.heads, -(-len(self.heads) // 16)), desc="photos"):
            rgba, theta, camera = draw_photos(self.dataset, part, self.rng, error_px=0.0)
            colour, opacity = augment.warp(rgba, theta, size)
            background = augment.random_backgrounds(len(part), (size, size), draws, rgba.device)
            photos.append((colour + (1 - opacity) * background) * 2 - 1)
            people = [RenderedHead(sample_head(self.dataset.z[head]), self.builder) for head in part]
            # The same picture in the generator's light, so that both inputs differ in light and background only.
            wide = self.render_all(people, camera, rgba.shape[-1])
            colour, opacity = augment.warp(wide, theta, size)
            plains.append((colour + (1 - opacity) * BACKGROUND) * 2 - 1)
            # The photo's camera sees more than the generator's; it stands in the same place.
            camera[:, 16] = camera[:, 20] = FOCAL
            cameras.append(camera)
            truth = self.render_all(people, camera, self.generator.config.image_resolution)
            truths.append(augment.plain(truth, BACKGROUND))
        self.photos, self.plains, self.truths = torch.cat(photos), torch.cat(plains), torch.cat(truths)
        self.cameras = torch.cat(cameras)
        self.ws, self.plain_ws = (
            torch.cat([self.encoder(part.to(self.encoder.device)).cpu() for part in inputs.split(16)])
            for inputs in (self.photos, self.plains)
        )
        self.reading = read_images(self.reader, self.photos)

    def render_all(self, people: list[RenderedHead], cameras: Tensor, size: int) -> Tensor:
        """RGBA [B,4,size,size] in [0, 1] of each person from its camera, in the generator's light."""
        return to_float(np.stack([person.view(camera.numpy(), size)[0] for person, camera in zip(people, cameras)]))

    def encoder_figures(self) -> tuple[dict, Image.Image]:
        figures = {}
        views = {}
        for name, ws in (("", self.ws), ("plain_", self.plain_ws)):
            images = views[name] = render_views(self.generator, ws, self.cameras)
            figures[f"encoder_{name}psnr_db"] = mean([metrics.psnr_db(images, self.truths)], 2)
            figures[f"encoder_{name}lpips_like"] = mean([batched_lpips(self.reader, images, self.truths)], 4)
        embedded = self.reading.embedding
        figures["identity"] = {}
        sides = {}
        for name, low, high in (("yaw_0_10", 0, 10), ("yaw_20_30", 20, 30)):
            cameras = self.cameras_between(low, high)
            sides[name] = render_views(self.generator, self.ws, cameras)
            seen = read_images(self.reader, sides[name]).embedding
            figures["identity"][name] = mean([metrics.identity_cosine(embedded, seen)], 4)
            if low:
                figures["identity"]["other"] = mean([metrics.identity_cosine(embedded, seen.roll(1, 0))], 4)
                figures["identity"]["match_of_10"] = round(match_rate(embedded, seen, 10), 3)
        few = slice(0, SHEET_HEADS)
        rows = [self.photos, self.truths, views[""], sides["yaw_20_30"], self.plains, views["plain_"]]
        return figures, sheet([row[few] for row in rows])

    def cameras_between(self, low_deg: float, high_deg: float) -> Tensor:
        count = len(self.heads)
        yaw = self.rng.uniform(low_deg, high_deg, count) * self.rng.choice((-1, 1), count)
        pitch = self.rng.uniform(-20, 20, count)
        return camera_from_angles(torch.tensor(np.radians(yaw)).float(), torch.tensor(np.radians(pitch)).float())

    def edit_figures(self) -> tuple[dict, Image.Image]:
        sigma = self.reading.logits.std(0)
        ws = self.ws[: self.args.edited]
        front = self.generator.frontal_camera()
        plain = render_views(self.generator, ws, front)
        before = read_images(self.reader, plain).logits
        names = list(self.reader.config.attribute_names)
        aa, ad, rows = {}, {}, [plain[:SHEET_HEADS]]
        for key in tqdm(self.directions.names, desc="edits"):
            column, sign = names.index(ATTRIBUTES[key].celeba), ATTRIBUTES[key].sign
            images = render_views(self.generator, ws + self.directions.offset({key: EDIT_STRENGTH}), front)
            after = read_images(self.reader, images).logits
            aa[key] = round(sign * metrics.attribute_altering(before, after, sigma, column), 3)
            ad[key] = round(metrics.attribute_dependency(before, after, sigma, column), 3)
            rows.append(images[:SHEET_HEADS])
        figures = {
            "aa": aa,
            "ad": ad,
            "ad_per_aa": {key: round(ad[key] / max(aa[key], 0.1), 3) for key in aa},
            "edit_strength": EDIT_STRENGTH,
            "mean_aa": round(float(np.mean(list(aa.values()))), 3),
            "mean_ad": round(float(np.mean(list(ad.values()))), 3),
        }
        return figures, sheet(rows)


def batched_lpips(reader: HeadReader, images: Tensor, truth: Tensor) -> Tensor:
    with torch.no_grad():
        parts = [
            losses.perceptual_loss(reader, a.to(reader.device), b.to(reader.device))
            for a, b in zip(images.split(16), truth.split(16))
        ]
    return torch.stack(parts).cpu()


def match_rate(photos: Tensor, views: Tensor, among: int) -> float:
    """How often a view's embedding [N,E] is nearest to its own photo's among `among` consecutive people."""
    photos, views = (torch.nn.functional.normalize(x - x.mean(0), dim=1) for x in (photos, views))
    hits = []
    for start in range(0, len(photos) - among + 1, among):
        span = slice(start, start + among)
        hits.append((views[span] @ photos[span].T).argmax(1) == torch.arange(among))
    return torch.cat(hits).float().mean().item() if hits else math.nan


def mean(values: list[Tensor], digits: int) -> float:
    return round(torch.cat([v.flatten() for v in values]).mean().item(), digits)


def sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of images [B,3,H,W] in [-1, 1], one below the other."""
    rows = [np.concatenate([np.asarray(p) for p in pictures(row)], 1) for row in rows]
    return Image.fromarray(np.concatenate(rows))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="pipeline folder")
    parser.add_argument(
        "--data", required=True, help="folder of `python -m train.heads render` with a seed of its own"
    )
    parser.add_argument(
        "--source", required=True, help="the .npz of `python -m train.heads build`, to render the truth anywhere"
    )
    parser.add_argument("--reader", required=True, help="folder made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument("--out", required=True, help="the .json to write")
    parser.add_argument("--sheets", help="folder for the contact sheets")
    parser.add_argument("--heads", type=int, default=200)
    parser.add_argument("--edited", type=int, default=24, help="heads that every direction edits")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    evaluation = Evaluation(args)
    figures, generator_sheet = evaluation.generator_figures()
    evaluation.read_photos()
    encoder_figures, encoder_sheet = evaluation.encoder_figures()
    edit_figures, edit_sheet = evaluation.edit_figures()
    n, edited = len(evaluation.heads), min(args.edited, len(evaluation.heads))
    others = len(evaluation.reader.config.attribute_names) - 1
    figures |= (
        encoder_figures
        | edit_figures
        | {
            "n": n,
            "seed": args.seed,
            "protocol": PROTOCOL.format(seed=args.seed, n=n, edited=edited, strength=EDIT_STRENGTH, others=others),
            "hardware": f"{platform.machine()}, {args.device}, {args.threads} threads, torch {torch.__version__}",
            "seconds": round(time.monotonic() - started),
        }
    )
    partial = Path(args.out).with_suffix(".part")
    partial.write_text(json.dumps(figures, indent=2) + "\n")
    os.replace(partial, args.out)
    if args.sheets:
        Path(args.sheets).mkdir(parents=True, exist_ok=True)
        for name, picture in (("generator", generator_sheet), ("encoder", encoder_sheet), ("edits", edit_sheet)):
            picture.save(Path(args.sheets) / f"{name}.png")
    print(json.dumps({k: v for k, v in figures.items() if k not in ("protocol",)}, indent=2))


if __name__ == "__main__":
    main()
