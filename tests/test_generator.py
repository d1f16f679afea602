import numpy as np
import pytest
import torch

from preim3d.camera import camera_from_angles, grid_cameras
from preim3d.generator import TriPlaneGenerator


SIZES = {
    "z_dim": 12,
    "w_dim": 16,
    "plane_resolution": 16,
    "plane_channels": 8,
    "channel_base": 256,
    "channel_max": 16,
    "decoder_hidden": 16,
    "image_resolution": 32,
    "ray_resolution": 8,
    "superresolution_input": 16,
    "superresolution_blocks": [{"in": 8, "out": 8, "up": False}, {"in": 8, "out": 8, "up": True}],
    "coarse_samples": 8,
    "fine_samples": 8,
}


def make(**changes):
    torch.manual_seed(0)
    return TriPlaneGenerator(**(SIZES | {"c_dim": 0} | changes)).eval()


@pytest.fixture(scope="module")
def generator():
    return make().requires_grad_(False)


@pytest.fixture(scope="module")
def ws(generator):
    return generator.mapping(torch.randn(3, 12, generator=torch.Generator().manual_seed(1)))


def test_shapes_and_ranges(generator, ws):
    assert ws.shape == (3, generator.num_ws, 16) and generator.num_ws == 6
    planes = generator.planes(ws)
    assert planes.shape == (3, 3, 8, 16, 16)
    camera = camera_from_angles(torch.tensor([-0.3, 0, 0.3]), 0.1)
    output = generator.render(planes, camera, ws)
    assert output.image.shape == (3, 3, 32, 32)
    assert output.raw.shape == (3, 3, 8, 8)
    assert output.features.shape == (3, 8, 8, 8)
    assert output.depth.shape == output.opacity.shape == (3, 1, 8, 8)
    assert torch.equal(output.raw, output.features[:, :3])
    assert output.raw.min() > -1.01 and output.raw.max() < 1.01
    assert output.opacity.min() >= 0 and output.opacity.max() <= 1.0001
    assert output.depth.min() > 2.25 and output.depth.max() < 3.4


def test_planes_of_styles_and_nothing_are_the_planes(generator, ws):
    styles = generator.styles(ws)
    assert styles.shape == (3, sum(generator.backbone.synthesis.style_sizes.values()))
    planes = generator.planes(ws)
    assert torch.equal(generator.planes(ws, torch.zeros_like(styles)), planes)
    # The styles of another head make its planes, whatever w says.
    other = generator.planes(ws[:1], styles[1:2] - styles[:1])
    torch.testing.assert_close(other, planes[1:2], atol=1e-5, rtol=1e-5)


def test_the_published_configuration_is_the_default():
    with torch.device("meta"):
        network = TriPlaneGenerator()
    assert network.num_ws == 14
    # The published network has 4 more: noise strengths in super-resolution, which are not used.
    assert sum(parameter.numel() for parameter in network.parameters()) == 30_662_136 - 4


def test_planes_are_read_without_a_copy(generator, ws):
    assert generator.planes(ws).permute(0, 3, 4, 1, 2).is_contiguous()


def test_half_precision_is_the_same_picture_roughly(generator, ws):
    cameras = grid_cameras()[:3]
    exact = generator.render(generator.planes(ws), cameras, ws).image
    with torch.autocast("cpu", torch.bfloat16):
        rough = generator.render(generator.planes(ws), cameras, ws).image
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.02 * exact.std()


def test_one_head_from_many_cameras_is_many_copies_of_it(generator, ws):
    planes, cameras = generator.planes(ws[:1]), grid_cameras()
    one = generator.render(planes, cameras, ws[:1])
    copies = generator.render(planes.repeat(9, 1, 1, 1, 1), cameras, ws[:1].repeat(9, 1, 1))
    for name in ("image", "raw", "depth", "opacity"):
        torch.testing.assert_close(getattr(one, name), getattr(copies, name), atol=1e-5, rtol=1e-5)


def test_heads_in_a_batch_do_not_mix(generator, ws):
    cameras = grid_cameras()[:3]
    together = generator.render(generator.planes(ws), cameras, ws)
    alone = generator.render(generator.planes(ws[1:2]), cameras[1:2], ws[1:2])
    torch.testing.assert_close(together.image[1:2], alone.image, atol=1e-5, rtol=1e-5)


def test_the_same_twice_and_random_only_by_generator(generator, ws):
    planes, camera = generator.planes(ws[:1]), grid_cameras()[:1]

    def raw(seed=None):
        draws = None if seed is None else torch.Generator().manual_seed(seed)
        return generator.render(planes, camera, ws[:1], generator=draws).raw

    assert torch.equal(raw(), raw()) and torch.equal(raw(7), raw(7))
    assert not torch.equal(raw(), raw(7))


