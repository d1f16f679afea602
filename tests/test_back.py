"""back: where front and back of a head meet, and what is read of each; train.back: carving, components, the reader."""

import math

import numpy as np
import pytest
import torch

from preim3d.back import BOX, CELLS, LEAST_DENSITY, MOST_DENSITY, STEEPNESS, Back, back_share
from preim3d.camera import camera_from_angles, grid_cameras
from preim3d.generator import RenderOutput, TriPlaneGenerator
from preim3d.renderer import middles
from tests.conftest import ROOT
from tests.test_generator import SIZES
from train.model.back import (
    Carved,
    carve,
    explained,
    filled_below,
    fit,
    fit_lift,
    grid_places,
    principal,
    ridge,
    seen_past,
    surface,
    with_back,
)


BALL = 0.3  # radius


def ball_distance() -> torch.Tensor:
    return (BALL - torch.from_numpy(grid_places(CELLS)).norm(dim=-1)).view(3 * (CELLS,)).float()


@pytest.fixture(scope="module")
def network():
    """A generator whose back is a ball that gets larger with its first component, and redder with its next."""
    torch.manual_seed(0)
    sizes = SIZES | {"c_dim": 0, "plane_axes": "fixed", "box_warp": 0.8, "ray_start": 2.2, "ray_end": 3.2}
    network = with_back(TriPlaneGenerator(**sizes).requires_grad_(False))
    network.back.distance[0], network.back.distance[1] = ball_distance(), 0.02
    network.back.color[0], network.back.color[1, 0] = 0.4, 0.1
    return network


@pytest.fixture(scope="module")
def ws(network):
    return network.mapping(torch.randn(3, 12, generator=torch.Generator().manual_seed(1)))


def test_the_share_of_the_back_goes_smoothly_from_none_to_all():
    z = torch.linspace(0.5, -0.5, 2001)
    for y in (-0.3, 0.0, 0.2, 0.3):
        share = back_share(torch.stack([torch.zeros_like(z), torch.full_like(z, y), z], -1))
        assert share[0] == 0 and share[-1] == 1
        assert (share.diff() >= 0).all() and share.diff().max() < 0.02
    assert back_share(torch.tensor([0.0, 0.45, 0.3])) == 1  # above the picture nothing is seen of the front


def test_far_in_front_only_the_planes_are_read_and_behind_only_the_back(network, ws):
    planes = network.planes(ws)
    plain = TriPlaneGenerator(**{k: v for k, v in network.config.items() if k[0] != "_"} | {"has_back": False})
    plain.load_state_dict(network.state_dict(), strict=False)
    planes = planes._replace(near=torch.ones_like(planes.near))
    points = (torch.rand(3, 200, 3, generator=torch.Generator().manual_seed(2)) - 0.5) * 0.6
    points[..., 1] -= 0.15
    front, back = points.clone(), points.clone()
    front[..., 2], back[..., 2] = front[..., 2].abs() + 0.02, -back[..., 2].abs() - 0.15
    with torch.no_grad():
        for ours, expected in zip(network.decode(planes, front), plain.decode(plain.planes(ws), front)):
            torch.testing.assert_close(ours, expected)
        density, color = network.decode(planes, back)
    grid = planes.back
    head, level = torch.arange(3).repeat_interleave(200), network.config.surface_density
    expected, rgb = network.back.read(grid, back.flatten(0, 1), head, level)
    torch.testing.assert_close(density.flatten(0, 1), expected)
    torch.testing.assert_close(color.flatten(0, 1), rgb)


def test_the_field_has_no_step_at_the_seam(network, ws):
    z = torch.linspace(0.1, -0.3, 4001)
    points = torch.stack([torch.full_like(z, 0.1), torch.full_like(z, 0.05), z], -1)[None]
    with torch.no_grad():
        planes = network.planes(ws[:1])
        density, color = network.decode(planes._replace(near=torch.ones_like(planes.near)), points)
    # Twice the steepest that the back alone is.
    assert density.diff(dim=1).abs().max() < 2 * STEEPNESS * 0.0001
    assert color.diff(dim=1).abs().max() < 0.01


