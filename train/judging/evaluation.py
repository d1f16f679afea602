"""The networks and the photos of one evaluation, and what is read from pictures."""

import argparse
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from preim3d.align import inside_photo, without_cast
from preim3d.camera import angles_from_camera, camera_from_angles
from preim3d.detail import DetailNetwork, draw_detail
from preim3d.directions import Directions
from preim3d.efficientnet import EfficientNetLite0
from preim3d.encoder import PortraitEncoder
from preim3d.face_mesh import FaceMesh
from preim3d.feedback import Feedback, Photos, bring_nearer
from preim3d.generator import Planes, TriPlaneGenerator
from preim3d.identity import CHIP_CENTRE, CHIP_SIDE, FaceIdentity
from preim3d.pipeline import load_component
from preim3d.tuning import Tuning, edited, tuned
from train.judging.attributes import read_images
from train.judging.classifier import load_reader
from train.judging.pose import roll_of
from train.judging.subjects import Subjects
from train.photos.real_photos import CROP_PX


PERSON = 0.85  # of the mask: from here on a pixel shows nothing but the person
BATCH = 16
# Of EfficientNet-Lite0's pooled features: makes them about as large as Inception's, which KID's kernel was made for.
FEATURE_SCALE = 0.2


class Heads(NamedTuple):
    """N heads."""

    ws: Tensor  # [N, num_ws, w_dim]
    tunings: list[Tuning | None]  # what the planes of each are tuned by

    @classmethod
    def untuned(cls, ws: Tensor) -> "Heads":
        return cls(ws, len(ws) * [None])

    def at(self, places) -> "Heads":
        """Those at some places, in that order."""
        return Heads(self.ws[places], [self.tunings[place] for place in places])

    def edited(self, directions: Directions, key: str, strength: float) -> "Heads":
        """The same, edited as the pipeline does it."""
        ws, tunings = zip(
            *(edited(w, tuning, directions, {key: strength}) for w, tuning in zip(self.ws, self.tunings))
        )
        return Heads(torch.stack(ws), list(tunings))


