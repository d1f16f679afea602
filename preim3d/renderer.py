"""Tri-planes and rays -> features, depth, opacity: the volume renderer of EG3D (Chan et al. 2022, sections 4.2, 4.3).

Notation: B batch, R rays, S samples along a ray, C channels. Depths are distances from the camera along unit rays.
"Coarse" samples are spread evenly, "fine" ones where the coarse pass found matter (NeRF, Mildenhall et al. 2020,
section 5.2). Nothing is drawn at random unless a `torch.Generator` is passed.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd.function import once_differentiable


# Which two coordinates each plane is read at, as (column, row). The third of "eg3d" ought to be (2, 1): a known bug
# that every published EG3D checkpoint was trained with.
PLANE_AXES = {
    "eg3d": ((0, 1), (0, 2), (2, 0)),
    "fixed": ((0, 1), (0, 2), (2, 1)),
}


# Of `render_guided_rays`: along how many steps a ray is followed roughly, below which raw density there is nothing (a
# 400th of the light in a unit of distance), and what share of the samples is spread evenly, whatever the guide says.
GUIDE_STEPS, NOTHING, EVENLY = 20, -5.0, 0.15
RAYS_AT_A_TIME = 8192  # in which each step is large and its numbers still stay in a processor's cache


class Rays(NamedTuple):
    """What the rays see.

    features: [B, R, C] in the range of the field's colours. depth: [B, R, 1], the mean depth of what was met; the
    farthest of all where nothing was. opacity: [B, R, 1] in [0, 1].
    """

    features: Tensor
    depth: Tensor
    opacity: Tensor


def sample_planes(
    planes: Tensor,  # [B, 3, C, H, H]
    points: Tensor,  # [B, N, 3], the box being [-box_warp / 2, box_warp / 2] in each coordinate
    box_warp: float = 1.0,  # Side of the cube that the planes cover; zero outside.
    plane_axes: Literal["eg3d", "fixed"] = "eg3d",
    head: Tensor | None = None,  # [N] which of the B each point belongs to, where points are [N, 3]
) -> Tensor:
    """Tri-plane features [B, N, C] or [N, C] of points: bilinear in each plane, then the mean over the three.

    On a GPU by `grid_sample`; on a CPU as one weighted sum of twelve rows of a table, which is several times faster
    there, and so everywhere where the points belong to several heads without order.
    """
    assert planes.ndim == 5 and planes.shape[1] == 3, planes.shape
    one_by_one = head is not None and len(planes) > 1
    if planes.device.type == "cpu" or one_by_one:
        return sample_planes_by_rows(planes, points, box_warp, plane_axes, head)
    if head is None:
        return sample_planes_by_grid(planes, points, box_warp, plane_axes)
    return sample_planes_by_grid(planes, points[None], box_warp, plane_axes)[0]


def sample_planes_by_grid(planes: Tensor, points: Tensor, box_warp: float, plane_axes: str) -> Tensor:
    """`sample_planes` by `grid_sample`, all three planes at once. Fastest where memory is [B, 3, C, H, H]."""
    assert points.ndim == 3 and len(points) == len(planes), (planes.shape, points.shape)
    places = points * (2 / box_warp)
    grid = torch.stack([torch.stack([places[..., i] for i in axes], -1) for axes in PLANE_AXES[plane_axes]], 1)
    grid = grid.flatten(0, 1)[:, None]  # [B * 3, 1, N, 2]
    features = F.grid_sample(planes.flatten(0, 1), grid, padding_mode="zeros", align_corners=False)
    return features.unflatten(0, (-1, 3)).mean(1).squeeze(2).transpose(1, 2)


def sample_planes_by_rows(
    planes: Tensor, points: Tensor, box_warp: float, plane_axes: str, head: Tensor | None = None
) -> Tensor:
    """`sample_planes` by `weighted_rows`. Fastest where memory is [B, H, H, 3, C]."""
    if head is None:
        assert points.ndim == 3 and len(points) == len(planes), (planes.shape, points.shape)
        head = torch.arange(len(points), device=points.device)[:, None]
    size = planes.shape[-1]

    # The two nearest rows or columns in each coordinate [3, ...], and their weights: none outside of the plane.
    position = points.movedim(-1, 0).contiguous() * (size / box_warp) + (size - 1) / 2  # Whole numbers are centres.
    low = position.floor()
    high = low + 1
    low_weight = (high - position) * ((low >= 0) & (low < size))
    high_weight = (position - low) * ((high >= 0) & (high < size))
    ends = [
        (low.clamp(0, size - 1).int(), low_weight),
        (high.clamp(0, size - 1).int(), high_weight),
    ]

    # The four corners in each of the three planes.
    rows, weights = [], []
    head_start = head.int() * size**2
    for plane, (column, row) in enumerate(PLANE_AXES[plane_axes]):
        for row_index, row_weight in ends:
            start = row_index[row] * size + head_start
            third = row_weight[row] / 3
            for column_index, column_weight in ends:
                rows.append((start + column_index[column]) * 3 + plane)
                weights.append(third * column_weight[column])
    table = planes.permute(0, 3, 4, 1, 2).reshape(-1, planes.shape[2])  # [B * H * H * 3, C]
    rows, weights = (torch.stack(corners, dim=-1).view(-1, 12) for corners in (rows, weights))
    return weighted_rows(table, rows, weights).view(*points.shape[:-1], table.shape[1])


def weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sums [N, C] of K weighted rows each of a table [T, C]: which rows [N, K], and their weights."""
    if table.device.type == "cpu" and not weights.requires_grad:
        return WeightedRows.apply(table, rows, weights)
    return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