def test_distances_are_read_between_the_cells(network):
    points = (torch.rand(500, 3, generator=torch.Generator().manual_seed(3)) - 0.5) * 0.9
    grid = torch.cat([ball_distance()[..., None], torch.full((*3 * (CELLS,), 3), 0.3)], -1)[None]
    density, color = network.back.read(grid, points, torch.zeros(500), 10.0)
    expected = (10 + STEEPNESS * (BALL - points.norm(dim=-1))).clamp(LEAST_DENSITY, MOST_DENSITY)
    assert (density[:, 0] - expected).abs().max() < STEEPNESS * 0.01
    torch.testing.assert_close(color[:, :3], torch.full((500, 3), 0.3))


def test_nothing_is_beyond_the_hull(ws, network):
    back = network.back
    hull = back.hull.clone()
    back.hull[:, CELLS // 2 :] = 0
    above = torch.tensor([[[0.0, 0.2, 0.1], [0.1, 0.3, -0.2], [0.0, -0.1, -9.0]]])
    density, color = network.decode(network.planes(ws[:1]), above)
    assert (density == LEAST_DENSITY).all() and (color == network.config.background).all()
    back.hull.copy_(hull)


def test_colours_of_the_front_are_carried_to_the_back(network):
    grid = torch.cat([ball_distance()[..., None], torch.full((*3 * (CELLS,), 3), 0.4)], -1)[None]
    seam = network.back.seam()
    rgb = torch.where(seam[:, 1:2] > 0, torch.tensor([0.9, 0.1, 0.4]), torch.tensor([0.4, 0.4, 0.4]))
    solid, nothing = torch.full((1, len(seam), 1), 99.0), torch.full((1, len(seam), 1), -99.0)
    matched = network.back.match_colors(grid, seam, solid, rgb[None], 10.0)
    assert torch.equal(matched[..., 0], grid[..., 0])
    up, down, behind = round((0.2 / BOX + 0.5) * CELLS), round((-0.25 / BOX + 0.5) * CELLS), 8
    torch.testing.assert_close(matched[0, 16, up, behind, 1:], torch.tensor([0.9, 0.1, 0.4]), atol=0.1, rtol=0)
    torch.testing.assert_close(matched[0, 16, down, behind, 1:], torch.tensor([0.4, 0.4, 0.4]), atol=0.1, rtol=0)
    torch.testing.assert_close(network.back.match_colors(grid, seam, nothing, rgb[None], 10.0), grid)


def test_the_shape_follows_the_fronts_outline(network):
    back = network.back
    seam = back.seam()
    distance = BALL + 0.03 - seam.norm(dim=-1)
    density = (10 + STEEPNESS * distance).clamp(LEAST_DENSITY, MOST_DENSITY)[None, :, None]
    found = back.match_shape(torch.zeros(1, 16), seam, density, 10.0)
    assert 0.2 < found[0, 0] < 1.6  # no further than where the outlines agree
    agreed = (10 + STEEPNESS * (distance - 0.03)).clamp(LEAST_DENSITY, MOST_DENSITY)[None, :, None]
    assert back.match_shape(torch.zeros(1, 16), seam, agreed, 10.0).abs().max() == 0


def test_w_reaches_front_and_back_of_views_and_both_give_gradients(network, ws):
    camera = camera_from_angles(torch.tensor([0.0, 2.8, 1.5]), 0.1)
    latent = ws.clone().requires_grad_()
    output = network.render(network.planes(latent), camera, latent)
    assert output.image.isfinite().all() and output.opacity.max() > 0.9
    output.raw.square().mean().backward()
    assert latent.grad.isfinite().all() and (latent.grad.abs().amax((1, 2)) > 0).all()
    with torch.no_grad():
        alone = network.render(network.planes(ws[1:2]), camera[1:2], ws[1:2])
        together = network.render(network.planes(ws), camera, ws)
        many = network.render(network.planes(ws[1:2]), camera, ws[1:2])
    torch.testing.assert_close(together.raw[1:2], alone.raw, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(many.raw[1:2], alone.raw, atol=1e-4, rtol=1e-4)


def test_density_on_a_grid_is_that_at_its_points(network, ws):
    planes, axis = network.planes(ws[:1]), torch.linspace(-0.6, 0.5, 17)
    index = torch.cartesian_prod(*3 * [torch.arange(17)])
    with torch.no_grad():
        expected = network.density(planes, axis[index][None])[0]
        torch.testing.assert_close(network.density_on_grid(planes, axis)(index), expected, atol=1e-3, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same(network, ws, tmp_path):
    network.save_pretrained(tmp_path)
    again = TriPlaneGenerator.from_pretrained(tmp_path)
    assert torch.equal(network.planes(ws).back, again.planes(ws).back)
    assert again.mesh_box == BOX


# ----------------------------------------------------------------------------
# train.back


class Rendered:
    """A ball as `RenderedHead` shows heads: red in front, blue behind."""

    def view(self, camera, size, light):
        axes, origin = camera[:16].reshape(4, 4)[:3, :3], camera[:16].reshape(4, 4)[:3, 3]
        place = (np.arange(size) + 0.5) / size - 0.5
        rays = np.stack([*np.meshgrid(place / camera[16], place / camera[20]), np.ones((size, size))], -1)
        rays = rays @ axes.T
        a, b, c = (rays**2).sum(-1), rays @ origin, origin @ origin - BALL**2
        under = b**2 - a * c
        depth = np.where(under > 0, (-b - np.sqrt(np.maximum(under, 0))) / a, 0)
        points = origin + rays * depth[..., None]
        rgba = np.where(points[..., 2:] > 0, [255, 0, 0, 255], [0, 0, 255, 255])
        return (rgba * (under > 0)[..., None]).astype(np.uint8), depth


def test_a_ball_is_carved_out_of_its_views():
    carved = carve(Rendered(), None)
    truth = ball_distance().numpy()
    near = np.abs(truth) < 0.08
    assert np.abs(carved.distance - truth)[near].max() < 0.035 and np.abs(carved.distance - truth)[near].mean() < 0.012
    places = grid_places(CELLS).reshape(*3 * (CELLS,), 3)
    skin = np.abs(truth) < 0.02
    front, back = (skin & side for side in (places[..., 2] > 0.06, places[..., 2] < -0.06))
    assert carved.color[front][:, 0].mean() > 0.9 and carved.color[back][:, 2].mean() > 0.9


def test_a_view_sees_past_what_is_not_behind_its_depth():
    camera = camera_from_angles(0.0, 0.0, pivot=(0, 0, 0), focal=2.0).numpy()
    rgba, depth = Rendered().view(camera, 64, None)
    places = np.array([[0, 0, 0.4], [0, 0, 0.2], [0, 0, -0.5], [0.4, 0, 0], [5, 0, 0]], np.float32)
    assert seen_past(places, camera, depth).tolist() == [True, False, False, True, False]
    points, _ = surface(camera, rgba, depth)
    assert np.abs(np.linalg.norm(points, axis=1) - BALL).max() < 1e-3 and (points[:, 2] > 0).all()


def test_an_open_bust_is_filled_from_front_to_back():
    solid = np.zeros((16, 16, 16), bool)
    solid[8, 2, [3, 12]] = solid[8, 14, [3, 12]] = True
    filled = filled_below(solid)
    assert filled[8, 2, 3:13].all() and filled.sum() == 10 + 2


def test_ridge_is_the_same_with_few_rows_and_with_many():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, n, generator=generator).double() for n in (40, 3))
    few = ridge(x, y, 0.1)
    centred, target = x - x.mean(0), y - y.mean(0)
    damping = 0.1 * centred.square().mean() * 30
    many = torch.linalg.solve(centred.T @ centred + damping * torch.eye(40).double(), centred.T @ target)
    torch.testing.assert_close(few, many)


def test_components_give_back_what_slopes_say():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator).double()
    slopes = torch.randn(6, 3, generator=generator).double() @ torch.randn(3, 40, generator=generator).double()
    scores, components = principal(features, slopes, 3)
    torch.testing.assert_close(scores @ components, (features - features.mean(0)) @ slopes)
    torch.testing.assert_close(scores.std(0), torch.ones(3).double())