class Evaluation:
    """The networks and the photos of one seed."""

    def __init__(self, args: argparse.Namespace, seed: int):
        weights, device = Path(args.weights), torch.device(args.device)
        self.args, self.seed, self.rng, self.device = args, seed, np.random.default_rng(seed), device

        def component(network_class: type, folder: Path) -> nn.Module:
            return load_component(network_class, folder, torch.float32).to(device)

        self.generator = component(TriPlaneGenerator, weights / "generator")
        self.encoder = component(PortraitEncoder, weights / "encoder")
        self.directions = component(Directions, weights / "directions").cpu()
        self.identity = component(FaceIdentity, Path(args.identity or weights / "identity"))
        # With dlib's network alone: it must be the one that was learned with.
        with_feedback = (weights / "feedback").is_dir() and not args.identity
        self.feedback = component(Feedback, weights / "feedback") if with_feedback else None
        with_detail = (weights / "detail").is_dir() and not args.identity
        self.detail = component(DetailNetwork, weights / "detail") if with_detail else None
        self.origin = component(Directions, Path(args.origin)).cpu() if args.origin else None
        self.compared = {name: component(PortraitEncoder, folder) for name, folder in args.compare}
        self.reader = load_reader(args.reader, device)
        self.mesh = component(FaceMesh, Path(args.mesh or weights / "landmarks" / "mesh"))
        self.perceptual = perceptual_network(args.lite0).to(device)
        self.fid_network = torch.jit.load(args.fid_network, device) if args.fid_network else None

        counts = args.photos, args.fid_photos, args.group_photos
        self.subjects = Subjects(args.data, args.labels, *counts, self.rng, args.mirror)
        self.photo_embedding = self.read_photos(self.subjects.held, lambda photos, masks: self.embed(photos))
        self.photo_logits = self.read_photos(
            self.subjects.held, lambda photos, masks: read_images(self.reader, photos).logits
        )
        self.sheets: dict[str, Image.Image] = {}

    @cached_property
    def heads(self) -> Heads:
        """Those of the photos held out."""
        return self.invert(self.subjects.held)

    # ----------------------------------------------------------------------------
    # Photos, and what networks read from pictures.

    def photos(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Crops [B, 3, 256, 256] in [-1, 1] and masks of the person [B, 1, 256, 256] in [0, 1]."""
        pixels = torch.from_numpy(self.subjects.photos.pixels(rows)).permute(0, 3, 1, 2).float() / 255
        return pixels[:, :3] * 2 - 1, pixels[:, 3:]

    def persons(self, rows: np.ndarray) -> Tensor:
        """[B, 1, 256, 256]: 1 where the photo surely shows the person; beyond the photo there is none."""
        corners = torch.from_numpy(self.subjects.photos.corners[rows])
        return inside_photo(corners, CROP_PX) * (self.photos(rows)[1] > PERSON)

    @torch.no_grad()
    def read_photos(self, rows: np.ndarray, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What `read` gives for the crops and masks of rows, [N, ...]."""
        return torch.cat([read(*self.photos(part)) for part in np.array_split(rows, -(-len(rows) // BATCH))])

    def invert(self, rows: np.ndarray) -> Heads:
        """Heads of photos, as the pipeline makes them: with feedback and detail, where the weights have them."""
        found = list(self.encoded(rows))
        # Planes are a third of a second each: made for those alone that are tuned.
        tunings = [
            None if photo is None or self.detail is None else self.tuning(w, photo, self.generator.planes(w))
            for w, photo in found
        ]
        return Heads(torch.cat([w for w, _ in found]).cpu(), tunings)

    @torch.no_grad()
    def invert_alone(self, encoder: PortraitEncoder, rows: np.ndarray) -> Heads:
        """Heads of photos by an encoder alone."""
        return Heads.untuned(self.read_photos(rows, lambda photos, masks: encoder(self.shown(photos, encoder)).cpu()))

    @torch.no_grad()
    def encoded(self, rows: np.ndarray) -> Iterator[tuple[Tensor, Photos | None]]:
        """w [1, num_ws, w_dim] of each photo, after feedback; and what the photo shows, if anything more is made of
        that."""
        for part in np.array_split(rows, -(-len(rows) // BATCH)):
            photos, _ = self.photos(part)
            images = self.shown(photos, self.encoder)
            ws = self.encoder(images).split(1)
            if self.feedback is None and self.detail is None:
                yield from zip(ws, len(ws) * [None])
                continue
            angles, person = self.see(photos)
            shown = images, person.to(self.device), self.cameras(*angles.unbind(1)).to(self.device)
            for w, photo in zip(ws, map(Photos, *(x.split(1) for x in shown))):
                if self.feedback is not None:
                    w = bring_nearer(w, photo, self.generator, self.identity, self.feedback)
                yield w, photo

    def shown(self, photos: Tensor, encoder: PortraitEncoder) -> Tensor:
        """Crops as the encoder is shown them."""
        return resized(photos, encoder.config.input_size).to(self.device)

    def tuning(self, w: Tensor, photo: Photos | None, planes: Planes) -> Tuning | None:
        """What the planes of w [1, num_ws, w_dim] are tuned by."""
        if self.detail is None or photo is None:
            return None
        return draw_detail(w, planes, photo, self.generator, self.identity, self.detail)

    @torch.no_grad()
    def planes(self, w: Tensor, tuning: Tuning | None) -> Planes:
        planes = self.generator.planes(w)
        return planes if tuning is None else self.generator.survey(tuned(planes, tuning))

    def see(self, photos: Tensor) -> tuple[Tensor, Tensor]:
        """Yaw and nominal pitch [N, 2] in radians, and masks of the person [N, 1, S, S], as the mesh network sees
        them in crops."""
        boxes = resized(photos, self.mesh.config.input_size)
        boxes = torch.from_numpy(without_cast(((boxes + 1) / 2).permute(0, 2, 3, 1).numpy())).permute(0, 3, 1, 2)
        _, angles, _, reading = self.mesh.read(boxes.to(self.device))
        return angles.cpu(), (reading.person > 0).float().cpu()

    def own_cameras(self, rows: np.ndarray) -> Tensor:
        """[N, 25] where photos were taken from."""
        yaw, pitch = torch.from_numpy(self.subjects.photos.pose[rows]).unbind(1)
        return self.cameras(yaw, pitch)

    def cameras(self, yaw: Tensor, pitch: Tensor) -> Tensor:
        config = self.generator.config
        return camera_from_angles(yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)

    def cameras_between(self, count: int, yaw_deg: tuple[int, int], pitch_deg: tuple[int, int]) -> Tensor:
        """Cameras [count, 25] on either side, |yaw| and nominal |pitch| uniform in these ranges."""
        yaw = self.rng.uniform(*yaw_deg, count) * self.rng.choice((-1, 1), count)
        pitch = self.rng.uniform(*pitch_deg, count) * self.rng.choice((-1, 1), count)
        return self.cameras(*(torch.from_numpy(np.radians(angle)).float() for angle in (yaw, pitch)))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Identity embeddings [N, E] of images [N, 3, H, W]."""
        return torch.cat([self.identity(part.to(self.device)).cpu() for part in images.split(32)])

    def read_angles(self, images: Tensor) -> Tensor:
        """Yaw, nominal pitch and roll [N, 3] in radians, as a network sees them in crops or views [N, 3, H, W]."""
        boxes, found = resized(images, self.mesh.config.input_size), []
        for part in boxes.split(32):
            _, angles, _, reading = self.mesh.read(part.to(self.device))
            roll = roll_of(reading.points.cpu(), self.subjects.upright_face)
            found.append(torch.cat([angles.cpu(), roll[:, None]], 1))
        return torch.cat(found)

    @torch.no_grad()
    def fid_features(self, images: Tensor) -> Tensor:
        """[N, D] of the faces' squares in images [N, 3, 256, 256]."""
        squares = face_square(images)
        if self.fid_network is None:
            maps = [self.perceptual(part.to(self.device))[-1] for part in squares.split(32)]
            return FEATURE_SCALE * torch.cat([part.mean((2, 3)).cpu() for part in maps])
        pixels = squares.clamp(-1, 1).add(1).mul(127.5).round().byte()
        return torch.cat([
            self.fid_network(part.to(self.device), return_features=True).float().cpu() for part in pixels.split(32)
        ])  # fmt: skip

    @torch.no_grad()
    def views(
        self,
        heads: Heads,
        cameras: Tensor,
        of_images: Callable[[Tensor], tuple[Tensor, ...]],
        most_rays: int | None = None,  # along a side of a view, where fewer than configured will do
    ) -> list[Tensor]:
        """What `of_images` gives for the views, as large as photos, of N heads from cameras [N, V, 25]: columns
        [N, V, ...]. The planes of a head are made once."""
        configured, rows = self.generator.config.ray_resolution, []
        rays = min(configured, most_rays or configured)
        each = zip(heads.ws.to(self.device).split(1), heads.tunings, cameras.to(self.device))
        for w, tuning, camera in tqdm(each, "views", len(heads.ws)):
            view = self.generator.render(self.planes(w, tuning), camera, w, ray_resolution=rays)
            rows.append(of_images(resized(view.image.clamp(-1, 1), CROP_PX).cpu()))
        return [torch.stack(column) for column in zip(*rows)]


def perceptual_network(file: str) -> EfficientNetLite0:
    """Raises OSError where there is no such file, ValueError where it holds something else."""
    try:
        with safe_open(file, "pt") as stored:
            whole = set(dict(EfficientNetLite0().named_parameters())) <= set(stored.keys())
    except SafetensorError:
        whole = False
    if not whole:
        raise ValueError(
            f"{file} does not hold EfficientNet-Lite0's weights as safetensors (see train.model.perceptual)."
        )
    return EfficientNetLite0.load(file)


def pose(cameras: Tensor) -> Tensor:
    """Yaw, nominal pitch and roll [..., 3] in radians of camera labels [..., 25]: all of ours stand upright."""
    yaw, pitch = angles_from_camera(cameras)
    return torch.stack([yaw, pitch, torch.zeros_like(yaw)], -1)


def resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def face_square(images: Tensor) -> Tensor:
    """The square that the identity network sees too, without resampling: little in it is background or, in photos
    that end at the hairline, beyond the photo."""
    size = images.shape[-1]
    side, (left, top) = round(CHIP_SIDE * size), (round((centre - CHIP_SIDE / 2) * size) for centre in CHIP_CENTRE)
    return images[..., top : top + side, left : left + side]


def sheet(lines: list[list[Image.Image]]) -> Image.Image:
    """Pictures of one size, line by line, edge to edge."""
    side = lines[0][0].width
    page = Image.new("RGB", (side * len(lines[0]), side * len(lines)))
    for row, line in enumerate(lines):
        for column, picture in enumerate(line):
            page.paste(picture, (side * column, side * row))
    return page
