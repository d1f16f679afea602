import math

import pytest
import torch
import torch.nn.functional as F

from preim3d.camera import camera_from_angles, camera_rays
from preim3d.renderer import (
    PLANE_AXES,
    Rays,
    coarse_depths,
    importance_depths,
    interval_weights,
    march,
    render_guided_rays,
    render_rays,
    row_by_row,
    sample_planes,
    sample_planes_by_grid,
    sample_planes_by_rows,
    side_by_side,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def sample_planes_slow(planes, points, box_warp, plane_axes):
    """`sample_planes` by grid_sample, plane by plane."""
    features = []
    for plane, axes in zip(planes.unbind(1), PLANE_AXES[plane_axes]):
        grid = (points * (2 / box_warp))[:, None, :, list(axes)]
        features.append(F.grid_sample(plane, grid, padding_mode="zeros", align_corners=False)[:, :, 0])
    return torch.stack(features).mean(dim=0).transpose(1, 2)


@pytest.mark.parametrize("plane_axes", ["eg3d", "fixed"])
@pytest.mark.parametrize("points_need_gradient", [False, True])
def test_planes_are_read_as_grid_sample_reads_them(plane_axes, points_need_gradient):
    points = (torch.rand(2, 300, 3) - 0.5) * 2  # half of them outside of the box in some coordinate
    points[:, 0] = torch.tensor([0.35, -0.35, 0.0])  # on the faces of the box
    answers = []
    for sample in (sample_planes_slow, sample_planes, sample_planes_by_rows, sample_planes_by_grid):
        planes = torch.randn(2, 3, 5, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        place = points.clone().requires_grad_(points_need_gradient)
        features = sample(planes, place, 0.7, plane_axes)
        features.square().sum().backward()
        answers.append([features, planes.grad] + ([place.grad] if points_need_gradient else []))
    slow, *others = answers
    for fast in others:
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("heads", [1, 2])
def test_a_gpu_reads_planes_as_a_cpu_does(heads):
    planes, points = torch.randn(heads, 3, 5, 8, 8), (torch.rand(300, 3) - 0.5) * 2
    head = torch.randint(heads, (300,))
    there = sample_planes(planes.cuda(), points.cuda(), 0.7, "fixed", head.cuda()).cpu()
    torch.testing.assert_close(there, sample_planes(planes, points, 0.7, "fixed", head), atol=1e-4, rtol=1e-4)


def test_far_points_read_zero():
    points = torch.tensor([[[9.0, 9, 9], [-1e6, 0.9, 2]]])
    assert sample_planes(torch.randn(1, 3, 4, 8, 8), points).abs().max() == 0


def test_coarse_depths_begin_each_stratum_and_may_pass_the_end():
    assert coarse_depths(2.0, 3.0, 5, jitter=0.0).tolist() == pytest.approx([2, 2.25, 2.5, 2.75, 3])
    assert coarse_depths(2.0, 3.0, 5).tolist() == pytest.approx([2.125, 2.375, 2.625, 2.875, 3.125])


def test_an_even_fog_follows_beer_and_lambert():
    depths = torch.linspace(1, 3, 9)
    density = 0.7
    raw = math.log(math.expm1(density)) + 1  # softplus(raw - 1) = density
    weights = interval_weights(torch.full((9,), raw), depths)
    assert weights.sum().item() == pytest.approx(1 - math.exp(-density * 2), abs=1e-6)
    assert weights[3].item() == pytest.approx(math.exp(-density * 0.75) - math.exp(-density), abs=1e-6)


def march_slow(colors, densities, depths):
    """Sort everything, take mid-points, multiply what is left of the light interval by interval."""
    order = depths.argsort(dim=2)
    colors, densities, depths = (x.gather(2, order.expand_as(x)) for x in (colors, densities, depths))
    light, total = torch.ones_like(depths[:, :, 0]), torch.zeros_like(colors[:, :, 0])
    for k in range(depths.shape[2] - 1):
        density = F.softplus((densities[:, :, k] + densities[:, :, k + 1]) / 2 - 1)
        passes = torch.exp(-density * (depths[:, :, k + 1] - depths[:, :, k]))
        total = total + light * (1 - passes) * (colors[:, :, k] + colors[:, :, k + 1]) / 2
        light = light * passes
    return total, 1 - light


def test_marching_shares_is_marching_sorted_samples():
    colors, densities, depths = torch.rand(2, 6, 11, 4), torch.randn(2, 6, 11, 1) * 5, torch.rand(2, 6, 11, 1) + 2
    features, _, weights = march(colors, densities, depths)
    slow, opacity = march_slow(colors, densities, depths)
    torch.testing.assert_close(features, slow, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.sum(dim=2, keepdim=True), opacity, atol=1e-6, rtol=1e-5)


def test_background_fills_what_is_not_opaque():
    densities = torch.stack([torch.full((1, 5, 1), -50.0), torch.full((1, 5, 1), 500.0)], dim=1)
    depths = torch.linspace(1, 2, 5).view(1, 1, 5, 1).expand(1, 2, 5, 1)
    features, _, _ = march(torch.full((1, 2, 5, 3), 0.25), densities, depths, background=0.75)
    torch.testing.assert_close(features[0, :, 0], torch.tensor([0.75, 0.25]))


def test_an_empty_ray_is_infinitely_deep_and_has_a_finite_gradient():
    densities = torch.full((1, 1, 6, 1), -500.0, requires_grad=True)
    _, depth, _ = march(torch.zeros(1, 1, 6, 3), densities, torch.linspace(1, 2, 6).view(1, 1, 6, 1))
    assert depth.isinf().all()
    depth.clamp(max=2).sum().backward()
    assert densities.grad.isfinite().all()


def test_fine_samples_gather_where_the_matter_is():
    depths = torch.linspace(2, 3, 21).expand(1, 1, 21)
    weights = torch.zeros(1, 1, 20)
    weights[..., 10] = 1  # between depths 2.5 and 2.55
    fine = importance_depths(depths, weights, 40)
    assert ((fine > 2.4) & (fine < 2.6)).float().mean() > 0.8
    assert fine.min() >= 2 and fine.max() <= 3 and (fine.diff() >= 0).all()


def ball(points):
    """A hard ball of radius .3 around the origin, coloured by place."""
    inside = points.norm(dim=-1, keepdim=True) < 0.3
    return torch.where(inside, 400.0, -400.0), points.abs()


def ray_bundle(rays=64):
    origins = torch.tensor([0.0, 0, 2.7]).expand(1, rays, 3)
    targets = torch.cat([(torch.rand(1, rays, 2) - 0.5) * 0.9, torch.zeros(1, rays, 1)], dim=-1)
    return origins, F.normalize(targets - origins, dim=-1)


def test_a_ball_is_met_where_it_is():
    origins, directions = ray_bundle()
    rays = render_rays(ball, origins, directions, 2.25, 3.3, 48, 48)
    along = -(origins * directions).sum(dim=-1)
    miss = (origins.square().sum(dim=-1) - along.square()).clamp(min=0).sqrt()
    hit = miss[0] < 0.25
    surface = along - (0.09 - miss.square()).clamp(min=0).sqrt()
    assert rays.opacity[0, hit].min() > 0.99 and rays.opacity[0, miss[0] > 0.35].max() < 0.01
    assert (rays.depth[0, hit, 0] - surface[0, hit]).abs().max() < 0.03
    assert rays.depth[0, miss[0] > 0.35].min() > 3.3  # the farthest sample


def test_groups_of_rays_are_all_rays():
    origins, directions = ray_bundle()
    together = render_rays(ball, origins, directions, 2.25, 3.3, 12, 12)
    in_groups = render_rays(ball, origins, directions, 2.25, 3.3, 12, 12, points_at_a_time=24 * 7)
    for one, other in zip(together, in_groups):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def soft_ball(points):
    """The same with a rim, as heads have."""
    density = (0.3 - points.norm(dim=-1, keepdim=True)) * 1500
    return density.clamp(-20, 150), points.abs()


def rough_ball(points):
    """Its raw density as a guide would know it: blurred."""
    return ((0.3 - points.norm(dim=-1)) * 500).clamp(-20, 60)


def test_guided_rays_are_all_rays_with_fewer_samples():
    origins, directions = ray_bundle()
    asked = []

    def field(points):
        asked.append(len(points))
        return soft_ball(points)

    whole = render_rays(soft_ball, origins, directions, 2.25, 3.3, 48, 96, background=0.75)
    one_by_one = origins[0, :, None], directions[0, :, None]
    guided = render_guided_rays(field, rough_ball, *one_by_one, 2.25, 3.3, 9, background=0.75)
    guided = Rays(*(x.squeeze(1) for x in guided))
    for exact, near in zip(whole, guided):
        passed_by = whole.opacity[0] < 0.01
        apart = (near - exact[0]).abs() * ~passed_by
        assert apart.mean() < 0.005 and apart.max() < 0.1  # most where a ray grazes
    assert guided.opacity[passed_by].max() < 0.01
    # Nothing is asked of rays that pass by.
    assert 0 < sum(asked) < 9 * 64 and sum(asked) % 9 == 0


def test_guided_rays_past_everything_see_the_background():
    origins, directions = ray_bundle()
    groups = (side_by_side(rays, 8, 2) for rays in (origins[0] + 2, directions[0]))
    rays = render_guided_rays(soft_ball, rough_ball, *groups, 2.25, 3.3, 9, background=0.75)
    torch.testing.assert_close(rays.features, torch.full((16, 4, 3), 0.75))
    assert rays.opacity.max() == 0 and (rays.depth == 3.3).all()


def test_guided_rays_are_the_same_however_many_at_a_time(monkeypatch):
    origins, directions = ray_bundle()
    groups = side_by_side(origins[0], 8, 2), side_by_side(directions[0], 8, 2)
    together = render_guided_rays(soft_ball, rough_ball, *groups, 2.25, 3.3, 9)
    monkeypatch.setattr("preim3d.renderer.RAYS_AT_A_TIME", 7)
    in_parts = render_guided_rays(soft_ball, rough_ball, *groups, 2.25, 3.3, 9)
    for one, other in zip(together, in_parts):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_rays_side_by_side_share_a_guide():
    size, asked = 64, []
    picture = camera_rays(camera_from_angles(0.3, 0.1)[None], size)

    def guide(points):
        asked.append(len(points))
        return rough_ball(points)

    each, shared = (
        render_guided_rays(soft_ball, guide, *(side_by_side(rays[0], size, side) for rays in picture), 2.25, 3.3, 9)
        for side in (1, 2)
    )
    assert asked[1] == asked[0] / 4
    for one, other in zip(each, shared):
        assert (row_by_row(one, size, 1) - row_by_row(other, size, 2)).abs().mean() < 0.01


def test_groups_of_rays_are_squares_and_back_in_their_rows():
    pictures = torch.arange(2 * 4 * 4.0).view(2, 4, 4)
    groups = side_by_side(pictures.view(-1, 1), 4, 2)
    assert torch.equal(groups[0, :, 0], torch.tensor([0.0, 1, 4, 5])) and groups[4, 0] == 16
    assert torch.equal(row_by_row(groups, 4, 2).view(2, 4, 4), pictures)


def test_only_a_generator_makes_it_random():
    origins, directions = ray_bundle()

    def depth(seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return render_rays(ball, origins, directions, 2.25, 3.3, 12, 12, generator=generator).depth

    assert torch.equal(depth(), depth()) and torch.equal(depth(1), depth(1))
    assert not torch.equal(depth(), depth(1)) and not torch.equal(depth(1), depth(2))


def test_coarse_samples_alone():
    origins, directions = ray_bundle()
    assert render_rays(ball, origins, directions, 2.25, 3.3, 12, 0).features.shape == (1, 64, 3)