def test_the_back_learns_a_family_of_balls(network, ws):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, generator=generator).double()
    mixing = torch.randn(4, network.num_ws * 16, generator=generator).double() * 3
    w = (features @ mixing).float().view(60, network.num_ws, 16)
    radius = BALL + 0.03 * features[:, 0].float()
    distance = ball_distance() + (radius - BALL)[:, None, None, None]
    color = (0.5 + 0.1 * features[:, 1].float())[:, None, None, None, None].expand(60, *3 * (CELLS,), 3)
    back = Back(network.num_ws, 16, 8, shape_components=2, color_components=2).requires_grad_(False)
    report = fit(back, Carved(distance.numpy(), color.numpy()), features, w, w + 1)
    assert min(report.values()) > 0.9
    grid = back.grid(*back.components(w + 1).split(back.counts, 1))  # real photos lie elsewhere
    assert explained(distance, grid[..., 0]) > 0.9 and explained(color, grid[..., 1:]) > 0.9
    assert (back.hull[ball_distance() > -0.02] > 0).all()  # no head is cut
    assert 0.05 < back.hull.mean() < 0.5


def test_lifted_colours_are_those_of_the_front(network, ws):
    network = with_back(network)
    fit_lift(network, ws)
    assert network.back.lift.isfinite().all() and network.back.lift.abs().max() > 0
    views = network.render(network.planes(ws[:1]), grid_cameras()[:2], ws[:1])
    assert views.image.isfinite().all() and math.isfinite(views.depth.max())


