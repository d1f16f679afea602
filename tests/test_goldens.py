"""Parity with EG3D and PREIM3D: what the reference networks compute under reproducible synthetic weights.

The numbers are in ../shared/goldens of a development checkout; the tests skip where they are not. Tolerances are those
of that folder's README, about ten times what the reference itself moves by when its threads or kernels change; only
that of w is wider, 1.3e-6 for 1e-6, because the goldens themselves are 1.2e-6 from w in double precision.
"""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from preim3d.camera import camera_from_angles, camera_rays
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.irse import IdentityNetwork
from preim3d.renderer import coarse_depths, importance_depths, interval_weights


GOLDENS = Path(__file__).resolve().parent.parent.parent / "shared" / "goldens"

pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason="the reference's goldens are not in ../shared")

TINY = {
    "z_dim": 64,
    "w_dim": 64,
    "plane_resolution": 64,
    "channel_base": 2048,
    "channel_max": 64,
    "image_resolution": 128,
    "ray_resolution": 32,
    "superresolution_input": 32,
    "superresolution_blocks": [{"in": 32, "out": 32, "up": True}, {"in": 32, "out": 16, "up": True}],
    "coarse_samples": 12,
    "fine_samples": 12,
}
SMALL = {
    "z_dim": 64,
    "channel_base": 2048,
    "channel_max": 64,
    "image_resolution": 128,
    "ray_resolution": 32,
    "superresolution_input": 64,
    "superresolution_blocks": [{"in": 32, "out": 128, "up": False}, {"in": 128, "out": 64, "up": True}],
    "coarse_samples": 12,
    "fine_samples": 12,
}
CONFIGS = {"tiny": TINY, "tiny_fixedaxes": TINY | {"plane_axes": "fixed"}, "small": SMALL, "full": {}}

# Absolute tolerances by the kind of quantity.
TOLERANCE = {
    "w": 1.3e-6,
    "planes": 3e-5,
    "sigma": 3e-4,
    "rgb": 3e-4,
    "raw": 3e-4,
    "feature": 3e-4,
    "image": 3e-4,
    "opacity": 3e-4,
    "depth": 1e-3,
    "codes": 1e-4,
    "identity": 1e-5,
}