class WeightedRows(torch.autograd.Function):
    """`embedding_bag` whose gradient for the table is a sparse product of scipy: 13 times faster than its own."""

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:  # [T, C], [N, K], [N, K] -> [N, C]
        ctx.save_for_backward(rows, weights)
        ctx.table_rows = len(table)
        return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, weights = (x.numpy() for x in ctx.saved_tensors)
        starts = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
        matrix = csr_array((weights.ravel(), rows.ravel(), starts), shape=(len(rows), ctx.table_rows))
        return torch.from_numpy(matrix.T @ gradient.contiguous().numpy()), None, None


def coarse_depths(
    start: float,
    end: float,
    samples: int,
    jitter: float | Tensor = 0.5,  # Place within each stratum in [0, 1]; broadcasts to [..., S].
    device: torch.device | None = None,
) -> Tensor:
    """Stratified depths [..., S]. As in EG3D a stratum is (end - start) / (S - 1) long: the last begins at `end`."""
    return torch.linspace(start, end, samples, device=device) + jitter * ((end - start) / (samples - 1))


def interval_weights(
    densities: Tensor,  # [..., S] raw, before the softplus
    depths: Tensor,  # [..., S] ascending
) -> Tensor:
    """What each of the S-1 intervals adds to the ray's colour [..., S-1] (NeRF, equation 3), density at mid-points."""
    # EG3D starts the density near softplus(-1), which is thin, so that a new network's volume is not opaque.
    density = F.softplus((densities[..., :-1] + densities[..., 1:]) / 2 - 1)
    alpha = 1 - torch.exp(-density * (depths[..., 1:] - depths[..., :-1]))
    # The epsilon keeps the gradient of the product finite behind a surface that is fully opaque.
    passed = torch.cumprod(1 - alpha[..., :-1] + 1e-10, dim=-1)
    return alpha * F.pad(passed, (1, 0), value=1.0)


