"""train/photos/augment.py: ranges, repeatability, and that points move with the picture."""

import torch

from train.photos import augment


def rgba_with_dot(x, y, size=64):
    rgba = torch.zeros(1, 4, size, size)
    rgba[:, 3] = 1
    rgba[0, 0, y, x] = 1
    return rgba


def test_photo_like_is_in_range_and_repeatable():
    rgba = torch.rand(6, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    first, theta = augment.photo_like(rgba, torch.Generator().manual_seed(1), occluder_share=0.5)
    again, _ = augment.photo_like(rgba, torch.Generator().manual_seed(1), occluder_share=0.5)
    other, _ = augment.photo_like(rgba, torch.Generator().manual_seed(2), occluder_share=0.5)
    assert first.shape == (6, 3, 32, 32) and theta.shape == (6, 2, 3)
    assert first.min() >= -1 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_new_texture_keeps_hue_brightness_and_contrast():
    images = 0.3 + 0.4 * torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    changed = augment.retexture(images, torch.Generator().manual_seed(0), 1.0)
    differences, before = changed - images, images.mean(1)
    assert (differences - differences.mean(1, keepdim=True)).abs().max() < 1e-6
    after = changed.mean(1)
    assert (after.mean((1, 2)) - before.mean((1, 2))).abs().max() < 0.01
    assert ((after.std((1, 2)) / before.std((1, 2))) > 0.5).all()
    assert (differences.abs().amax((1, 2, 3)) > 0.01).all()
    assert torch.equal(augment.retexture(images, torch.Generator().manual_seed(0), 0.0), images)


def test_generator_like_keeps_a_plain_background():
    rgba = torch.zeros(2, 4, 32, 32)
    images = augment.generator_like(rgba, 0.85, torch.Generator().manual_seed(0))
    assert abs(images.mean().item() - (2 * 0.85 - 1)) < 0.1
    assert torch.allclose(augment.plain(rgba, 0.85), torch.full((2, 3, 32, 32), 0.7))


def test_the_warp_goes_where_theta_says():
    theta = augment.misalign(1, torch.Generator().manual_seed(3), 0.1, 20.0, 0.2, device=torch.device("cpu"))
    colour, _ = augment.warp(rgba_with_dot(40, 24), theta)
    red = colour[0, 0]
    rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    found = torch.stack([(columns * red).sum(), (rows * red).sum()]) / red.sum()
    # theta leads from the output's places to the input's, both from -1 to 1.
    place = torch.tensor([40.5, 24.5]) / 32 - 1
    expected = (torch.linalg.solve(theta[0, :, :2], place - theta[0, :, 2]) + 1) * 32
    assert (found - expected).abs().max() < 0.3, (found, expected)


def test_a_start_crop_is_kept():
    start = torch.tensor([[[0.5, 0.0, 0.2], [0.0, 0.5, -0.1]]])
    theta = augment.misalign(
        1, torch.Generator().manual_seed(0), 0.0, 0.0, 0.0, device=torch.device("cpu"), start=start
    )
    assert torch.allclose(theta, start)