by_size = pytest.mark.parametrize("size", ["tiny", "small", pytest.param("full", marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@functools.cache
def fill_weights():
    spec = importlib.util.spec_from_file_location("fill_weights", GOLDENS / "fill_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@functools.lru_cache(maxsize=2)
def generator(size: str) -> TriPlaneGenerator:
    network = TriPlaneGenerator(**CONFIGS[size]).eval().requires_grad_(False)
    return fill_weights().fill_(network, "eg3d")


@functools.lru_cache(maxsize=4)
def latents(size: str, name: str) -> torch.Tensor:
    """ws 'z0', or 'plus', which adds an offset to each row.

    The reference's own w, so that stages are tested one by one: where planes are as steep as these, a w that differs
    by 2e-7 moves the fine samples of single rays far enough to change their colour by 2e-3.
    """
    w = golden(f"eg3d_{size.removesuffix('_fixedaxes')}")["w_z0_psi0.7_cut14"]
    ws = w[:, None].repeat(1, generator(size).num_ws, 1)
    if name == "plus":
        ws = ws + torch.from_numpy(0.3 * np.random.RandomState(11).standard_normal(ws.shape)).float()
    return ws


@functools.lru_cache(maxsize=4)
def planes(size: str, name: str) -> torch.Tensor:
    return generator(size).planes(latents(size, name))


def camera(size: str, name: str) -> torch.Tensor:
    row = {"c0": 0, "c1": 1, "c2": 4}[name]
    return golden(f"eg3d_{size}")["cam_c_pi"][row : row + 1]


def draws(size: str, name: str) -> dict[str, torch.Tensor]:
    """Places of the samples: 'mid' is ours, 'half' puts all fine samples together, 'rs' is numpy's random."""
    config = generator(size).config
    rays = config.ray_resolution**2
    if name == "half":
        return {"u": torch.full((1, rays, config.fine_samples), 0.5)}
    if name == "rs":
        jitter = np.random.RandomState(1001).random_sample((1, rays, config.coarse_samples))
        u = np.random.RandomState(1002).random_sample((1, rays, config.fine_samples))
        return {"jitter": torch.from_numpy(jitter).float(), "u": torch.from_numpy(u).float()}
    return {}


def check(found: torch.Tensor, expected: torch.Tensor, kind: str) -> None:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    difference = (found - expected.float()).abs().max().item()
    assert difference <= TOLERANCE[kind], f"{kind} differs by {difference:.1e}"


def check_depth(found: torch.Tensor, expected: torch.Tensor, opacity: torch.Tensor) -> None:
    """The depth of a ray that met next to nothing is one rounding error over another: it counts in the mean only."""
    met = opacity > 1e-3
    check(found[met], expected[met], "depth")
    assert (found - expected).abs().mean() <= 5e-6


# ----------------------------------------------------------------------------
# Weights.


@by_size
def test_the_weights_are_the_references(size):
    """Same names and shapes but for constant filters and the unused noise of super-resolution, and filled the same."""
    checksums = json.loads((GOLDENS / f"checksums_eg3d_{size}.json").read_text())
    ours = generator(size).state_dict()
    unused = {
        name
        for name in checksums
        if name.endswith("resample_filter") or (name.startswith("superresolution") and ".noise_" in name)
    }
    assert set(ours) == set(checksums) - unused
    assert fill_weights().checksum(ours) == {name: checksums[name] for name in ours}


# ----------------------------------------------------------------------------
# Cameras and mapping.


def test_cameras():
    numbers = golden("eg3d_tiny")
    yaw, pitch = numbers["cam_yaw_pitch"].unbind(1)
    assert (camera_from_angles(yaw, pitch) - numbers["cam_c_pi"]).abs().max() < 1e-6
    # The reference's own frontal angle is 3.14 / 2.
    offset = 3.14 / 2 - np.pi / 2
    assert (camera_from_angles(yaw + offset, pitch + offset) - numbers["cam_c_314"]).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["c0", "c1"])
def test_rays(name):
    numbers = golden("eg3d_tiny")
    origins, directions = camera_rays(camera("tiny", name), 32)
    assert (origins[:, 0] - numbers[f"ray_origin_{name}"]).abs().max() < 1e-6
    assert (directions.view(32, 32, 3) - numbers[f"ray_dirs_{name}_HW3_stride1"]).abs().max() < 1e-6


@by_size
def test_w(size):
    network, numbers = generator(size), golden(f"eg3d_{size}")
    c0, c1 = camera(size, "c0"), camera(size, "c1")
    for z in ("z0", "z1"):
        check(network.mapping(numbers[z], c0)[:, 0], numbers[f"w_{z}_psi1"], "w")
        truncated = network.mapping(numbers[z], c0, truncation_psi=0.7, truncation_cutoff=14)
        check(truncated[:, 0], numbers[f"w_{z}_psi0.7_cut14"], "w")
    cut = network.mapping(numbers["z0"], c0, truncation_psi=0.5, truncation_cutoff=8)
    check(cut[0, [0, 7, 8, -1]], numbers["w_z0_psi0.5_cut8_rows"], "w")
    other = network.mapping(numbers["z0"], c1, truncation_psi=0.7, truncation_cutoff=14)
    check(other[:, 0], numbers["w_z0_c1_psi0.7_cut14"], "w")
    check(latents(size, "plus")[0, [0, 5]], numbers["ws_plus_row0_row5"], "w")


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_latent_average(size):
    numbers = golden(f"eg3d_{size}")
    average = generator(size).latent_average(camera=numbers["cam_c_314"][:1])
    assert (average - numbers["latent_avg_f64mean_row0"]).abs().max() < 5e-6


# ----------------------------------------------------------------------------
# Planes and the field.


@pytest.mark.parametrize(
    ("size", "stride"), [("tiny", 4), ("small", 8), pytest.param("full", 16, marks=pytest.mark.slow)]
)
def test_planes(size, stride):
    numbers = golden(f"eg3d_{size}")
    check(
        planes(size, "plus").flatten(1, 2)[:, :, ::stride, ::stride], numbers[f"planes_plus_stride{stride}"], "planes"
    )
    found = planes(size, "z0").flatten(1, 2)
    key = "planes_z0_stride1" if size == "tiny" else f"planes_z0_stride{stride}"
    check(found[:, :, :: 1 if size == "tiny" else stride, :: 1 if size == "tiny" else stride], numbers[key], "planes")
    if size != "tiny":
        check(found[0, [0, 32, 64], 100:124, 120:144], numbers["planes_z0_crop_ch0_32_64_y100_x120_24"], "planes")


def test_every_layer_of_the_backbone():
    network, numbers = generator("tiny"), golden("eg3d_tiny")
    found, hooks = {}, []
    keys = [key for key in numbers if key.startswith("layer_plus/")]
    for key in keys:
        layer = network.get_submodule(key.removeprefix("layer_plus/"))
        hooks.append(layer.register_forward_hook(lambda _, __, output, key=key: found.update({key: output.clone()})))
    network.planes(latents("tiny", "plus"))
    for hook in hooks:
        hook.remove()
    for key in keys:
        stride = max(1, found[key].shape[-1] // 8)
        check(found[key][:, :4, ::stride, ::stride], numbers[key], "planes")


@pytest.mark.parametrize("size", ["tiny", "tiny_fixedaxes", "small", pytest.param("full", marks=pytest.mark.slow)])
def test_points(size):
    numbers = golden(f"eg3d_{size}")
    points = golden(f"eg3d_{size.removesuffix('_fixedaxes')}")["points"]
    density, color = generator(size).decode(planes(size, "z0"), points)
    check(density, numbers["points_sigma"], "sigma")
    if "points_rgb" in numbers:
        check(color[:, : numbers["points_rgb"].shape[1]], numbers["points_rgb"], "rgb")


# ----------------------------------------------------------------------------
# Views.

VIEWS = [
    ("tiny", "z0_c0_mid"),
    ("tiny", "z0_c1_mid"),
    ("tiny", "z0_c1_rs"),
    ("tiny", "z0_c1_half"),
    ("tiny", "plus_c2_mid"),
    ("small", "z0_c0_mid"),
    ("small", "z0_c1_rs"),
    ("small", "plus_c2_mid"),
    pytest.param("full", "z0_c1_mid", marks=pytest.mark.slow),
    pytest.param("full", "plus_c2_rs", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("size", "view"), VIEWS)
def test_views(size, view):
    numbers = golden(f"eg3d_{size}")
    w, c, how = view.split("_")
    output = generator(size).render(planes(size, w), camera(size, c), latents(size, w), **draws(size, how))
    keys = [key for key in numbers if key.startswith(f"r_{view}_")]
    assert len(keys) >= 5
    for key in keys:
        kind, _, form = key.removeprefix(f"r_{view}_").partition("_")
        found = getattr(output, {"feature": "features"}.get(kind, kind))
        if form.startswith("stride"):
            step = int(form.removeprefix("stride"))
            found = found[:, :, ::step, ::step]
        if kind == "depth":
            check_depth(found, numbers[key], output.opacity)
        elif form == "f16":
            # Half precision keeps 11 bits: this golden is compared to one part in a thousand of its range.
            assert (found - numbers[key].float()).abs().max() <= 1e-3 * max(1.0, found.abs().max().item())
        else:
            check(found, numbers[key], kind)


def test_steps_of_a_view():
    """The rays' internals, one by one, with random draws."""
    numbers, network = golden("eg3d_tiny"), generator("tiny")
    places = draws("tiny", "rs")
    origins, directions = camera_rays(camera("tiny", "c1"), 32)
    depths = coarse_depths(2.25, 3.3, 12, places["jitter"])
    assert (depths[0] - numbers["rs_c1_coarse_depths"]).abs().max() < 1e-6

    points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
    density = network.density(planes("tiny", "z0"), points.flatten(1, 2)).view(depths.shape)
    weights = interval_weights(density, depths)
    assert (weights[0] - numbers["rs_c1_coarse_weights"]).abs().max() < 3e-5

    fine = importance_depths(depths, weights, 12, places["u"])
    assert (fine[0] - numbers["rs_c1_fine_depths"]).abs().max() < 1e-4
    both = torch.cat([depths, fine], dim=2).sort(dim=2)[0]
    assert (both[0] - numbers["rs_c1_all_depths"]).abs().max() < 1e-4


def test_a_batch_of_different_heads():
    numbers = golden("eg3d_tiny")
    both_planes, both_ws = (torch.cat([make("tiny", "z0"), make("tiny", "plus")]) for make in (planes, latents))
    output = generator("tiny").render(both_planes, torch.cat([camera("tiny", "c1"), camera("tiny", "c2")]), both_ws)
    check_depth(output.depth, numbers["batch2_z0c1_plusc2_mid_depth"], output.opacity)
    check(output.image, numbers["batch2_z0c1_plusc2_mid_image"], "image")


@pytest.mark.parametrize("rays", [24, 48])
def test_views_are_resized_for_superresolution(rays):
    numbers = golden("eg3d_tiny")
    output = generator("tiny").render(
        planes("tiny", "z0"), camera("tiny", "c1"), latents("tiny", "z0"), ray_resolution=rays
    )
    check(output.raw, numbers[f"nrr{rays}_z0_c1_mid_raw"], "raw")
    check(output.image, numbers[f"nrr{rays}_z0_c1_mid_image"], "image")


def test_superresolution_leaves_the_raw_picture_alone():
    """The reference overwrites it where its size needs no change; its image is the same."""
    numbers = golden("eg3d_small")
    output = generator("small").render(
        planes("small", "z0"), camera("small", "c1"), latents("small", "z0"), ray_resolution=64
    )
    check(output.raw, numbers["nrr64_z0_c1_mid_raw_true"], "raw")
    check(output.image, numbers["nrr64_z0_c1_mid_image"], "image")


def test_the_fixed_third_plane():
    numbers = golden("eg3d_tiny_fixedaxes")
    network, ws = generator("tiny_fixedaxes"), latents("tiny_fixedaxes", "z0")
    output = network.render(network.planes(ws), camera("tiny", "c1"), ws)
    check(output.raw, numbers["r_z0_c1_mid_raw"], "raw")
    check_depth(output.depth, numbers["r_z0_c1_mid_depth"], output.opacity)


# ----------------------------------------------------------------------------
# Encoder and identity network.


def picture(seed: int, size: int) -> torch.Tensor:
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    smooth = np.stack([0.6 * x * np.cos(3 * y), 0.5 * y + 0.2 * np.sin(5 * x), 0.4 * (x**2 - y**2)])
    noise = np.random.RandomState(seed).uniform(-0.4, 0.4, (3, size, size))
    return torch.from_numpy(np.clip(smooth + noise, -1, 1)).float()[None]


def filled(network: torch.nn.Module, keys: str) -> torch.nn.Module:
    state = network.eval().state_dict()
    state.pop("latent_average", None)
    expected = json.loads((GOLDENS / keys).read_text())
    assert {name: [list(value.shape)] for name, value in state.items()} == {n: key[:1] for n, key in expected.items()}
    network.load_state_dict(fill_weights().fill_state_dict(state, "irse"), strict=False)
    return network


def test_encoder():
    numbers = golden("preim3d_encoder_id")
    encoder = filled(PortraitEncoder(), "keys_preim3d_encoder.json")
    found = {}
    stages = {"input_layer": encoder.input_layer, "output_layer_2": encoder.output_layer_2}
    stages |= {str(i): encoder.body[i] for i in (0, 2, 3, 6, 7, 13, 20, 21, 23)}
    for name, layer in stages.items():
        layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: output[:1].clone()}))
    codes = encoder(torch.cat([picture(21, 256), picture(22, 256)]))
    for name, activation in found.items():
        if activation.ndim == 4:
            stride = activation.shape[-1] // 8
            activation = activation[:, :8, ::stride, ::stride]
        check(activation, numbers[f"enc_act_{name}"], "codes")
    check(codes[:1], numbers["enc_codes"], "codes")
    check(codes, numbers["enc_codes_batch2"], "codes")
    encoder.latent_average += golden("eg3d_full")["latent_avg_10000_row0"]
    check(encoder(picture(21, 256)), numbers["enc_codes_plus_latent_avg_full"], "codes")


def test_identity_network():
    numbers = golden("preim3d_encoder_id")
    network = filled(IdentityNetwork(), "keys_ir_se50_id.json")
    check(network(picture(23, 112)), numbers["id_emb_112"], "identity")
    check(network(torch.cat([picture(21, 256)])), numbers["id_emb_256_a"], "identity")
    check(network(torch.cat([picture(22, 256)])), numbers["id_emb_256_b"], "identity")
