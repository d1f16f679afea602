"""What the generator's planes are asked: colours along rays, matter at surfaces and none before, sharp pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.generator import TriPlaneGenerator
from preim3d.renderer import march, render_rays
from train.model.field_batches import FieldBatch


GUIDED_COARSE, GUIDED_NEAR, NEAR_WIDTH = (
    12,
    6,
    0.06,
)  # samples of a guided ray, and the spread of those near the surface
SURFACE_DEPTH = (
    0.012  # behind a surface there is matter for at least this much (frames of glasses are thinner than more)
)
FREE_GAP, FREE_REACH = 0.012, 0.9  # in front of it nothing, from the gap on

LOSS_WEIGHTS = {
    "rays": 2.0,
    "opacity": 0.5,
    "surface": 1.5,
    "matter": 0.08,
    "space": 0.08,
    "patches": 2.0,
    "edges": 1.0,
}


def losses(
    network: TriPlaneGenerator,
    batch: FieldBatch,
    ws: Tensor,  # [B, num_ws, w_dim] of its heads
) -> dict[str, Tensor]:
    """The terms of LOSS_WEIGHTS that this batch has something for."""
    planes = network.planes(ws)
    terms = guided_ray_losses(network, planes, batch) | point_losses(network, planes, batch)
    if len(batch.patch_images):
        terms |= patch_losses(network, planes, ws, batch)
    return terms


def guided_ray_losses(network: TriPlaneGenerator, planes: Tensor, batch: FieldBatch) -> dict[str, Tensor]:
    """Colour and opacity of rays, sampled evenly and, where the true depth is known, near the surface."""
    config = network.config
    near, span = config.ray_start, config.ray_end - config.ray_start
    shape = batch.ray_depths.shape
    device = planes.device
    even = (
        near
        + span
        * (torch.arange(GUIDED_COARSE, device=device) + torch.rand(*shape, GUIDED_COARSE, device=device))
        / GUIDED_COARSE
    )
    around = batch.ray_depths[..., None] + NEAR_WIDTH * (torch.rand(*shape, GUIDED_NEAR, device=device) - 0.4)
    anywhere = near + span * torch.rand(*shape, GUIDED_NEAR, device=device)
    depths = torch.cat([even, torch.where(batch.ray_depths[..., None] > 0, around, anywhere)], -1).sort(-1)[
        0
    ]  # [B, R, S]
    points = batch.ray_origins[:, :, None] + batch.ray_directions[:, :, None] * depths[..., None]
    density, color = network.decode(planes, points.flatten(1, 2))
    density, color = (x.float().unflatten(1, depths.shape[1:]) for x in (density, color[..., :3]))
    seen, _, weights = march(color, density, depths[..., None], config.background)
    return {
        "rays": (seen - batch.ray_colors).abs().mean(),
        "opacity": (weights.sum(2).squeeze(-1) - batch.ray_opacity).square().mean(),
    }


def point_losses(network: TriPlaneGenerator, planes: Tensor, batch: FieldBatch) -> dict[str, Tensor]:
    """Colour and matter just behind surface points, nothing before them."""
    points, directions = batch.points, batch.point_directions
    half = points.shape[1] // 2
    place = torch.rand(*points.shape[:2], 1, device=points.device)
    behind = place * SURFACE_DEPTH
    # Half of the free space is probed close to the surface, where it is hard, half all the way to the camera.
    before = -FREE_GAP - torch.where(place < 0.5, place * 0.12, (place - 0.5) * 2 * FREE_REACH)
    offset = torch.cat([behind[:, :half], before[:, half:]], 1)
    density, color = network.decode(planes, torch.cat([points + directions * offset, batch.empty_points], 1))
    density = F.softplus(density.float().squeeze(-1) - 1)
    # The chance that light passes a centimetre of this density (negative log-likelihoods of opaque and of free).
    thickness = density * SURFACE_DEPTH
    matter = -torch.log1p(-torch.exp(-thickness[:, :half] - 1e-3))
    inside = (points.abs() < network.config.box_warp / 2).all(-1)[:, :half].float()
    return {
        "surface": ((color[:, :half, :3].float() - batch.point_colors[:, :half]).abs().mean(-1) * inside).mean(),
        "matter": (matter * inside).clamp(max=6).mean(),
        "space": (thickness[:, half:] * 4).clamp(max=6).mean(),
    }


def patch_losses(network: TriPlaneGenerator, planes: Tensor, ws: Tensor, batch: FieldBatch) -> dict[str, Tensor]:
    """Pixels and edges of the final picture's patches, as inference makes them."""
    config = network.config
    count = len(batch.patch_images)
    side = round(batch.patch_origins.shape[1] ** 0.5)
    rays = render_rays(
        lambda points: network.decode(planes[:count], points), batch.patch_origins, batch.patch_directions,
        config.ray_start, config.ray_end, config.coarse_samples, config.fine_samples, background=config.background,
    )  # fmt: skip
    features = rays.features.permute(0, 2, 1).unflatten(2, (side, side)) * 2 - 1
    image = network.superresolution(features, ws[:count, -1]).float()
    raw = F.interpolate(features[:, :3].float(), scale_factor=2, mode="bilinear", align_corners=False)
    weights = batch.patch_weights / batch.patch_weights.mean()
    error, raw_error = ((x - batch.patch_images) * weights for x in (image, raw))
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return {"patches": 0.5 * error.abs().mean() + 0.1 * raw_error.abs().mean(), "edges": 0.5 * edges}