def importance_depths(
    depths: Tensor,  # [..., S] of the coarse pass
    weights: Tensor,  # [..., S-1] of the coarse pass
    samples: int,
    u: Tensor | None = None,  # [..., samples] in [0, 1]; None = the middles of equal parts, (k + 0.5) / samples
) -> Tensor:
    """Fine depths [..., samples]: the smoothed coarse weights' distribution function, inverted at u. No gradient."""
    depths, weights = depths.detach(), weights.detach()
    shape = depths.shape[:-1]
    # Smoothing (mip-NeRF, Barron et al. 2021, section 3.1): maximum, then mean, of neighbours; .01 keeps some samples
    # for empty space.
    smooth = F.max_pool1d(weights.flatten(0, -2), 2, stride=1, padding=1)
    smooth = (smooth[..., :-1] + smooth[..., 1:]) / 2 + 0.01
    # The first and last are dropped. EG3D pairs the rest with mid-points from the first on, so the last mid-interval
    # gets no fine sample; 1e-5 keeps the division below finite.
    bins = (depths[..., :-1] + depths[..., 1:]).flatten(0, -2) / 2  # [-1, S-1]
    pdf = smooth[..., 1:-1] + 1e-5
    cdf = F.pad(torch.cumsum(pdf / pdf.sum(dim=-1, keepdim=True), dim=-1), (1, 0))  # [-1, S-2]

    if u is None:
        u = middles(samples, depths.device)
    fine = quantiles(cdf, bins, u.to(cdf).expand(*shape, samples).flatten(0, -2))
    return fine.view(*shape, samples)


def middles(parts: int, device: torch.device) -> Tensor:
    """[parts]: the middles of equal parts of [0, 1]."""
    return (torch.arange(parts, device=device) + 0.5) / parts


def quantiles(
    cdf: Tensor,  # [N, S] ascending from 0
    bins: Tensor,  # [N, S or more] where it has these values; between them it is linear
    u: Tensor,  # [N, K] in [0, 1]
) -> Tensor:
    """Where a distribution function reaches u [N, K]."""
    above = torch.searchsorted(cdf, u.contiguous(), right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=cdf.shape[-1] - 1)
    cdf_below, bin_below = cdf.gather(-1, below), bins.gather(-1, below)
    width = cdf.gather(-1, above) - cdf_below
    width = torch.where(width < 1e-5, torch.ones_like(width), width)  # Not a step of the function: stay at its left.
    return bin_below + (u - cdf_below) / width * (bins.gather(-1, above) - bin_below)