def test_half_precision_renders_the_same_head(network, ws):
    camera = network.frontal_camera()
    with torch.no_grad():
        exact = network.render(network.planes(ws[:1]), camera, ws[:1]).raw
        with torch.autocast("cpu", torch.bfloat16):
            near = network.render(network.planes(ws[:1]), camera, ws[:1]).raw
    assert (near.float() - exact).abs().mean() < 0.02


@pytest.fixture(scope="module")
def bundled():
    """The bundled generator, and w and planes of a head of its own."""
    folder = ROOT / "weights" / "faces" / "generator"
    if not folder.is_dir():
        pytest.skip("weights/faces is not there")
    network = TriPlaneGenerator.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    ws = network.mapping(torch.randn(1, network.config.z_dim, generator=torch.Generator().manual_seed(3)))
    with torch.no_grad():
        planes = network.planes(ws)
    return network, ws, planes


def test_rays_are_guided_and_the_picture_stays(bundled):
    network, ws, planes = bundled
    cameras = camera_from_angles(torch.tensor([0.5, 2.5]), 0.2, pivot=network.config.pivot)  # one sees the back
    with torch.no_grad():
        # Whoever says where samples lie gets both passes.
        exact, whole = (
            network.render(
                planes, cameras, ws, 64, coarse, fine, u=middles(fine, ws.device).expand(1, 2 * 64**2, fine)
            )
            for coarse, fine in ((48, 96), (12, 12))
        )
        guided = network.render(planes, cameras, ws, 64)

    def psnr(one: RenderOutput, other: RenderOutput) -> float:
        return -10 * math.log10((one.image.clamp(-1, 1) - other.image.clamp(-1, 1)).square().mean() / 4)

    # Nearly as exact with a third of the samples.
    assert psnr(guided, exact) > psnr(whole, exact) - 1 and psnr(guided, whole) > 40
    assert (guided.opacity - exact.opacity).abs().mean() < 0.01
    assert ((guided.depth - exact.depth).abs() * (exact.opacity > 0.9)).mean() < 0.005


def test_four_rays_of_a_fine_picture_share_a_guide(bundled, monkeypatch):
    network, ws, planes = bundled
    with torch.no_grad():
        shared = network.render(planes, network.frontal_camera(), ws).image
        monkeypatch.setattr("preim3d.generator.GUIDED_TOGETHER", 1000)
        each = network.render(planes, network.frontal_camera(), ws).image
    apart = (shared - each).clamp(-2, 2).square().mean()
    assert 0 < apart < 4 * 10**-4.4  # 44 dB


def test_planes_are_drawn_in_bfloat16_where_nobody_sees_it(bundled, monkeypatch):
    network, ws, _ = bundled

    def planes(able: bool, learns: bool = False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
        with torch.set_grad_enabled(learns):
            return network.planes(ws)

    exact, fast = planes(False), planes(True)
    with torch.no_grad():
        images = [network.render(each, network.frontal_camera(), ws).image.clamp(-1, 1) for each in (exact, fast)]
    apart = (images[0] - images[1]).square().mean()
    assert fast.front.dtype == torch.float32 and 0 < apart < 4 * 10**-5.5  # 55 dB
    assert torch.equal(planes(True, learns=True).front, exact.front)


def test_planes_that_were_changed_are_surveyed_anew(network, ws):
    with torch.no_grad():
        planes = network.planes(ws[:1])
        emptied = planes._replace(front=planes.front - 50, back=planes.back - 1)
        anew = network.survey(emptied)
        middles = network.back.middles()[None]
        torch.testing.assert_close(
            anew.rough.flatten(1), network.density(anew._replace(near=network.back.hull[None] > 0), middles)
        )
    torch.testing.assert_close(network.survey(planes).rough, planes.rough)
    assert not torch.equal(anew.rough, planes.rough)
