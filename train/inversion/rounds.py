"""One round of the encoder's training: a batch of photos (out-domain) or of generated images (in-domain) -> the terms
of Eq. 7.

    images ── E ──> w ──┬─ L_w against the true w, where it is known                                     (Eq. 4)
                        └─ G(w, c) ─┬─ c = the camera of the picture wanted: L_2, L_LPIPS, L_ID          (Eq. 5, 7)
                                    └─ c = N cameras around it: L_ID, which sees the person from aside   (Eq. 6)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preim3d.camera import angles_from_camera, camera_from_angles
from preim3d.generator import TriPlaneGenerator
from train.inversion import losses


IN_DOMAIN_YAW_DEG, IN_DOMAIN_PITCH_DEG = 30.0, 20.0  # A.1
SURROUND_YAW_DEG, SURROUND_PITCH_DEG = 20.0, 5.0  # A.1, section 3.2
SURROUND_VIEWS = {"input": 4, "frontal": 3}  # the paper's, the released code's
FRONTAL_JITTER_RAD = (0.25, 0.12)  # the released code's


class Batch(NamedTuple):
    """What the encoder sees, and what is known of it.

    images: [B, 3, S, S] in [-1, 1]. w: [B, num_ws, w_dim], or None. targets: pictures [P, 3, H, W] and cameras [P,
    25] that the first P images' w should give; for a posed photo the photo itself.
    """

    images: Tensor
    w: Tensor | None
    targets: list[tuple[Tensor, Tensor]]


@dataclass
class Objective:
    """The networks that judge w, and `terms` that asks them."""

    generator: TriPlaneGenerator
    perceptual: Callable[[Tensor, Tensor], Tensor]  # images, truth -> L_LPIPS
    identity: nn.Module  # see `losses.embed`
    surround: Literal["input", "frontal"] = "input"  # what the views of Eq. 6 lie around

    def terms(
        self,
        w: Tensor,  # [B, num_ws, w_dim]
        batch: Batch,
        weights: dict[str, float],  # Only terms with a weight are computed.
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        """The terms of Eq. 7 by name, unweighted, each averaged over the batch's targets."""
        wanted, terms = {name for name, weight in weights.items() if weight}, {}
        if "w" in wanted and batch.w is not None:
            terms["w"] = losses.latent_norm_loss(w, batch.w)
        if not batch.targets or not wanted & {"l2", "lpips", "id", "sur"}:
            return terms
        w = w[: len(batch.targets[0][0])].float()
        planes = self.generator.planes(w)
        judges = {
            "l2": losses.pixel_loss,
            "lpips": self.perceptual,
            "id": lambda images, truth: losses.identity_loss(self.identity, images, truth),
        }
        for truth, cameras in batch.targets:
            images = self._view(planes, cameras, w, truth.shape[-1])
            for name, judge in judges.items():
                if name in wanted:
                    terms[name] = terms.get(name, 0.0) + judge(images, truth) / len(batch.targets)
        if "sur" in wanted:
            truth, cameras = batch.targets[0]
            around = surround_cameras(cameras, rng, self.generator, self.surround)  # [N, P, 25]
            views = [self._view(planes, c, w, truth.shape[-1]) for c in around]
            terms["sur"] = losses.surround_identity_loss(self.identity, torch.stack(views, 1), truth)
        return terms

    def _view(self, planes: Tensor, cameras: Tensor, w: Tensor, size: int) -> Tensor:
        """Images [P, 3, size, size] in [-1, 1] of w [P, num_ws, w_dim] from cameras [P, 25]."""
        return resize(self.generator.render(planes, cameras, w).image, size)


class GeneratedImages:
    """In-domain images: known w seen from random cameras, rendered anew for every batch."""

    def __init__(
        self,
        generator: TriPlaneGenerator,
        latents: Callable[[int, np.random.Generator], Tensor],  # count -> w [count, num_ws, w_dim]
        size: int,  # side of the images
    ):
        self.generator, self.latents, self.size = generator, latents, size

    @torch.no_grad()
    def draw(self, count: int, rng: np.random.Generator) -> Batch:
        w = self.latents(count, rng)
        yaw, pitch = _uniform(count, rng, IN_DOMAIN_YAW_DEG), _uniform(count, rng, IN_DOMAIN_PITCH_DEG)
        cameras = cameras_of(self.generator, yaw, pitch)
        images = resize(self.generator.render(self.generator.planes(w), cameras, w).image, self.size)
        # Of 256 levels, as a photo has them.
        images = images.add(1).mul(127.5).round().clamp(0, 255) / 127.5 - 1
        return Batch(images, w, [(images, cameras)])


def sample_latents(
    generator: TriPlaneGenerator, count: int, rng: np.random.Generator, truncation: float = 1.0
) -> Tensor:
    """w [count, num_ws, w_dim] of normal z; a generator conditioned on poses is told the frontal one."""
    z = torch.from_numpy(rng.standard_normal((count, generator.config.z_dim))).float().to(generator.device)
    with torch.no_grad():
        return generator.mapping(z, generator.frontal_camera().expand(count, -1), truncation)


def surround_cameras(
    cameras: Tensor,  # [B, 25] of the input views
    rng: np.random.Generator,
    generator: TriPlaneGenerator,
    around: Literal["input", "frontal"] = "input",
) -> Tensor:
    """[N, B, 25]: N views of each head, uniform within yaw +-20 and nominal pitch +-5 degrees of its camera (A.1)."""
    shape = SURROUND_VIEWS[around], len(cameras)
    yaw, pitch = _uniform(shape, rng, SURROUND_YAW_DEG), _uniform(shape, rng, SURROUND_PITCH_DEG)
    if around == "input":
        own_yaw, own_pitch = angles_from_camera(cameras.cpu())
        yaw, pitch = yaw + own_yaw, pitch + own_pitch
    else:
        yaw, pitch = (
            angle + torch.from_numpy(rng.normal(0, spread, shape)).float()
            for angle, spread in zip((yaw, pitch), FRONTAL_JITTER_RAD)
        )
    return cameras_of(generator, yaw, pitch)


def cameras_of(generator: TriPlaneGenerator, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Cameras [..., 25] at yaw and nominal pitch [...] in radians, at the generator's distance and focal length."""
    config = generator.config
    cameras = camera_from_angles(yaw, pitch, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
    return cameras.to(generator.device)


def resize(images: Tensor, size: int) -> Tensor:
    """[B, 3, H, H] -> [B, 3, size, size], averaging where it shrinks."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _uniform(shape, rng: np.random.Generator, limit_deg: float) -> Tensor:
    return torch.from_numpy(rng.uniform(-math.radians(limit_deg), math.radians(limit_deg), shape)).float()
