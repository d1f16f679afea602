"""A face crop -> the head that looks like the person: w, and what the planes are tuned by.

    encoder   what networks give at once: the encoder's w, detail            the paper's own (section 3.2), and more
    latent    w by descent from the mean latent                              naive optimisation (section D)
    pti       the same as a pivot, about which the planes are tuned          3D-Inv (Table 2; Roich et al. 2021)
    hybrid    the encoder's w as that pivot, from its detail on              IDE-3D's way (Table 2)

The encoder answers at once; the others look at what they have made, again and again: from the photo's camera, which is
learned too, pixels, a perceptual network's features, the person's outline and dlib's identity are compared; while the
planes are tuned, identity also from a camera at random (multi-view identity; Eq. 6), and of a face that looks aside
the half that the photo hardly shows is compared with the reflection of the other."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from preim3d.align import inside_photo
from preim3d.camera import camera_from_angles, camera_rays
from preim3d.efficientnet import EfficientNetLite0, perceptual_distance
from preim3d.generator import Planes, RenderOutput, TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.tuning import TEXELS, Tuning, add_to_front, front_of, offset_of, tuned
from preim3d.turntable import Angles


STEPS = {"latent": 500, "pti": 40, "hybrid": 24}  # pti: after those of latent
COMPARED_PX = 256  # side of the pictures compared
RAYS = 64  # along a side of what is looked at in a step: rendering is the cost, and goes by the ray
LOOK_EVERY = 8  # steps, between two pictures in full that are judged and shown
OFFSET_TEXELS = 32, TEXELS  # along a side of the two whose sum is learned
# Adam's, at the first step. Of tuning in standard deviations of the planes, of latents in those of the mapping's w.
OFFSET_RATE, LATENT_RATE = 0.05, 0.1
LAST_RATE = 0.1  # at the last step, as a share of the first one's
PIXELS, RAW, OUTLINE, PERCEPTUAL = 1.5, 1.5, 1.0, 3.0  # weights of the losses
IDENTITY, ASIDE, NEARNESS, SMOOTHNESS = 0.75, 0.75, 0.3, 5.0
ASIDE_SPREAD_RAD, ASIDE_MOST_RAD = (0.35, 0.2), (0.6, 0.35)  # of random cameras: yaw and nominal pitch
MIRRORED_FROM_RAD = 0.25  # yaw of the photo from which the face's far half learns from the near one
MIDLINE_BLEND = 0.03  # box units across the midline within which it begins to
# What the photo's camera is off by: yaw, pitch, roll [rad], shift to the right and down [of the picture's width],
# logarithm of the focal length. The size of a step, and the farthest.
CAMERA_STEP = (4e-3, 4e-3, 2e-3, 8e-4, 8e-4, 1.5e-3)
CAMERA_MOST = (0.25, 0.25, 0.1, 0.03, 0.03, 0.06)


@dataclass
class Judges:
    """The networks that compare a head with its photo."""

    identity: FaceIdentity
    perceptual: EfficientNetLite0

    def to(self, device: torch.device) -> "Judges":
        return Judges(self.identity.to(device), self.perceptual.to(device))


@dataclass
class Target:
    """What one photo shows."""

    image: Tensor  # [1, 3, 256, 256] in [-1, 1]
    person: Tensor  # [1, 1, 256, 256] in [0, 1]
    known: Tensor  # likewise: 0 beyond the photo, which the crop goes on with mirrored
    angles_rad: tuple[float, float]  # yaw and nominal pitch of its camera
    embedding: Tensor  # [1, E] who it is

    @classmethod
    def of_crop(
        cls,
        crop: Image.Image,
        angles_deg: Angles,
        person: np.ndarray,
        judges: Judges,
        corners: np.ndarray | None = None,
    ) -> "Target":
        """A crop of any size, its camera, and where the person is [S, S] in [0, 1]; and the photo's corners [4, 2] in
        sides of the crop (`align.photo_corners`), unless all of it is photo."""
        device = judges.identity.device
        small = crop.convert("RGB").resize((COMPARED_PX, COMPARED_PX), Image.Resampling.BOX)
        image = (torch.from_numpy(np.array(small)).permute(2, 0, 1)[None] / 127.5 - 1).to(device)
        mask = torch.from_numpy(person.astype(np.float32)).to(device)[None, None]
        mask = F.interpolate(mask, (COMPARED_PX, COMPARED_PX), mode="bilinear", antialias=True)
        known = torch.ones_like(mask)
        if corners is not None:
            known = inside_photo(torch.from_numpy(corners).to(device)[None] * COMPARED_PX, COMPARED_PX)
        with torch.no_grad():
            embedding = judges.identity(image)
        return cls(image, mask * known, known, tuple(math.radians(angle) for angle in angles_deg), embedding)

    def shifted(self, across: float, down: float) -> tuple[Tensor, Tensor, Tensor]:
        """Image, person and known as a camera sees them whose principal point is moved by shares of the width."""
        theta = self.image.new_tensor([[1, 0, -2 * across], [0, 1, -2 * down]])[None]
        grid = F.affine_grid(theta, self.image.shape, align_corners=False)
        return tuple(
            F.grid_sample(x, grid, align_corners=False, padding_mode="border")
            for x in (self.image, self.person, self.known)
        )


class Reached(NamedTuple):
    """How far an inversion is."""

    done: int  # steps, of
    steps: int
    distance: float  # of identity, the best so far: see `preim3d.judge`
    w: Tensor  # [1, num_ws, w_dim] the best
    tuning: Tuning | None
    angles_deg: Angles  # of the photo's camera
    picture: Image.Image | None  # from there, as large as the generator makes them; where a new one is the best


def invert(
    generator: TriPlaneGenerator,
    judges: Judges,
    target: Target,
    method: Literal["latent", "pti", "hybrid"],
    w: Tensor,  # [1, num_ws, w_dim] the encoder's, from which `hybrid` starts
    tuning: Tuning | None = None,  # likewise
    steps: int | None = None,  # of the last stage; None = as in `STEPS`
    seconds: float | None = None,  # after which no more steps are begun
    seed: int = 0,
) -> Iterator[Reached]:
    """One item before the first step and after each; whoever takes no more keeps the best so far, which is never worse
    than the first."""
    run = Inversion(generator, judges, target, seconds, seed)
    if method in ("latent", "pti"):
        w = mean_latent(generator)
        yield from run.descend(w, steps if method == "latent" and steps else STEPS["latent"])
        w, tuning = run.best.w, None
    if method in ("pti", "hybrid"):
        yield from run.tune(w, tuning, steps or STEPS[method])


class Inversion:
    """One photo's: the camera as it is learned, and the best head so far."""

    def __init__(
        self,
        generator: TriPlaneGenerator,
        judges: Judges,
        target: Target,
        seconds: float | None,
        seed: int,
    ):
        self.generator, self.judges, self.target = generator, judges, target
        self.started, self.seconds = time.monotonic(), seconds
        self.draws = torch.Generator().manual_seed(seed)
        self.camera = torch.zeros(6, device=generator.device, requires_grad=True)  # in steps of CAMERA_STEP
        self.best: Reached | None = None

    # ----------------------------------------------------------------------------
    # The two ways to come nearer.

    def descend(self, start: Tensor, steps: int) -> Iterator[Reached]:
        """Moves w [1, num_ws, w_dim], each row on its own (W+)."""
        spread = latent_spread(self.generator)
        moved = torch.zeros_like(start, requires_grad=True)

        def step() -> None:
            w = start + spread * moved
            self.loss(self.generator.planes(w), w).backward()

        def reached() -> tuple[Tensor, Planes, None]:
            w = start + spread * moved.detach()
            return w, self.generator.planes(w), None

        yield from self.follow([(moved, LATENT_RATE)], step, reached, steps)

    def tune(self, w: Tensor, start: Tuning | None, steps: int) -> Iterator[Reached]:
        """Moves the front plane of w's head; w stays."""
        with torch.no_grad():
            pivot = self.generator.planes(w)
        scale, channels = front_of(pivot).std(), front_of(pivot).shape[2]
        # The coarse one moves the whole face in a step or two, the fine one then draws it.
        coarse, fine = (
            torch.zeros(1, channels, texels, texels, device=w.device, requires_grad=True) for texels in OFFSET_TEXELS
        )
        if start is not None:
            fine.data.copy_(offset_of(start, fine) / scale)

        turns = itertools.count()

        def offset() -> Tensor:
            return fine + F.interpolate(coarse, fine.shape[2:], mode="bilinear")

        def step() -> None:
            moved = offset()
            planes = self.generator.survey(add_to_front(pivot, scale * moved))
            # A step has one look from aside; every other one is for the far half of a face that looks aside itself.
            far_half = abs(self.target.angles_rad[0]) > MIRRORED_FROM_RAD and next(turns) % 2
            aside = self.mirrored if far_half else self.identity_aside
            loss = self.loss(planes, w) + aside(planes, w)
            # Where the photo does not look, the plane stays as it was; and what differs from texel to texel would look
            # like paint from any other side.
            roughness = sum(moved.diff(dim=axis).square().mean() for axis in (2, 3))
            (loss + NEARNESS * moved.square().mean() + SMOOTHNESS * roughness).backward()

        def reached() -> tuple[Tensor, Planes, Tuning]:
            tuning = Tuning.of_offset((scale * offset())[0].detach().cpu().numpy())
            return w, self.generator.survey(tuned(pivot, tuning)), tuning

        yield from self.follow([(coarse, OFFSET_RATE), (fine, OFFSET_RATE)], step, reached, steps)

    def follow(self, parameters: list[tuple[Tensor, float]], step, reached, steps: int) -> Iterator[Reached]:
        """Adam from what `reached` gives at first, by the gradients that `step` leaves."""
        groups = [{"params": [parameter], "lr": rate, "first": rate} for parameter, rate in parameters]
        groups.append({"params": [self.camera], "lr": 1.0, "first": 1.0})
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        yield self.look(reached, 0, steps)
        for done in range(steps):
            if self.late:
                break
            share = self.share(done / steps)
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2)
            with torch.enable_grad():
                optimizer.zero_grad()
                step()
            optimizer.step()
            with torch.no_grad():
                most = self.camera.new_tensor(CAMERA_MOST) / self.camera.new_tensor(CAMERA_STEP)
                self.camera.clamp_(-most, most)
            last = done + 1 == steps or self.late
            if (done + 1) % LOOK_EVERY == 0 or last:
                yield self.look(reached, done + 1, steps)
            else:
                yield self.best._replace(done=done + 1, steps=steps, picture=None)

    @property
    def late(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.started > self.seconds

    def share(self, of_steps: float) -> float:
        """How much is over: steps or seconds, whichever is more."""
        if self.seconds is None:
            return of_steps
        return max(of_steps, min((time.monotonic() - self.started) / self.seconds, 1.0))

    # ----------------------------------------------------------------------------
    # What is looked at, and how it is judged.

    @torch.no_grad()
    def look(self, reached, done: int, steps: int) -> Reached:
        """The best so far, once the picture of what is reached has been judged."""
        w, planes, tuning = reached()
        camera, angles_deg = self.camera_label(), self.angles_deg()
        image = self.generator.render(planes, camera, w).image.clamp(-1, 1)
        small = F.interpolate(image, (COMPARED_PX, COMPARED_PX), mode="area")
        distance = torch.dist(self.judges.identity(small), self.target.embedding).item()
        if self.best is None or distance < self.best.distance:
            pixels = image[0].permute(1, 2, 0).add(1).mul(127.5).round().byte().cpu().numpy()
            self.best = Reached(done, steps, distance, w, tuning, angles_deg, Image.fromarray(pixels))
            return self.best
        return self.best._replace(done=done, steps=steps, picture=None)

    def angles_deg(self) -> Angles:
        yaw, pitch = (self.camera.detach().cpu() * torch.tensor(CAMERA_STEP))[:2].tolist()
        return tuple(math.degrees(angle + off) for angle, off in zip(self.target.angles_rad, (yaw, pitch)))

    def camera_label(self, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """[1, 25] of the photo's camera as far as it is learned, its principal point moved by shares of the width."""
        yaw, pitch, roll, across, down, zoom = self.camera * self.camera.new_tensor(CAMERA_STEP)
        return self.label(
            self.target.angles_rad[0] + yaw,
            self.target.angles_rad[1] + pitch,
            roll,
            zoom,
            (across + shift[0], down + shift[1]),
        )

    def label(self, yaw, pitch, roll=0.0, zoom=None, shift=None) -> Tensor:
        config = self.generator.config
        focal = config.focal if zoom is None else config.focal * zoom.exp()
        camera = camera_from_angles(
            yaw, pitch, roll, radius=config.camera_radius, pivot=config.pivot, focal=focal
        ).to(self.generator.device)  # fmt: skip
        if shift is not None:
            camera = camera + torch.zeros_like(camera).index_put(
                (torch.tensor([18, 21], device=camera.device),), torch.stack(shift)
            )  # cx and cy
        return camera[None]

    def view(self, planes: Planes, w: Tensor, camera: Tensor) -> RenderOutput:
        rays = min(RAYS, self.generator.config.ray_resolution)
        return self.generator.render(planes, camera, w, ray_resolution=rays)

    def loss(self, planes: Planes, w: Tensor) -> Tensor:
        """How far the picture from the photo's camera is from the photo. Rays meet other points of the planes in every
        step, a pixel apart at most: always at the same ones, they would draw a grid into the skin."""
        rays = min(RAYS, self.generator.config.ray_resolution)
        shift = ((torch.rand(2, generator=self.draws) - 0.5) / rays).tolist()
        truth, person, known = self.target.shifted(*shift)
        view = self.view(planes, w, self.camera_label(shift))
        image = F.interpolate(view.image, (COMPARED_PX, COMPARED_PX), mode="area")
        coarse_truth, coarse_person, coarse_known = (
            F.interpolate(x, view.raw.shape[-2:], mode="area") for x in (truth, person, known)
        )
        # Where nothing is compared, networks that look at whole pictures are shown the photo itself.
        shown = person * image + (1 - person) * truth
        return (
            PIXELS * mean_over((image - truth).abs(), person)
            + RAW * mean_over((view.raw - coarse_truth).abs(), coarse_person)
            + OUTLINE * mean_over((view.opacity - coarse_person).square(), coarse_known)
            + PERCEPTUAL * perceptual_distance(self.judges.perceptual, shown, truth, person)
            + IDENTITY * (self.judges.identity(shown) - self.target.embedding).square().sum()
        )

    def identity_aside(self, planes: Planes, w: Tensor) -> Tensor:
        """How unlike the photo's the face is from a camera at random (Eq. 6)."""
        turn = torch.randn(2, generator=self.draws) * torch.tensor(ASIDE_SPREAD_RAD)
        most = torch.tensor(ASIDE_MOST_RAD)
        camera = self.label(*turn.clamp(-most, most).tolist())
        image = self.view(planes, w, camera).image
        return ASIDE * (self.judges.identity(image) - self.target.embedding).square().sum()

    def mirrored(self, planes: Planes, w: Tensor) -> Tensor:
        """How far the half of the face that looks away from the photo's camera is from the other half's reflection:
        faces are nearly symmetric, and of that half the photo shows next to nothing (Yin et al. 2023)."""
        yaw, pitch, roll, across, down, zoom = self.camera.detach() * self.camera.new_tensor(CAMERA_STEP)
        yaw = -(self.target.angles_rad[0] + yaw)
        camera = self.label(yaw, self.target.angles_rad[1] + pitch, -roll, zoom, (-across, down))
        view = self.view(planes, w, camera)
        truth, person = (x.flip(-1) for x in (self.target.image, self.target.person))
        weight = person * F.interpolate(near_half(view, camera), person.shape[2:], mode="bilinear")
        image = F.interpolate(view.image, (COMPARED_PX, COMPARED_PX), mode="area")
        shown = weight * image + (1 - weight) * truth
        return PIXELS * mean_over((image - truth).abs(), weight) + PERCEPTUAL * perceptual_distance(
            self.judges.perceptual, shown, truth, weight
        )


@torch.no_grad()
def near_half(view: RenderOutput, cameras: Tensor) -> Tensor:
    """[B, 1, r, r] in [0, 1]: where a view shows the half of the face that is nearer to its camera."""
    origins, directions = camera_rays(cameras, view.depth.shape[-1])
    x = origins[..., 0] + view.depth.flatten(1) * directions[..., 0]  # of the surface; 0 on the midline
    return (x * origins[..., 0].sign() / MIDLINE_BLEND).clamp(0, 1).view_as(view.depth)


def mean_over(error: Tensor, mask: Tensor) -> Tensor:
    """The mean of an error [1, C, H, W] over a mask [1, 1, H, W]."""
    return (error * mask).sum() / (mask.sum() * error.shape[1]).clamp(min=1)


@torch.no_grad()
def sampled_latents(generator: TriPlaneGenerator, count: int = 1000, seed: int = 0) -> Tensor:
    z = torch.randn(count, generator.config.z_dim, generator=torch.Generator().manual_seed(seed))
    camera = generator.frontal_camera().expand(count, -1)
    return generator.mapping(z.to(generator.device), camera)[:, :1]


def mean_latent(generator: TriPlaneGenerator) -> Tensor:
    """[1, num_ws, w_dim] of the mapping network."""
    return sampled_latents(generator).mean(0, keepdim=True).repeat(1, generator.num_ws, 1)


def latent_spread(generator: TriPlaneGenerator) -> float:
    """Standard deviation of the mapping network's w."""
    return sampled_latents(generator).std(0).mean().item()


def load_judges(identity: FaceIdentity, perceptual: Path) -> Judges:
    """With dlib's network and a file of EfficientNet-Lite0's weights."""
    return Judges(identity, EfficientNetLite0.load(perceptual))
