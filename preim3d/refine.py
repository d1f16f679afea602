"""crop and w -> a w that looks more like the photo: the latent is optimised, from the encoder's answer on.

Optimisation-based inversion as in pSp and EG3D, held near the encoder's latent, where the directions are known to
edit well (paper, section 3.4). The photo's light and background are not the generator's: the head alone is compared,
and its overall brightness and tint are left free.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from preim3d.camera import camera_from_angles


STEPS = 40
COMPARED_PX = 64  # side of the pictures compared, and of the rays at most: rendering is the cost, and goes by the ray
RATE = 0.03  # of Adam, in spreads of the latent
OUTLINE = 0.5  # weight of the squared change of opacity: else hair grows into a background of its colour
NEARNESS = 0.02  # weight of the squared distance to the encoder's latent, in the same unit


class Step(NamedTuple):
    """The best latent so far."""

    done: int  # steps, of STEPS
    error: float  # mean absolute difference of colours over the head, in [0, 2]
    w: np.ndarray  # float32 [num_ws, w_dim]


def refine(generator, crop: Image.Image, w: np.ndarray, yaw_deg: float, pitch_deg: float) -> Iterator[Step]:
    """Optimises w [num_ws, w_dim] towards the crop, seen from yaw and nominal pitch; one item before and after each
    step. The caller may stop at any time and keep the last."""
    device = generator.device
    start = torch.from_numpy(w).to(device)[None]
    spread = start.std()
    # One offset for all rows: apart they leave W, and the head grows fins where the photo does not look.
    moved = torch.zeros_like(start[:, :1], requires_grad=True)
    config = generator.config
    camera = camera_from_angles(
        math.radians(yaw_deg),
        math.radians(pitch_deg),
        radius=config.camera_radius,
        pivot=config.pivot,
        focal=config.focal,
    )[None].to(device)
    photo = crop.convert("RGB").resize((COMPARED_PX, COMPARED_PX), Image.Resampling.BOX)
    target = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].to(device) / 127.5 - 1
    optimizer = torch.optim.Adam([moved], lr=RATE)
    rays = min(COMPARED_PX, config.ray_resolution)
    best = head = None
    for step in range(STEPS + 1):
        with torch.enable_grad():
            latent = start + spread * moved
            output = generator.render(generator.planes(latent), camera, latent, ray_resolution=rays)
            image = F.interpolate(output.image, (COMPARED_PX, COMPARED_PX), mode="area")
            opacity = F.interpolate(output.opacity, (COMPARED_PX, COMPARED_PX), mode="area")
            if head is None:
                head = opacity.detach()
            difference = image - target
            # The light of the photo is not to be learned into the skin: its mean over the head is left out.
            light = (difference * head).sum((2, 3), keepdim=True) / head.sum().clamp(min=1)
            error = ((difference - light.detach() * 0.5).abs() * head).sum() / (3 * head.sum().clamp(min=1))
            loss = error + OUTLINE * (opacity - head).square().mean() + NEARNESS * moved.square().mean()
            if best is None or error.item() < best.error:
                best = Step(step, error.item(), latent[0].detach().float().cpu().numpy())
            yield best._replace(done=step)
            if step < STEPS:
                (moved.grad,) = torch.autograd.grad(loss, [moved])
                optimizer.step()
