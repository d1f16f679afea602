import math

import pytest
import torch
import torch.nn.functional as F

from preim3d.stylegan2 import (
    MappingNetwork,
    SynthesisNetwork,
    bilinear_upsample,
    blur,
    demodulation,
    scaled_conv,
    smooth_upsampling_conv,
    smoothing_filter,
    upsample,
)


FIR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def depthwise(x, kernel):
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, 1, *kernel.shape), groups=channels)


def modulated_conv_slow(x, weight, style, demodulate, up):
    """StyleGAN2's equations 1 and 3, one picture and one set of weights at a time."""
    pictures = []
    for picture, s in zip(x, style):
        w = weight * s[None, :, None, None]
        if demodulate:
            w = w / (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if up:
            picture = F.conv_transpose2d(picture[None], w.transpose(0, 1), stride=2)
            picture = depthwise(F.pad(picture, (1, 1, 1, 1)), 4 * FIR)
        else:
            picture = F.conv2d(picture[None], w, padding=w.shape[2] // 2)
        pictures.append(picture)
    return torch.cat(pictures)


@pytest.mark.parametrize(("kernel", "demodulate", "up"), [(3, True, False), (3, True, True), (1, False, False)])
def test_scaling_activations_is_modulating_weights(kernel, demodulate, up):
    x, weight, style = torch.randn(3, 5, 6, 6), torch.randn(7, 5, kernel, kernel), torch.randn(3, 5)
    fast = scaled_conv(x, weight, style, smoothing_filter() if up else None)
    if demodulate:
        fast = fast * demodulation(weight, style)[:, :, None, None]
    torch.testing.assert_close(fast, modulated_conv_slow(x, weight, style, demodulate, up), atol=1e-5, rtol=1e-5)


def test_where_w_is_learned_activations_are_scaled_and_no_gradient_is_found_for_the_weights():
    network = SynthesisNetwork(w_dim=8, resolution=16, image_channels=3, channel_base=128).requires_grad_(False)
    w = torch.randn(1, network.num_ws, 8)
    learned = w.clone().requires_grad_()
    picture = network(learned)
    torch.testing.assert_close(picture.detach(), network(w), atol=1e-5, rtol=1e-5)

    asked, node = [], [picture.grad_fn]
    while node:
        one = node.pop()
        asked += [one] if one.name() == "ConvolutionBackward0" else []
        node += [following for following, _ in one.next_functions if following is not None]
    assert asked and not any(one.next_functions[1][0] for one in asked)  # input, weight, bias

    picture.square().sum().backward()
    # One w in a batch of two is scaled in the activations either way.
    twice = w.repeat(2, 1, 1).requires_grad_()
    network(twice)[0].square().sum().backward()
    torch.testing.assert_close(learned.grad[0], twice.grad[0], atol=1e-4, rtol=1e-4)


def test_a_gpus_one_kernel_is_convolution_and_filter():
    x, weight, bias = torch.randn(2, 5, 6, 6), torch.randn(7, 5, 3, 3, requires_grad=True), torch.randn(7)
    filter = smoothing_filter()
    two = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), filter, bias)
    one = smooth_upsampling_conv(x, weight, filter, bias)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), weight)[0] for y in (one, two)]
    torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-4)


def test_upsample_is_zero_stuffing_and_the_filter():
    x = torch.randn(2, 3, 5, 7)
    stuffed = torch.zeros(2, 3, 10, 14)
    stuffed[:, :, ::2, ::2] = x
    expected = depthwise(F.pad(stuffed, (2, 1, 2, 1)), 4 * FIR)
    torch.testing.assert_close(upsample(x, smoothing_filter()), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(bilinear_upsample(x), expected)


def test_blur_is_the_filter():
    x = torch.randn(2, 3, 9, 9)
    expected = depthwise(F.pad(x, (1, 1, 1, 1)), 4 * FIR)
    torch.testing.assert_close(blur(x, smoothing_filter()), expected, atol=1e-6, rtol=1e-5)


def test_mapping_ignores_the_length_of_z_and_heeds_the_condition():
    mapping = MappingNetwork(z_dim=8, c_dim=4, w_dim=16, layers=2)
    z, condition = torch.randn(2, 8), torch.randn(2, 4)
    w = mapping(z, condition)
    assert w.shape == (2, 16)
    torch.testing.assert_close(mapping(3 * z, condition), w, atol=1e-6, rtol=1e-4)
    assert (mapping(z, condition.flip(1)) - w).abs().max() > 1e-3


def test_mapping_without_a_condition():
    assert MappingNetwork(z_dim=8, c_dim=0, w_dim=16, layers=1)(torch.randn(2, 8)).shape == (2, 16)


def test_a_new_network_keeps_the_variance():
    picture = SynthesisNetwork(w_dim=32, resolution=16, image_channels=96, channel_base=1024, channel_max=64)
    w = MappingNetwork(z_dim=32, c_dim=0, w_dim=32, layers=2)(torch.randn(4, 32))
    with torch.no_grad():
        x = picture.b4.conv1(picture.b4.const.expand(4, -1, -1, -1), w)
    assert 0.5 < x.std() < 2


def test_each_row_of_w_has_its_place():
    network = SynthesisNetwork(w_dim=16, resolution=16, image_channels=3, channel_base=128, channel_max=8).eval()
    assert network.num_ws == 6
    ws = torch.randn(1, 6, 16)
    layers = ["b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1", "b8.torgb", "b16.conv0", "b16.conv1", "b16.torgb"]
    rows = [0, 1, 1, 2, 3, 3, 4, 5]
    seen = {}
    for name in layers:
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[1]}))
    network(ws)
    for name, row in zip(layers, rows):
        assert torch.equal(seen[name], ws[:, row]), name


