"""The networks and the photos of one seed, and every figure of theirs: what `train.evaluate` puts into tables."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from preim3d.camera import angles_from_camera, camera_from_angles
from preim3d.directions import ATTRIBUTES, Directions
from preim3d.encoder import PortraitEncoder
from preim3d.film import pictures
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import load_component
from train import augment, losses, metrics
from train.attributes import HeadReader, Reading, read_images
from train.batches import render_views, to_float
from train.heads.dataset import BACKGROUND, HeadsDataset
from train.heads.geometry import HeadBuilder
from train.heads.source import HeadSource
from train.identity import load_identity
from train.optimise import optimise_latents
from train.subjects import head_subjects, photo_subjects


EDIT_STRENGTH = 2.0
EQUAL_ALTERING = 1.5  # AA at which directions of two spaces are compared; about the paper's (Table 5)
EQUAL_STRENGTHS = (1.0, 2.0, 3.0, 4.0, 5.0)  # tried for it
EQUAL_EDITS = ("age", "smile", "eyeglasses")  # of Tables 3 and 5
SHEET_HEADS = 8
BANDS_DEG = ((0, 10), (10, 20), (20, 30))  # of yaw, either side: together ID, apart Table 4
FAR_DEG = {"sm": ((15, 20), (10, 15)), "mid": ((25, 30), (15, 20)), "la": ((35, 40), (20, 25))}  # yaw, pitch: Table 7
TIMED = 10  # runs of which the median is taken


class Evaluation:
    """The networks and the photos of one seed."""

    def __init__(self, args: argparse.Namespace, seed: int):
        weights, device = Path(args.weights), torch.device(args.device)
        self.args, self.rng, self.device = args, np.random.default_rng(seed), device

        def component(network_class: type, folder: Path) -> nn.Module:
            return load_component(network_class, folder, torch.float32).to(device)

        self.generator = component(TriPlaneGenerator, weights / "generator")
        self.encoder = component(PortraitEncoder, weights / "encoder")
        self.directions = component(Directions, weights / "directions").cpu()
        self.origin = component(Directions, Path(args.origin)).cpu() if args.origin else None
        self.compared = {name: component(PortraitEncoder, folder) for name, folder in args.compare}
        self.reader = component(HeadReader, Path(args.reader))
        self.identity = load_identity(args.identity).to(device) if args.identity else None
        self.fid_network = torch.jit.load(args.fid_network, device) if args.fid_network else None

        size, image_size = self.encoder.config.input_size, self.generator.config.image_resolution
        self.dataset = None
        if (Path(args.data) / "heads.npz").is_file():
            if not args.source:
                raise ValueError("Rendered heads need --source, to render the truth from any side.")
            self.dataset = HeadsDataset(args.data)
            self.heads = self.dataset.ready[: args.heads]
            builder = HeadBuilder(HeadSource(args.source))
            self.subjects = head_subjects(self.dataset, self.heads, builder, seed, size, image_size)
        else:
            self.subjects = photo_subjects(args.data, args.heads, size, image_size)
        self.ws = self.invert(self.encoder, self.subjects.photos)
        self.reading = read_images(self.reader, self.subjects.photos)
        self.photo_embedding = self.embed(self.subjects.photos)
        self.sheets: dict[str, Image.Image] = {}

    @torch.no_grad()
    def invert(self, encoder: PortraitEncoder, photos: Tensor) -> Tensor:
        return torch.cat([encoder(part.to(self.device)).cpu() for part in photos.split(16)])

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Identity embeddings [N,E] of images [N,3,H,W]."""
        if self.identity is None:
            return read_images(self.reader, images).embedding
        return torch.cat([self.identity(part.to(self.device)).cpu() for part in images.split(32)])

    @torch.no_grad()
    def fid_features(self, images: Tensor) -> Tensor:
        """[N,D] of images [N,3,H,W]."""
        if self.fid_network is None:
            return read_images(self.reader, images).embedding
        pixels = images.clamp(-1, 1).add(1).mul(127.5).round().byte()
        return torch.cat([
            self.fid_network(part.to(self.device), return_features=True).float().cpu() for part in pixels.split(32)
        ])  # fmt: skip

    def cameras_between(self, count: int, yaw_deg: tuple[int, int], pitch_deg: tuple[int, int]) -> Tensor:
        """Cameras [count,25] on either side, |yaw| and nominal |pitch| uniform in these ranges."""
        yaw = self.rng.uniform(*yaw_deg, count) * self.rng.choice((-1, 1), count)
        pitch = self.rng.uniform(*pitch_deg, count) * self.rng.choice((-1, 1), count)
        config = self.generator.config
        yaw, pitch = (torch.from_numpy(np.radians(angle)).float() for angle in (yaw, pitch))
        return camera_from_angles(yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)

    @torch.no_grad()
    def views(self, ws: Tensor, cameras: Tensor, of_images: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """What `of_images` gives for the views of latents [N,...] from cameras [N,V,25]: columns [N,V,...]. The planes
        of a head are made once."""
        rows = []
        for w, camera in zip(tqdm(ws.to(self.device), desc="views"), cameras.to(self.device)):
            images = self.generator.render(self.generator.planes(w[None]), camera, w[None]).image.clamp(-1, 1)
            rows.append(of_images(images.cpu()))
        return [torch.stack(column) for column in zip(*rows)]

    # ----------------------------------------------------------------------------
    # The generator and the reconstruction.

    @torch.no_grad()
    def generator_figures(self) -> dict:
        """From the true codes of rendered heads; nothing where there are only photos."""
        if self.dataset is None:
            return {}
        features = torch.as_tensor(self.dataset.features[self.heads], device=self.device)
        ws = self.generator.mapping(features).cpu()
        order = torch.from_numpy(np.stack([self.rng.permutation(4)[:3] for _ in self.heads]))  # [N,3]
        picked = self.heads[:, None], order.numpy()
        truths = to_float(self.dataset.images[picked].reshape(-1, *self.dataset.images.shape[2:]))
        truths = augment.plain(truths, BACKGROUND).unflatten(0, order.shape)  # [N,3,3,H,W]
        cameras = torch.from_numpy(np.array(self.dataset.cameras[picked]))
        size = truths.shape[-1]
        (images,) = self.views(ws, cameras, lambda images: (resized(images, size),))
        seen, true = images.flatten(0, 1), truths.flatten(0, 1)
        psnr, lpips = metrics.psnr_db(seen, true), self.lpips(seen, true)
        identity = metrics.identity_cosine(self.embed(seen), self.embed(true))
        rows = [row[:SHEET_HEADS, view] for view in range(3) for row in (truths, images)]
        self.sheets["generator"] = sheet(rows)
        return {
            "generator_psnr_db": psnr.mean().item(),
            "generator_lpips_like": lpips.mean().item(),
            "generator_identity_cosine": identity.mean().item(),
        }

    def lpips(self, images: Tensor, truth: Tensor) -> Tensor:
        """Distance [N] in the reader's features."""
        with torch.no_grad():
            return torch.stack([
                losses.perceptual_loss(self.reader, a[None].to(self.device), b[None].to(self.device)).cpu()
                for a, b in zip(images, truth)
            ])  # fmt: skip

    def reconstruction_figures(self) -> dict:
        """Reconstruction error at the input camera, and FID there."""
        subjects, figures = self.subjects, {}
        inputs = [("", self.ws)]
        if subjects.plains is not None:
            inputs.append(("plain_", self.invert(self.encoder, subjects.plains)))
        rows = [subjects.photos[:SHEET_HEADS], subjects.truths[:SHEET_HEADS]]
        for name, ws in inputs:
            images = render_views(self.generator, ws, subjects.cameras)
            figures[f"encoder_{name}psnr_db"] = metrics.psnr_db(images, subjects.truths).mean().item()
            figures[f"encoder_{name}lpips_like"] = self.lpips(images, subjects.truths).mean().item()
            rows.append(images[:SHEET_HEADS])
            if not name:
                self.true_features = self.fid_features(subjects.truths)
                figures |= self.distances("ori", self.fid_features(images))
        self.sheets["encoder"] = sheet(rows)
        return figures

    def distances(self, name: str, features: Tensor) -> dict:
        """FID and KID between reconstructions and what they should look like; at least two pictures of each."""
        if len(features) < 2:
            return {}
        return {
            f"fid_{name}": metrics.frechet_distance(features, self.true_features),
            f"kid_{name}": metrics.kernel_distance(features, self.true_features),
        }

    # ----------------------------------------------------------------------------
    # Other views.

    def side_figures(self) -> dict:
        """ID, ID_a-b, APD, and FID and KID at sm, mid and la, of the encoder; ID of those it is compared with."""
        count, per_band = len(self.ws), self.args.views
        bands = [self.cameras_between(count * per_band, band, (0, 20)).view(count, per_band, 25) for band in BANDS_DEG]
        far = [self.cameras_between(count, yaw, pitch)[:, None] for yaw, pitch in FAR_DEG.values()]
        cameras = torch.cat(bands + far, 1)  # [N,3V+3,25]
        near = len(BANDS_DEG) * per_band

        def look(images: Tensor) -> tuple[Tensor, ...]:
            return self.embed(images[:near]), read_images(self.reader, images).angles, self.fid_features(images[near:])

        embedding, angles, features = self.views(self.ws, cameras, look)
        figures = self.band_figures(embedding, self.photo_embedding)
        last = embedding[:, -1]
        figures["id_other"] = metrics.identity_cosine(self.photo_embedding, last.roll(1, 0)).mean().item()
        figures["match_of_10"] = match_rate(self.photo_embedding, last, 10)
        asked = pose(cameras)
        figures["apd"] = metrics.pose_distance(angles[:, :near], asked[:, :near])
        # The estimator errs on true pictures too: nothing below this can be told from none.
        true_angles = read_images(self.reader, self.subjects.truths).angles
        figures["apd_of_truth"] = metrics.pose_distance(true_angles, pose(self.subjects.cameras))
        for i, name in enumerate(FAR_DEG):
            figures |= self.distances(name, features[:, i])
        figures["compared"] = {}
        for name, encoder in self.compared.items():
            ws = self.invert(encoder, self.subjects.photos)
            (seen,) = self.views(ws, cameras[:, :near], lambda images: (self.embed(images),))
            figures["compared"][name] = self.band_figures(seen, self.photo_embedding)
        return figures

    def band_figures(self, seen: Tensor, photos: Tensor) -> dict:
        """ID per band of yaw and in all, of embeddings [N,3V,E] of views and [N,E] of photos. The bands are equally
        wide: uniform in all is the mean of the three."""
        cosines = metrics.identity_cosine(seen.flatten(0, 1), photos.repeat_interleave(seen.shape[1], 0))
        by_band = cosines.view(len(seen), len(BANDS_DEG), -1).mean((0, 2)).tolist()
        figures = {f"id_{low}_{high}": value for (low, high), value in zip(BANDS_DEG, by_band)}
        return {"id": float(np.mean(by_band))} | figures

    @torch.no_grad()
    def time_figures(self) -> dict:
        """Seconds to encode one photo and generate one view of it."""
        seconds = []
        for turn in range(TIMED + 1):
            started = time.perf_counter()
            w = self.encoder(self.subjects.photos[:1].to(self.device))
            self.generator.render(self.generator.planes(w), self.subjects.cameras[:1].to(self.device), w).image.cpu()
            if turn:  # the first one warms up; .cpu() waits for the device
                seconds.append(time.perf_counter() - started)
        return {"time_s": float(np.median(seconds))}

    def optimisation_figures(self) -> dict:
        """The encoder against 300 steps of descent on the same few photos, and, where it is known, on their pictures
        in the generator's light: there descent is at its best, as it can match every pixel."""
        subjects, size = self.subjects, self.generator.config.image_resolution
        if subjects.plains is None:
            return {"optimisation": self.descent_figures(subjects.photos, subjects.truths)}
        return {
            "optimisation": self.descent_figures(subjects.photos, resized(subjects.photos, size)),
            "optimisation_plain": self.descent_figures(subjects.plains, subjects.truths),
        }

    def descent_figures(self, inputs: Tensor, targets: Tensor) -> dict:
        """ID of both for the first `--optimised` pictures: the encoder's inputs [N,3,S,S], and the same [N,3,H,W] as
        large as the generator's for descent to come near to."""
        count, views = min(self.args.optimised, len(inputs)), self.args.views
        encoded = self.invert(self.encoder, inputs[:count])
        started = time.perf_counter()
        optimised = torch.cat([
            optimise_latents(self.generator, self.reader, image.to(self.device), camera.to(self.device)).cpu()
            for image, camera in zip(
                tqdm(targets[:count].split(1), desc="descent"), self.subjects.cameras[:count].split(1)
            )
        ])  # fmt: skip
        figures = {"n": count, "time_s": (time.perf_counter() - started) / count}
        cameras = [self.cameras_between(count * views, band, (0, 20)).view(count, views, 25) for band in BANDS_DEG]
        wanted = self.embed(inputs[:count])
        for name, ws in (("optimised", optimised), ("encoder", encoded)):
            (seen,) = self.views(ws, torch.cat(cameras, 1), lambda images: (self.embed(images),))
            figures[name] = self.band_figures(seen, wanted)
        return figures

    # ----------------------------------------------------------------------------
    # Edits.

    def frontal_reading(self, ws: Tensor) -> tuple[Reading, Tensor]:
        images = render_views(self.generator, ws, self.generator.frontal_camera())
        return read_images(self.reader, images), images

    def edit_figures(self) -> dict:
        """AA and AD of every direction at +2, and ID of the edited heads for Table 3."""
        ws = self.ws[: self.args.edited]
        self.sigma = self.reading.logits.std(0)
        self.before, plain = self.frontal_reading(ws)
        aa, ad, rows = {}, {}, [plain[:SHEET_HEADS]]
        for key in tqdm(self.directions.names, desc="edits"):
            if key in ATTRIBUTES and ATTRIBUTES[key].celeba in self.reader.config.attribute_names:
                aa[key], ad[key], images = self.edit(ws, self.directions, key, EDIT_STRENGTH)
                rows.append(images[:SHEET_HEADS])
        self.sheets["edits"] = sheet(rows)
        figures = {
            "aa": aa,
            "ad": ad,
            "ad_per_aa": {key: ad[key] / max(aa[key], 0.1) for key in aa},
            "edit_strength": EDIT_STRENGTH,
            "mean_aa": float(np.mean(list(aa.values()))) if aa else None,
            "mean_ad": float(np.mean(list(ad.values()))) if aa else None,
            "id_edited": {},
        }
        bands = [self.cameras_between(len(ws), band, (0, 20)) for band in BANDS_DEG]
        for key in EQUAL_EDITS:
            if key in aa:
                edited = ws + self.directions.offset({key: EDIT_STRENGTH})
                (seen,) = self.views(edited, torch.stack(bands, 1), lambda images: (self.embed(images),))
                figures["id_edited"][key] = self.band_figures(seen, self.photo_embedding[: len(ws)])["id"]
        if self.origin:
            figures["spaces"] = self.space_figures(ws)
        return figures

    def edit(self, ws: Tensor, directions: Directions, key: str, strength: float) -> tuple[float, float, Tensor]:
        """AA, AD and the pictures of latents moved along one direction."""
        column = list(self.reader.config.attribute_names).index(ATTRIBUTES[key].celeba)
        after, images = self.frontal_reading(ws + directions.offset({key: strength}))
        before = self.before.logits
        aa = ATTRIBUTES[key].sign * metrics.attribute_altering(before, after.logits, self.sigma, column)
        return aa, metrics.attribute_dependency(before, after.logits, self.sigma, column), images

    def space_figures(self, ws: Tensor) -> dict:
        """AD along directions of the original space and of the inversion manifold at equal AA: 1.5, or what both
        spaces reach."""
        figures, spaces = {}, {"origin": self.origin, "inversion": self.directions}
        for key in EQUAL_EDITS:
            if any(key not in directions.names for directions in spaces.values()):
                continue
            curves = {
                space: np.array([(0, 0, 0), *((s, *self.edit(ws, directions, key, s)[:2]) for s in EQUAL_STRENGTHS)])
                for space, directions in spaces.items()
            }
            level = min(EQUAL_ALTERING, *(aa.max() for _, aa, _ in (curve.T for curve in curves.values())))
            figures[key] = {space: at_altering(curve, level) for space, curve in curves.items()}
        return figures


def at_altering(curve: np.ndarray, level: float) -> dict[str, float]:
    """Where a curve, rows of strength, AA and AD from (0, 0, 0) on, first has an AA of `level`; straight between."""
    reached = int(np.argmax(curve[:, 1] >= level))
    point = curve[reached]
    if reached:
        before = curve[reached - 1]
        point = before + (level - before[1]) / (point[1] - before[1]) * (point - before)
    return dict(zip(("strength", "aa", "ad"), point.tolist()))


def pose(cameras: Tensor) -> Tensor:
    """Yaw and nominal pitch [...,2] in radians of camera labels [...,25]."""
    return torch.stack(angles_from_camera(cameras), -1)


def resized(images: Tensor, size: int) -> Tensor:
    """The renders' own size: what the generator adds beyond it cannot be judged against them."""
    if images.shape[-1] == size:
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def match_rate(photos: Tensor, views: Tensor, among: int) -> float | None:
    """How often a view's embedding [N,E] is nearest to its own photo's among `among` consecutive people; None with
    fewer."""
    photos, views = (torch.nn.functional.normalize(x - x.mean(0), dim=1) for x in (photos, views))
    hits = []
    for start in range(0, len(photos) - among + 1, among):
        span = slice(start, start + among)
        hits.append((views[span] @ photos[span].T).argmax(1) == torch.arange(among))
    return torch.cat(hits).float().mean().item() if hits else None


def sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of images [B,3,H,W] in [-1, 1], one below the other, as large as the first row's."""
    rows = [resized(row, rows[0].shape[-1]) for row in rows]
    rows = [np.concatenate([np.asarray(p) for p in pictures(row)], 1) for row in rows]
    return Image.fromarray(np.concatenate(rows))
