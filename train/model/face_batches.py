"""Real photos and lit heads -> what one step of `train.faces` learns from: the encoder's inputs and what they show.

A photo's light and colours are in w: whatever changes the colours of an input changes its target alike."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preim3d.align import inside_photo
from preim3d.camera import camera_from_angles
from preim3d.generator import TriPlaneGenerator
from train.heads.dataset import BACKGROUND, FRONT_VIEWS, HeadsDataset
from train.loop.draws import noise_like
from train.model.batches import to_device, to_float
from train.model.field_batches import FieldBatch, draw_batch
from train.photos import augment
from train.photos.real_photos import CROP_PX, RealPhotos


WHOLE_SHARE = 0.4  # of the photos drawn: those that show hair and shoulders too, far fewer than the others
WINDOW_WHOLE, WINDOW_HEAD = 0.3, 0.35  # share of whole photos, and of heads, that the encoder sees through a window
LEAST_PATCH_RAYS = 12  # a narrower patch would be all rim
PERSON, NOBODY = 0.85, 0.12  # masks above are the person for certain, below the background
KEPT_SHARE = 0.2  # of a GPU's free memory, which photos may take
DECODED_AT_A_TIME = 512
BACKGROUND_WEIGHT = 0.25  # of certain background, which is compared with plain grey


@dataclass
class PhotoBatch:
    """B photos of real people, crops S pixels wide."""

    rows: Tensor  # [B] of the packed photos
    mirrored: Tensor  # [B] 1 or -1: what multiplies yaw, roll and sideways shifts
    inputs: Tensor  # [B, 3, S, S] in [-1, 1], what the encoder sees
    targets: Tensor  # [B, 3, S, S] the person before plain grey
    compared: Tensor  # [B, 1, S, S] 1 over the person, BACKGROUND_WEIGHT over certain background, 0 elsewhere
    person: Tensor  # [B, 1, S, S] 1 over the person
    landmarks: Tensor  # [B, 120, 3] in pixels; z towards the back, up to an offset
    pose: Tensor  # [B, 2] yaw and nominal pitch, radians


@dataclass
class HeadBatch:
    """B rendered heads in their own light."""

    inputs: Tensor  # [B, 3, S, S] in [-1, 1]
    z: Tensor  # [B, F]
    field: FieldBatch  # its colours changed as those of the inputs


@dataclass
class Recolouring:
    """A change of exposure, contrast and colour for each picture of a batch; some stay as they are."""

    gain: Tensor  # [B, 3]
    gamma: Tensor  # [B]
    saturation: Tensor  # [B]

    @classmethod
    def draw(cls, count: int, draws: torch.Generator, share: float = 0.6) -> "Recolouring":
        def spread(*shape):
            return torch.randn(*shape, generator=draws)

        on = (torch.rand(count, 1, generator=draws) < share).float()
        gain = torch.exp(on * (0.18 * spread(count, 1) + 0.06 * spread(count, 3)))
        return cls(gain, torch.exp(on * 0.15 * spread(count, 1))[:, 0], torch.exp(on * 0.25 * spread(count, 1))[:, 0])

    def keep(self, count: int) -> "Recolouring":
        """The same, but the first `count` pictures stay as they are."""
        for factors in (self.gain, self.gamma, self.saturation):
            factors[:count] = 1
        return self

    def __call__(self, colours: Tensor) -> Tensor:
        """RGB [B, 3, ...] in [0, 1] -> likewise."""
        gain, gamma, saturation = (
            x.to(colours.device).view(*x.shape, *[1] * (colours.ndim - x.ndim))
            for x in (self.gain, self.gamma[:, None], self.saturation[:, None])
        )
        changed = colours.clamp(1e-4, 1) ** gamma * gain
        grey = changed.mean(1, keepdim=True)
        return (grey + (changed - grey) * saturation).clamp(0, 1)


class PhotoBatches:
    """Draws photos. Needs nothing but its own generators: the same ones give the same batch. The few numbers that say
    what is drawn and how it is changed come from the host; pictures are changed on the device."""

    def __init__(
        self,
        photos: RealPhotos,
        size: int,  # of the pictures drawn
        device: str | torch.device,
        keep: bool = False,  # Decode all photos now and keep them on the device, where they fit.
    ):
        self.photos, self.size, self.device = photos, size, torch.device(device)
        self.kept = kept_pixels(photos, self.device) if keep else None
        train = ~photos.held
        self.whole, self.partial = np.nonzero(train & photos.full)[0], np.nonzero(train & ~photos.full)[0]
        assert len(self.whole) + len(self.partial), "no photo to train with"

    def draw_rows(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Rows of photos to train with, whole ones more often than there are."""
        whole = round(WHOLE_SHARE * count) if len(self.partial) else count
        whole = whole if len(self.whole) else 0
        return np.concatenate([rng.choice(self.whole, whole), rng.choice(self.partial, count - whole)])

    def draw_photos(
        self, count: int, rng: np.random.Generator, draws: torch.Generator, plain: bool = False
    ) -> PhotoBatch:
        """Half of them mirrored. The encoder sees most a little changed, unless `plain`: then all as they are."""
        rows = self.draw_rows(count, rng)
        mirrored = torch.rand(count, generator=draws) < 0.5
        if plain:
            return self.as_they_are(rows, mirrored)
        batch = self._in_colours(rows, mirrored, Recolouring.draw(count, draws))
        share = WINDOW_WHOLE * torch.from_numpy(self.photos.full[rows])
        batch.inputs = as_taken(self._through_windows(batch.inputs, share, rng, draws), draws)
        return batch

    def as_they_are(self, rows: np.ndarray, mirrored: Tensor | None = None) -> PhotoBatch:
        """These photos, of which some [B] may be mirrored."""
        mirrored = torch.zeros(len(rows), dtype=torch.bool) if mirrored is None else mirrored
        return self._in_colours(rows, mirrored, lambda colours: colours)

    def _in_colours(self, rows: np.ndarray, mirrored: Tensor, recolour: Callable[[Tensor], Tensor]) -> PhotoBatch:
        """Photos whose RGB [B, 3, S, S] in [0, 1] is changed, mirrored where asked for."""
        corners = torch.from_numpy(self.photos.corners[rows]) * (self.size / CROP_PX)
        landmarks = torch.from_numpy(self.photos.landmarks[rows]) * (self.size / CROP_PX)
        pose = torch.from_numpy(self.photos.pose[rows])
        corners[mirrored, :, 0] = self.size - corners[mirrored, :, 0]
        corners[mirrored] = corners[mirrored][:, [1, 0, 3, 2]]  # they still run clockwise
        landmarks[mirrored, :, 0] = self.size - landmarks[mirrored, :, 0]
        sign = torch.where(mirrored, -1.0, 1.0)
        pose = pose * torch.stack([sign, torch.ones_like(sign)], 1)
        corners, landmarks, pose, sign = (to_device(x, self.device) for x in (corners, landmarks, pose, sign))

        rgba = self._photo_pixels(rows)
        rgba = torch.where(sign[:, None, None, None] < 0, rgba.flip(3), rgba)
        colours = recolour(rgba[:, :3]) * 2 - 1
        inside, mask = inside_photo(corners, self.size), rgba[:, 3:]
        person = inside * (mask > PERSON)
        grey = 2 * BACKGROUND - 1
        return PhotoBatch(
            rows=to_device(torch.from_numpy(rows), self.device),
            mirrored=sign,
            inputs=colours,
            targets=person * colours + (1 - person) * grey,
            compared=person + BACKGROUND_WEIGHT * inside * (mask < NOBODY),
            person=person,
            landmarks=landmarks,
            pose=pose,
        )

    def _photo_pixels(self, rows: np.ndarray) -> Tensor:
        """[B, 4, S, S] in [0, 1]."""
        if self.kept is None:
            pixels = to_device(torch.from_numpy(self.photos.pixels(rows)), self.device)
        else:
            pixels = self.kept[to_device(torch.from_numpy(rows), self.device)]
        return F.interpolate(pixels.permute(0, 3, 1, 2).float() / 255, (self.size, self.size), mode="area")

    def _through_windows(
        self, images: Tensor, share: Tensor, rng: np.random.Generator, draws: torch.Generator
    ) -> Tensor:
        """Some of the images [B, 3, S, S] as if their photo ended early: beyond its edge there is a blurred
        reflection, and the rest of the head must be filled in. `share` [B] says how likely that is."""
        if not len(self.partial):
            return images
        corners = torch.from_numpy(self.photos.corners[rng.choice(self.partial, len(images))])
        cut = (torch.rand(len(images), generator=draws) < share)[:, None, None, None]
        corners, cut = (to_device(x, self.device) for x in (corners, cut))
        inside = inside_photo(corners * (self.size / CROP_PX), self.size, margin_px=0)
        soft = F.avg_pool2d(inside, 9, 1, 4)
        # A mean of what is inside, far spread: near enough to the aligner's blurred reflection.
        coarse = max(1, self.size // 16)
        mean = F.adaptive_avg_pool2d(images * inside, coarse) / (F.adaptive_avg_pool2d(inside, coarse) + 0.05)
        beyond = F.interpolate(mean.clamp(-1, 1), images.shape[-2:], mode="bilinear")
        return torch.where(cut, images * soft + beyond * (1 - soft), images)


class FaceBatches(PhotoBatches):
    """Draws photos and heads."""

    def __init__(
        self,
        photos: RealPhotos,
        heads: HeadsDataset | None,  # None: `draw_heads` is not asked for
        generator: TriPlaneGenerator,
        size: int,  # of the encoder's input
        device: str | torch.device,
    ):
        super().__init__(photos, size, device, keep=True)
        self.heads, self.ray_resolution = heads, generator.config.ray_resolution

    def draw_heads(
        self, count: int, rays: int, points: int, patches: int, rng: np.random.Generator, draws: torch.Generator
    ) -> HeadBatch:
        """The first `patches` heads keep their colours and get a patch of the final picture to match."""
        chosen = rng.choice(self.heads.ready, count)
        patch_rays = max(self.ray_resolution // 4, LEAST_PATCH_RAYS)
        field = draw_batch(
            [(self.heads, head) for head in chosen], rng, rays, points, patches, patch_rays,
            self.ray_resolution,
        ).to(self.device)  # fmt: skip
        recolour = Recolouring.draw(count, draws).keep(patches)
        opacity = field.ray_opacity[..., None]
        solid = (field.ray_colors - BACKGROUND * (1 - opacity)) / opacity.clamp(min=1e-3)
        solid = recolour(solid.transpose(1, 2)).transpose(1, 2)
        field.ray_colors = solid * opacity + BACKGROUND * (1 - opacity)
        field.point_colors = recolour(field.point_colors.transpose(1, 2)).transpose(1, 2)

        views = rng.integers(0, FRONT_VIEWS, count)
        pictures = to_float(self.heads.images[chosen, views], self.device)
        pictures = F.interpolate(pictures, (self.size, self.size), mode="area")
        backdrop = self._backdrops(count, rng, draws)
        inputs = recolour(pictures[:, :3]) * pictures[:, 3:] + backdrop * (1 - pictures[:, 3:])
        share = torch.full((count,), WINDOW_HEAD)
        inputs = self._through_windows(inputs * 2 - 1, share, rng, draws)
        z = to_device(torch.from_numpy(np.asarray(self.heads.features[chosen])), self.device)
        return HeadBatch(as_taken(inputs, draws), z, field)

    def as_photos(
        self,
        images: Tensor,  # [B, 3, H, W] of a generator, in [-1, 1] before its plain background
        opacity: Tensor,  # [B, 1, r, r] in [0, 1]
        background: float,  # grey, in [0, 1]
        rng: np.random.Generator,
        draws: torch.Generator,
    ) -> Tensor:
        """Inputs [B, 3, S, S] in [-1, 1]: the same before other backgrounds, as photos come."""
        images, opacity = (
            F.interpolate(x.float(), (self.size, self.size), mode="bilinear", antialias=True)
            for x in (images, opacity)
        )
        backdrop = self._backdrops(len(images), rng, draws) - background
        images = (images + 2 * backdrop * (1 - opacity)).clamp(-1, 1)
        images = self._through_windows(images, torch.full((len(images),), WINDOW_HEAD), rng, draws)
        return as_taken(images, draws)

    def _backdrops(self, count: int, rng: np.random.Generator, draws: torch.Generator) -> Tensor:
        """[B, 3, S, S] in [0, 1]: clouds of colour, or blurred pieces of other photos, as rooms behind people are."""
        clouds = augment.random_backgrounds(count, (self.size, self.size), draws, self.device)
        pieces = self._photo_pixels(self.draw_rows(count, rng))[:, :3].roll(self.size // 2, 3)
        pieces = F.interpolate(F.avg_pool2d(pieces, 8), (self.size, self.size), mode="bilinear")
        pieced = to_device(torch.rand(count, 1, 1, 1, generator=draws) < 0.4, self.device)
        return torch.where(pieced, pieces, clouds)


def as_taken(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images [B, 3, S, S] in [-1, 1] a little misaligned, some soft, all with some noise, as photos come."""
    count = len(images)
    theta = augment.misalign(count, draws, 0.02, 4.0, 0.06, device=images.device)
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    moved = augment.soften(moved, draws, 0.2, smallest=0.2)
    noise = noise_like(moved, draws)
    return (moved + noise * 0.03 * torch.rand(count, 1, 1, 1, generator=draws).to(moved.device)).clamp(-1, 1)


def kept_pixels(photos: RealPhotos, device: torch.device) -> Tensor | None:
    """All photos' RGBA uint8 [N, 256, 256, 4] on a GPU; None where they would take too much of its memory, and on a
    CPU, where they would take it from the rest."""
    if len(photos) * CROP_PX**2 * 4 > KEPT_SHARE * room_on(device):
        return None
    kept = torch.empty(len(photos), CROP_PX, CROP_PX, 4, dtype=torch.uint8, device=device)
    for first in range(0, len(photos), DECODED_AT_A_TIME):
        part = kept[first : first + DECODED_AT_A_TIME]
        part.copy_(torch.from_numpy(photos.pixels(np.arange(first, first + len(part)), os.cpu_count())))
    return kept


def room_on(device: torch.device) -> int:
    """Bytes free on a GPU; 0 on a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


class LearnedCameras(nn.Module):
    """What the camera of each photo is off by: yaw, pitch, roll [rad], shift to the right and down [of the picture's
    width], logarithm of the focal length. Steps are normalised by the gradient's size, and pulled to zero."""

    STEP = (4e-3, 4e-3, 2e-3, 8e-4, 8e-4, 1.5e-3)
    LIMIT = (0.25, 0.25, 0.1, 0.03, 0.03, 0.06)
    MIRRORED = (True, False, True, True, False, False)  # what changes its sign in a mirror

    def __init__(self, photos: int):
        super().__init__()
        self.register_buffer("offsets", torch.zeros(photos, 6))
        self.register_buffer("squares", torch.zeros(photos, 6))  # running mean of the squared gradient
        for name, constants in (("step", self.STEP), ("limit", self.LIMIT), ("sides", self.MIRRORED)):
            self.register_buffer(name, torch.tensor(constants), persistent=False)

    def of(self, batch: PhotoBatch, config) -> tuple[Tensor, Tensor]:
        """Cameras [B, 25], and the offsets [B, 6] that they depend on, which take the gradient."""
        offsets = self.offsets[batch.rows].requires_grad_()
        turned = torch.where(self.sides, batch.mirrored[:, None], 1.0)
        yaw, pitch, roll, across, down, zoom = (offsets * turned).unbind(1)
        camera = camera_from_angles(
            batch.pose[:, 0] + yaw, batch.pose[:, 1] + pitch, roll,
            radius=config.camera_radius, pivot=config.pivot, focal=config.focal * zoom.exp(),
        )  # fmt: skip
        nothing = torch.zeros_like(across)
        moved = [nothing] * 18 + [across, nothing, nothing, down] + [nothing] * 3  # entries cx and cy
        return camera + torch.stack(moved, 1), offsets

    @torch.no_grad()
    def learn(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        """One step of size `rate` (1 = full) for the photos of these rows."""
        squares = self.squares[rows].lerp(gradient.square(), 0.1)
        step = (gradient / (squares.sqrt() + 1e-6)).clamp(-2, 2) * self.step
        self.squares[rows] = squares
        self.offsets[rows] = ((self.offsets[rows] - rate * step) * 0.998).clamp(-self.limit, self.limit)


def side_cameras(batch: PhotoBatch, draws: torch.Generator, config) -> Tensor:
    """Cameras [B, 25] from which likeness is asked for too (paper, Eq. 6): about the photo's own, at most 35 degrees
    from the front."""
    turn = 0.3 * torch.randn(len(batch.pose), 2, generator=draws) * torch.tensor([1.0, 0.5])
    yaw, pitch = (batch.pose * 0.5 + turn.to(batch.pose.device)).unbind(1)
    yaw, pitch = yaw.clamp(-math.radians(35), math.radians(35)), pitch.clamp(-math.radians(20), math.radians(20))
    return camera_from_angles(yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
