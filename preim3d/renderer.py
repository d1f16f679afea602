"""Tri-planes and rays -> features, depth, opacity: the volume renderer of EG3D (Chan et al. 2022, sections 4.2, 4.3).

Notation: B batch, R rays, S samples along a ray, C channels. Depths are distances from the camera along unit rays.
"Coarse" samples are spread evenly, "fine" ones where the coarse pass found matter (NeRF, Mildenhall et al. 2020,
section 5.2). Nothing is drawn at random unless a `torch.Generator` is passed.
"""

import math
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


# What `render_visible_rays` leaves out: samples behind where this share of the light is left, and colours of samples
# with less than this share of their ray's. Pictures of the bundled model keep 70 dB to whole ones.
DARK, LEAST_SHARE = 1e-2, 1e-3
RAYS_AT_A_TIME = 8192  # in which each step is large and its numbers still stay in a processor's cache
SAMPLES_AT_A_TIME = 3  # after which a ray may be stopped


class Rays(NamedTuple):
    """What the rays see.

    features: [B, R, C] in the range of the field's colours. depth: [B, R, 1], the mean depth of what was met; the
    farthest of all where nothing was. opacity: [B, R, 1] in [0, 1].
    """

    features: Tensor
    depth: Tensor
    opacity: Tensor


class Field(NamedTuple):
    """What rays run through, asked step by step: colours cost as much as densities, and most samples show none.

    near: points [N, 3] of heads [N] -> [N] bool: where there may be matter. density: points and heads likewise -> raw
    density [N], and traces, tensors [N, ...] from which `color` makes the colours [N, C]. empty: the raw density where
    nothing is near.
    """

    near: Callable[[Tensor, Tensor], Tensor]
    density: Callable[[Tensor, Tensor], tuple[Tensor, tuple[Tensor, ...]]]
    color: Callable[[tuple[Tensor, ...]], Tensor]
    empty: float


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
        u = (torch.arange(samples, device=depths.device) + 0.5) / samples
    u = u.to(cdf).expand(*shape, samples).flatten(0, -2).contiguous()
    above = torch.searchsorted(cdf, u, right=True)
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=cdf.shape[-1] - 1)
    cdf_below, bin_below = cdf.gather(-1, below), bins.gather(-1, below)
    width = cdf.gather(-1, above) - cdf_below
    width = torch.where(width < 1e-5, torch.ones_like(width), width)  # Not a step of the function: stay at its left.
    fine = bin_below + (u - cdf_below) / width * (bins.gather(-1, above) - bin_below)
    return fine.view(*shape, samples)


def sample_shares(
    densities: Tensor,  # [B, R, S] raw, before the softplus
    depths: Tensor,  # [B, R, S] in any order
) -> tuple[Tensor, Tensor, Tensor]:
    """How the samples of each ray composite (NeRF, equation 3; colours and densities at the mid-points of intervals).

    Returns:
        **shares** [B, R, S] of the samples in their ray's colour; **depth** [B, R, 1], the weighted mean, infinite
        where the ray met nothing; **weights** [B, R, S-1] of the intervals from near to far, whose sum is the opacity.
    """
    depths, order = torch.sort(depths, dim=-1)
    weights = interval_weights(densities.gather(-1, order), depths)
    opacity = weights.sum(dim=-1, keepdim=True)
    depth = (weights * (depths[..., :-1] + depths[..., 1:])).sum(dim=-1, keepdim=True) / 2
    # Two wheres: without the inner one the gradient of 0 / 0 would be not a number, whatever the outer one picks.
    met = opacity > 0
    depth = torch.where(met, depth / torch.where(met, opacity, 1.0), torch.inf)

    # An interval's colour is the mean of its ends', so each sample has half the weights of its two intervals. Sorting
    # these S numbers back is cheaper than sorting S x C colours.
    shares = (F.pad(weights, (1, 0)) + F.pad(weights, (0, 1))) / 2
    return torch.zeros_like(shares).scatter(-1, order, shares), depth, weights


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