def test_gradients_or_not_is_the_same_picture(generator, ws):
    planes, camera = generator.planes(ws[:1]), grid_cameras()
    with_gradient = generator.render(planes, camera, ws[:1]).image
    with torch.inference_mode():
        without = generator.render(planes, camera, ws[:1]).image
    torch.testing.assert_close(with_gradient, without, atol=1e-5, rtol=1e-5)


def test_sizes_of_a_view_can_be_changed(generator, ws):
    output = generator.render(
        generator.planes(ws[:1]), grid_cameras()[:2], ws[:1], ray_resolution=20, coarse_samples=5, fine_samples=0
    )
    assert output.raw.shape == (2, 3, 20, 20) and output.image.shape == (2, 3, 32, 32)


def test_density_is_decode_in_groups_of_points(generator, ws):
    planes = generator.planes(ws[:1])
    points = torch.rand(1, 40_000, 3) - 0.5
    density, color = generator.decode(planes, points)
    with torch.no_grad():
        torch.testing.assert_close(generator.density(planes, points), density[..., 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(generator.decode(planes, points)[1], color, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("plane_axes", ["eg3d", "fixed"])
def test_density_on_a_grid_is_that_at_its_points(ws, plane_axes):
    network = make(plane_axes=plane_axes)
    planes, axis = network.planes(ws[:1]), torch.linspace(-0.55, 0.5, 23)  # from beyond the box on
    index = torch.cartesian_prod(*3 * [torch.arange(23)]).flip(0)
    with torch.no_grad():
        expected = network.density(planes, axis[index][None])[0]
        torch.testing.assert_close(network.density_on_grid(planes, axis)(index), expected, atol=1e-4, rtol=1e-4)


def test_the_background_is_seen_past_the_head(ws):
    network = make(background=0.75).requires_grad_(False)
    network.decoder.net[2].bias[0] = -1e4
    output = network.render(network.planes(ws), grid_cameras()[:3], ws)
    torch.testing.assert_close(output.raw, torch.full_like(output.raw, 0.5))
    assert output.opacity.max() == 0 and output.depth.min() == output.depth.max() > 3.3


def test_truncation_pulls_the_first_rows_to_the_average(generator):
    z = torch.randn(2, 12)
    full, cut = generator.mapping(z), generator.mapping(z, truncation_psi=0.5, truncation_cutoff=4)
    torch.testing.assert_close(cut[:, :4], (generator.w_avg + full[:, :4]) / 2)
    assert torch.equal(cut[:, 4:], full[:, 4:])


def test_a_conditioned_mapping_sees_the_camera():
    network = make(c_dim=25).requires_grad_(False)
    z, cameras = torch.randn(1, 12), grid_cameras()
    assert not torch.equal(network.mapping(z, cameras[:1]), network.mapping(z, cameras[1:2]))
    unscaled = make(c_dim=25, c_scale=0.0).requires_grad_(False)
    assert torch.equal(unscaled.mapping(z, cameras[:1]), unscaled.mapping(z, cameras[1:2]))


def test_the_latent_average_is_the_mean_over_numpys_normal_z(generator):
    z = torch.from_numpy(np.random.RandomState(5).randn(50, 12)).float()
    expected = generator.mapping(z, truncation_psi=0.7)[:, 0].mean(dim=0)
    torch.testing.assert_close(generator.latent_average(samples=50, seed=5), expected)


def test_the_average_head_is_added_and_learned():
    network = make(mean_planes=True)
    ws = network.mapping(torch.randn(2, 12))
    before = network.planes(ws)
    with torch.no_grad():
        network.average_planes += 2
    torch.testing.assert_close(network.planes(ws), before + 2)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_every_parameter_learns(half):
    network = make(c_dim=25, mean_planes=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        cameras = grid_cameras()[:2]
        ws = network.mapping(torch.randn(2, 12), cameras)
        output = network.render(network.planes(ws), cameras, ws)
    (output.image.square().mean() + output.raw.square().mean() + output.depth.mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("mean_planes", [True, False])
def test_planes_without_mean_planes_stay_in_float32(mean_planes, ws, monkeypatch):
    network = make(mean_planes=mean_planes)
    monkeypatch.setattr("preim3d.device.LARGE_PICTURE", 32)
    planes = []
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able})
        with torch.no_grad():
            planes.append(network.planes(ws))
    assert torch.equal(*planes) == (not mean_planes)


def test_saved_and_loaded_it_draws_the_same(generator, ws, tmp_path):
    generator.save_pretrained(tmp_path)
    again = TriPlaneGenerator.from_pretrained(tmp_path)
    assert again.config.superresolution_blocks == generator.config.superresolution_blocks
    cameras = grid_cameras()[:3]
    for network in (generator, again):
        network.eval()
    assert torch.equal(
        generator.render(generator.planes(ws), cameras, ws).image, again.render(again.planes(ws), cameras, ws).image
    )