def sample_shares(
    densities: Tensor,  # [B, R, S] raw, before the softplus
    depths: Tensor,  # [B, R, S] in any order
    ascending: bool = False,  # Whether that order is from near to far.
) -> tuple[Tensor, Tensor, Tensor]:
    """How the samples of each ray composite (NeRF, equation 3; colours and densities at the mid-points of intervals).

    Returns:
        **shares** [B, R, S] of the samples in their ray's colour; **depth** [B, R, 1], the weighted mean, infinite
        where the ray met nothing; **weights** [B, R, S-1] of the intervals from near to far, whose sum is the opacity.
    """
    if not ascending:
        depths, order = torch.sort(depths, dim=-1)
        densities = densities.gather(-1, order)
    weights = interval_weights(densities, depths)
    opacity = weights.sum(dim=-1, keepdim=True)
    depth = (weights * (depths[..., :-1] + depths[..., 1:])).sum(dim=-1, keepdim=True) / 2
    # Two wheres: without the inner one the gradient of 0 / 0 would be not a number, whatever the outer one picks.
    met = opacity > 0
    depth = torch.where(met, depth / torch.where(met, opacity, 1.0), torch.inf)

    # An interval's colour is the mean of its ends', so each sample has half the weights of its two intervals. Sorting
    # these S numbers back is cheaper than sorting S x C colours.
    shares = (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2
    return shares if ascending else torch.zeros_like(shares).scatter(-1, order, shares), depth, weights


def blend(shares: Tensor, colors: Tensor) -> Tensor:
    """Shares [B, R, S] of colours [B, R, S, C] -> [B, R, C], in float32 within autocast too."""
    with torch.autocast(colors.device.type, enabled=False):
        return (shares[:, :, None] @ colors.float()).squeeze(2)


def march(
    colors: Tensor,  # [B, R, S, C]
    densities: Tensor,  # [B, R, S, 1] raw, before the softplus
    depths: Tensor,  # [B, R, S, 1] in any order
    background: float = 0.0,  # Colour behind the volume: 0 = EG3D's faces, 1 = white.
) -> tuple[Tensor, Tensor, Tensor]:
    """Composite the samples of each ray: features [B, R, C], and depth and weights as `sample_shares` gives them."""
    shares, depth, weights = sample_shares(densities.squeeze(-1), depths.squeeze(-1))
    return blend(shares, colors) + background * (1 - weights.sum(dim=-1, keepdim=True)), depth, weights


def render_rays(
    field: Callable[[Tensor], tuple[Tensor, Tensor]],  # points [B, N, 3] -> raw density [B, N, 1], colours [B, N, C]
    origins: Tensor,  # [B, R, 3]
    directions: Tensor,  # [B, R, 3] unit
    start: float,  # Nearest and farthest depth sampled.
    end: float,
    samples: int,  # Coarse samples, 4 or more.
    fine_samples: int,  # 0 = coarse only.
    background: float = 0.0,  # Colour behind the volume.
    jitter: float | Tensor = 0.5,  # Places of the coarse samples in their strata, [B, R, S] or one for all, in [0, 1].
    u: Tensor | None = None,  # Places of the fine samples [B, R, fine_samples] in [0, 1]; None = evenly spread.
    generator: torch.Generator | None = None,  # Draws jitter and u at random.
    points_at_a_time: int | None = None,  # Bounds the memory; None = all in one go, which a gradient needs.
) -> Rays:
    """Coarse pass, fine pass where the coarse one found matter, and both composited together."""
    jitter, u = _places(origins, samples, fine_samples, jitter, u, generator)
    depths = coarse_depths(start, end, samples, jitter, origins.device).expand(*origins.shape[:2], samples)
    step = origins.shape[1] if points_at_a_time is None else max(1, points_at_a_time // (samples + fine_samples))
    parts = [
        _render_rays(field, *(_cut(x, i, step) for x in (origins, directions, depths, u)), fine_samples, background)
        for i in range(0, origins.shape[1], step)
    ]
    return _whole(parts, depths)


def render_guided_rays(
    field: Callable[[Tensor], tuple[Tensor, Tensor]],  # points [N, 3] -> raw density [N, 1], colours [N, C]
    guide: Callable[[Tensor], Tensor],  # points [N, 3] -> raw density [N], roughly and at once
    origins: Tensor,  # [G, K, 3]: groups of K rays that lie side by side
    directions: Tensor,  # [G, K, 3] unit
    start: float,
    end: float,
    samples: int,
    background: float = 0.0,
) -> Rays:
    """What `render_rays` gives of one head, features [G, K, C] and so on: a guide stands in for the coarse pass, so
    that every sample lies where it counts; no gradient reaches it. It is asked once for each group, along its middle.
    Of the bundled model 10 samples come as near to the picture of 48 and 96 as 12 and 12 do."""
    groups = max(1, RAYS_AT_A_TIME // origins.shape[1])
    parts = [
        _render_guided_rays(field, guide, *part, start, end, samples, background)
        for part in zip(origins.split(groups), directions.split(groups))
    ]
    return Rays(*(torch.cat(part) for part in zip(*parts)))


def side_by_side(
    rays: Tensor,  # [N * size * size, C], those of N pictures, row by row
    size: int,
    side: int,  # of the groups; size is a multiple of it
) -> Tensor:
    """Groups of rays that lie side by side [G, side * side, C]."""
    rows = rays.view(-1, size // side, side, size // side, side, rays.shape[1])
    return rows.transpose(2, 3).reshape(-1, side**2, rays.shape[1])


def row_by_row(groups: Tensor, size: int, side: int) -> Tensor:
    """The groups of `side_by_side` as they were: [N * size * size, C]."""
    columns = groups.view(-1, size // side, size // side, side, side, groups.shape[2])
    return columns.transpose(2, 3).reshape(-1, groups.shape[2])


def _places(origins, samples, fine_samples, jitter, u, generator):
    """Jitter and u, drawn where there is a generator."""
    if generator is None:
        return jitter, u
    draw = torch.rand(*origins.shape[:2], samples + fine_samples, generator=generator, device=generator.device)
    return draw.to(origins.device).split([samples, fine_samples], dim=2)


def _cut(x: Tensor | None, first: int, count: int) -> Tensor | None:
    return x if x is None else x[:, first : first + count]


def _whole(parts: list[Rays], depths: Tensor) -> Rays:
    features, depth, opacity = (torch.cat(part, dim=1) for part in zip(*parts))
    # A ray that met nothing gets the farthest depth of all.
    return Rays(features, depth.clamp(max=depths.max()), opacity)


def _render_rays(field, origins, directions, depths, u, fine_samples, background) -> Rays:
    """`render_rays` at given coarse depths [B, R, S], infinite where nothing was met."""

    def sample(depths: Tensor) -> tuple[Tensor, Tensor]:
        points = origins[:, :, None] + depths[..., None] * directions[:, :, None]  # [B, R, S, 3]
        densities, colors = field(points.flatten(1, 2))
        return densities.view(depths.shape).float(), colors.unflatten(1, depths.shape[1:]).float()

    densities, colors = sample(depths)  # [B, R, S], [B, R, S, C]
    if fine_samples:
        fine = importance_depths(depths, interval_weights(densities.detach(), depths), fine_samples, u)
        fine_densities, fine_colors = sample(fine)
        densities, depths = torch.cat([densities, fine_densities], dim=2), torch.cat([depths, fine], dim=2)
    shares, depth, weights = sample_shares(densities, depths)
    features = blend(shares[:, :, : colors.shape[2]], colors)
    if fine_samples:
        features = features + blend(shares[:, :, colors.shape[2] :], fine_colors)
    opacity = weights.sum(dim=-1, keepdim=True)
    return Rays(features + background * (1 - opacity), depth, opacity)


def _render_guided_rays(field, guide, origins, directions, start, end, samples, background) -> Rays:
    """`render_guided_rays` of as many groups as are computed at a time."""
    with torch.no_grad():
        edges = torch.linspace(start, end, GUIDE_STEPS + 1, device=origins.device)
        middle = origins.mean(1, keepdim=True) + edges[:, None] * directions.mean(1, keepdim=True)  # [G, STEPS + 1, 3]
        rough = guide(middle.flatten(0, 1)).view(len(origins), -1)
        hit = (rough.amax(1) > NOTHING).nonzero().squeeze(1)
        # A step further to either side, as the guide does not know where in a step a surface lies.
        weights = F.max_pool1d(interval_weights(rough[hit], edges)[:, None], 3, stride=1, padding=1)[:, 0]
        cdf = F.pad((weights + EVENLY / GUIDE_STEPS).cumsum(1), (1, 0))
        cdf = cdf / cdf[:, -1:]
        depths = quantiles(cdf, edges.expand(cdf.shape), middles(samples, cdf.device).expand(len(hit), -1))
        depths = depths[:, None].expand(-1, origins.shape[1], -1)  # [hit, K, S]

    points = origins[hit, :, None] + depths[..., None] * directions[hit, :, None]
    densities, colors = (x.float().unflatten(0, depths.shape) for x in field(points.flatten(0, 2)))
    shares, depth, weights = sample_shares(densities.squeeze(3), depths, ascending=True)
    opacity = weights.sum(dim=-1, keepdim=True)
    seen = blend(shares, colors) + background * (1 - opacity), depth.clamp(max=end), opacity
    nothing = background, end, 0.0
    return Rays(
        *(x.new_full((*origins.shape[:2], x.shape[2]), free).index_copy(0, hit, x) for x, free in zip(seen, nothing))
    )