def render_visible_rays(
    field: Field,
    origins: Tensor,  # [B, R, 3]
    directions: Tensor,  # [B, R, 3] unit
    start: float,
    end: float,
    samples: int,
    fine_samples: int,
    background: float = 0.0,
    jitter: float | Tensor = 0.5,
    u: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Rays:
    """What `render_rays` gives of opaque things, nearly and without a gradient: only what shows is computed. No
    density where nothing is near or a ray has been stopped, no colour of a sample that hardly counts."""
    batch, rays = origins.shape[:2]
    jitter, u = _places(origins, samples, fine_samples, jitter, u, generator)
    depths = coarse_depths(start, end, samples, jitter, origins.device).expand(batch, rays, samples)
    head = torch.arange(batch, device=origins.device)[:, None].expand(batch, rays)
    flat = [x if x is None else x.flatten(0, 1) for x in (origins, directions, depths, head, u)]
    parts = [
        _render_visible_rays(field, *(_cut(x, i, RAYS_AT_A_TIME, dim=0) for x in flat), fine_samples, background)
        for i in range(0, batch * rays, RAYS_AT_A_TIME)
    ]
    rays_seen = _whole(parts, depths, dim=0)
    return Rays(*(x.unflatten(0, (batch, rays)) for x in rays_seen))


def _places(origins, samples, fine_samples, jitter, u, generator):
    """Jitter and u, drawn where there is a generator."""
    if generator is None:
        return jitter, u
    draw = torch.rand(*origins.shape[:2], samples + fine_samples, generator=generator, device=generator.device)
    return draw.to(origins.device).split([samples, fine_samples], dim=2)


def _cut(x: Tensor | None, first: int, count: int, dim: int = 1) -> Tensor | None:
    return x if x is None else x.narrow(dim, first, min(count, x.shape[dim] - first))


def _whole(parts: list[Rays], depths: Tensor, dim: int = 1) -> Rays:
    features, depth, opacity = (torch.cat(part, dim=dim) for part in zip(*parts))
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


class _Samples:
    """What a field says at the samples of R rays, as far as it is asked."""

    def __init__(self, field: Field, origins: Tensor, directions: Tensor, head: Tensor, count: int):
        self.field, self.origins, self.directions, self.head = field, origins, directions, head
        self.densities = origins.new_full((len(origins), count), field.empty)
        # Of each sample among the traces, -1 where there is none.
        self.places = torch.full_like(self.densities, -1, dtype=torch.int32)
        self.traces: list[tuple[Tensor, ...]] = []
        self.asked = 0

    def ask(self, rays: Tensor, depths: Tensor, column: int, wanted: Tensor | None = None) -> None:
        """Of rays [L] at depths [L, K], which are the samples from that column on; `wanted` [L, K] bool says which."""
        points = (self.origins[rays, None] + depths[..., None] * self.directions[rays, None]).flatten(0, 1)
        head = self.head[rays, None].expand(depths.shape).flatten()
        near = self.field.near(points, head)
        if wanted is not None:
            near = near & wanted.flatten()
        near = near.nonzero().squeeze(1)
        density, traces = self.field.density(points[near], head[near])
        count, each = self.densities.shape[1], depths.shape[1]
        at = rays[near // each] * count + column + near % each
        self.densities.view(-1)[at] = density.float()
        self.places.view(-1)[at] = torch.arange(self.asked, self.asked + len(at), dtype=torch.int32, device=at.device)
        self.traces.append(traces)
        self.asked += len(at)

    def blend(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Shares [R, S] of the samples -> features [R, C] of those that count, and the sum of their shares [R, 1]."""
        counts = (shares > LEAST_SHARE) & (self.places >= 0)
        places, shares = self.places[counts], shares[counts]
        shown = torch.zeros(self.asked, dtype=torch.bool, device=places.device)
        shown[places] = True
        parts = zip(self.traces, shown.split([len(traces[0]) for traces in self.traces]))
        colors = torch.cat([self.field.color(tuple(trace[part] for trace in traces)) for traces, part in parts])
        rows = (shown.cumsum(0) - 1)[places]
        starts = F.pad(counts.sum(1).cumsum(0)[:-1], (1, 0))
        features, total = (
            F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=shares)
            for table in (colors.float(), shares.new_ones(len(colors), 1))
        )
        return features, total


def _render_visible_rays(field, origins, directions, depths, head, u, fine_samples, background) -> Rays:
    """`render_visible_rays` of rays [R, 3] at given coarse depths [R, S], infinite where nothing was met."""
    rays, count = depths.shape
    seen = _Samples(field, origins, directions, head, count + fine_samples)
    everyone = torch.arange(rays, device=depths.device)

    # From near to far, as long as a ray is not stopped.
    passed = depths.new_zeros(rays)  # optical depth so far
    stop = torch.full((rays,), count - 1, device=depths.device)  # the sample at which it is, or the last
    lit = everyone
    for first in range(0, count, SAMPLES_AT_A_TIME):
        end = min(first + SAMPLES_AT_A_TIME, count)
        seen.ask(lit, depths[lit, first:end], first)
        reach = slice(max(first - 1, 0), end)
        density = seen.densities[lit, reach]
        steps = F.softplus((density[:, :-1] + density[:, 1:]) / 2 - 1) * depths[lit, reach].diff(dim=1)
        depth = passed[lit, None] + steps.cumsum(1)
        passed[lit] = depth[:, -1]
        dark = depth > -math.log(DARK)
        stopped = dark[:, -1]
        stop[lit[stopped]] = end - dark[stopped].sum(1)
        lit = lit[~stopped]

    # Behind, the density stays what it was there: whatever light a fine sample lets through ends soon.
    stop = stop[:, None]
    behind, end = seen.densities.gather(1, stop), torch.where(stop < count - 1, depths.gather(1, stop), torch.inf)
    densities = torch.where(depths > end, behind, seen.densities[:, :count])
    if fine_samples:
        fine = importance_depths(depths, interval_weights(densities, depths), fine_samples, u)
        seen.ask(everyone, fine, count, fine <= end)
        fine_densities = torch.where(fine > end, behind, seen.densities[:, count:])
        densities, depths = torch.cat([densities, fine_densities], dim=1), torch.cat([depths, fine], dim=1)
    shares, depth, weights = (x[0] for x in sample_shares(densities[None], depths[None]))
    features, counted = seen.blend(shares)
    opacity = weights.sum(dim=-1, keepdim=True)
    # What was left out has the colour of the rest, where there is any.
    features = features * torch.where(counted > 0, opacity / counted, 1.0)
    return Rays(features + background * (1 - opacity), depth, opacity)