def test_different_w_in_a_batch_do_not_mix():
    network = SynthesisNetwork(w_dim=16, resolution=16, image_channels=3, channel_base=128, channel_max=8).eval()
    ws = torch.randn(3, 6, 16)
    together = network(ws)
    assert together.shape == (3, 3, 16, 16)
    torch.testing.assert_close(together, torch.cat([network(w[None]) for w in ws]), atol=1e-5, rtol=1e-5)


def test_noise_has_a_strength_of_zero_at_first():
    network = SynthesisNetwork(w_dim=16, resolution=8, image_channels=3, channel_base=64, channel_max=8)
    ws = torch.randn(1, 4, 16)
    before = network(ws)
    network.b8.conv0.noise_const.normal_()
    assert torch.equal(network(ws), before)
    with torch.no_grad():
        network.b8.conv0.noise_strength.fill_(math.pi)
    assert not torch.equal(network(ws), before)


def test_the_filters_are_where_the_network_is_and_in_no_file():
    network = SynthesisNetwork(w_dim=16, resolution=16, image_channels=3, channel_base=128, channel_max=8)
    assert not [name for name in network.state_dict() if "smoothing" in name]
    filters = {name: filter for name, filter in network.to("meta").named_buffers() if "smoothing" in name}
    assert set(filters) == {f"b{size}{layer}.smoothing" for size in (8, 16) for layer in ("", ".conv0")}
    assert {filter.device.type for filter in filters.values()} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_no_layer_waits_for_the_host():
    network = SynthesisNetwork(w_dim=16, resolution=16, image_channels=3, channel_base=128, channel_max=8)
    ws = torch.randn(2, 6, 16)
    expected = network(ws)
    network, ws = network.cuda(), ws.cuda()
    network(ws)  # libraries are loaded in the first round
    torch.cuda.set_sync_debug_mode("error")
    try:
        picture = network(ws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(picture.cpu(), expected, atol=1e-2, rtol=1e-2)


def test_styles_are_what_the_layers_scale_by():
    network = SynthesisNetwork(w_dim=16, resolution=16, image_channels=3, channel_base=128, channel_max=8).eval()
    assert list(network.style_sizes.items())[:3] == [("b4.conv1", 8), ("b4.torgb", 8), ("b8.conv0", 8)]
    ws, seen = torch.randn(2, 6, 16), []
    for name in network.style_sizes:
        affine = network.get_submodule(name).affine
        affine.register_forward_hook(lambda _, __, output: seen.append(output))
    network(ws)
    styles = torch.cat(seen, dim=1)
    assert styles.shape == (2, sum(network.style_sizes.values()))
    assert torch.equal(network.styles(ws), styles)


def test_an_offset_of_styles_is_a_change_of_the_affine_layers_bias():
    network = SynthesisNetwork(w_dim=16, resolution=16, image_channels=3, channel_base=128, channel_max=8).eval()
    ws, offset = torch.randn(2, 6, 16), torch.randn(1, sum(network.style_sizes.values()))
    plain = network(ws)
    assert torch.equal(network(ws, torch.zeros_like(offset)), plain)
    moved = network(ws, offset)
    # One for each picture is the same as one for all of them.
    assert torch.equal(network(ws, offset.expand(2, -1)), moved)
    torch.testing.assert_close(network(ws[:1], offset), moved[:1], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for name, part in zip(network.style_sizes, offset[0].split(list(network.style_sizes.values()))):
            network.get_submodule(name).affine.bias += part
    torch.testing.assert_close(network(ws), moved, atol=1e-5, rtol=1e-5)
    with pytest.raises(AssertionError):
        network(ws[:1], offset.expand(2, -1))
