"""RGBA renders of heads -> pictures as a camera, or as the generator, would give them: [B, 3, H, W] in [-1, 1].

`photo_like` is for the networks that must read real photos; `generator_like` for those that must read generated
images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from train.loop.draws import noise_like


def photo_like(
    rgba: Tensor,  # [B, 4, H, W] in [0, 1], colour not premultiplied.
    generator: torch.Generator,
    *,
    theta: Tensor | None = None,  # [B, 2, 3] crop to start from, e.g. the aligner's (`batches.aligned_theta`).
    size: int | None = None,  # Side of the pictures; None = as the renders.
    max_shift: float = 0.03,  # Of the image's width, either way.
    max_turn_deg: float = 4.0,
    max_zoom: float = 0.06,  # Relative, either way.
    grey_share: float = 0.1,
    occluder_share: float = 0.15,
    texture_share: float = 0.35,
    blur_share: float = 0.35,
) -> tuple[Tensor, Tensor]:
    """Random background, misalignment, texture, exposure, colour, occluder, blur and noise.

    Returns images [B, 3, H, W] in [-1, 1] and the theta [B, 2, 3] used (output position -> input position)."""
    count = len(rgba)
    theta = misalign(count, generator, max_shift, max_turn_deg, max_zoom, device=rgba.device, start=theta)
    colour, opacity = warp(rgba, theta, size)
    images = colour + (1 - opacity) * random_backgrounds(count, colour.shape[2:], generator, rgba.device)
    cover(images, generator, occluder_share)
    images = expose(retexture(images, generator, texture_share), generator)
    grey = _draw(generator, images.device, count, 1, 1, 1) < grey_share
    images = torch.where(grey, images.mean(1, keepdim=True).expand_as(images), images)
    images = soften(images, generator, blur_share, smallest=0.25)
    noise = noise_like(images, generator)
    images = images + 0.05 * _draw(generator, images.device, count, 1, 1, 1).square() * noise
    return images.clamp(0, 1) * 2 - 1, theta


def generator_like(
    rgba: Tensor,  # [B, 4, H, W] in [0, 1], colour not premultiplied.
    background: float,  # Grey level in [0, 1] behind the head.
    generator: torch.Generator,
    *,
    blur_share: float = 0.7,  # A trained generator is a little blurred almost everywhere.
    max_shift: float = 0.02,
) -> Tensor:
    """The plain background and light of the generator, blurred and shifted a little, so that its softness fools no
    classifier.

    Returns images [B, 3, H, W] in [-1, 1]."""
    theta = misalign(len(rgba), generator, max_shift, 2.0, 0.03, device=rgba.device)
    colour, opacity = warp(rgba, theta)
    images = soften(colour + (1 - opacity) * background, generator, blur_share, smallest=0.4)
    images = images * (0.95 + 0.1 * _draw(generator, images.device, len(images), 3, 1, 1))
    noise = noise_like(images, generator)
    images = images + 0.02 * _draw(generator, images.device, len(images), 1, 1, 1).square() * noise
    return images.clamp(0, 1) * 2 - 1


def plain(rgba: Tensor, background: float) -> Tensor:
    """RGBA [B, 4, H, W] in [0, 1] over one grey level -> [B, 3, H, W] in [-1, 1]; nothing random."""
    return (rgba[:, :3] * rgba[:, 3:] + background * (1 - rgba[:, 3:])) * 2 - 1


def misalign(
    count: int,
    generator: torch.Generator,
    max_shift: float,
    max_turn_deg: float,
    max_zoom: float,
    *,
    device: torch.device,
    start: Tensor | None = None,
) -> Tensor:
    """Random small similarity transforms [count, 2, 3] for affine_grid, applied inside the crop `start` where one is
    given."""
    turn = math.radians(max_turn_deg) * (2 * _draw(generator, device, count) - 1)
    zoom = 1 + max_zoom * (2 * _draw(generator, device, count) - 1)
    # affine_grid counts from -1 to 1 across the image: a shift of one width is 2.
    shift = 2 * max_shift * (2 * _draw(generator, device, count, 2) - 1)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom * turn.cos()
    theta[:, 1, 0] = zoom * turn.sin()
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = shift
    if start is None:
        return theta
    moved = start[:, :, :2] @ theta
    moved[:, :, 2] += start[:, :, 2]
    return moved


def warp(rgba: Tensor, theta: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Move RGBA [B, 4, H, W] by theta [B, 2, 3] -> colour premultiplied by opacity [B, 3, size, size], opacity
    [B, 1, size, size].

    Beyond the border the outermost pixels go on, so that shoulders do not end in mid-air."""
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    height, width = (size, size) if size else rgba.shape[2:]
    grid = F.affine_grid(theta, [len(rgba), 4, height, width], align_corners=False)
    moved = F.grid_sample(premultiplied, grid, padding_mode="border", align_corners=False)
    return moved[:, :3], moved[:, 3:]


def random_backgrounds(count: int, shape: tuple[int, int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Clouds of colour at three scales with random contrast, some of them nearly plain -> [count, 3, H, W] in [0,
    1]."""
    texture = torch.zeros(count, 3, *shape, device=device)
    for cells, weight in ((2, 0.5), (5, 0.35), (20, 0.25)):
        noise = _draw(generator, device, count, 3, cells, cells) - 0.5
        # Part of each scale is colourless: rooms and skies are less colourful than independent channels.
        noise = 0.5 * noise + 0.5 * noise.mean(1, keepdim=True)
        texture += weight * F.interpolate(noise, size=shape, mode="bilinear", align_corners=False)
    contrast = 2.2 * _draw(generator, device, count, 1, 1, 1).square()
    level = _draw(generator, device, count, 1, 1, 1) + 0.3 * (_draw(generator, device, count, 3, 1, 1) - 0.5)
    return (level + contrast * texture).clamp(0, 1)


def retexture(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """A random 5 x 5 filter over the brightness of a `share` of the images [B, 3, H, W], blended with what it was, at
    the same mean and spread: shapes and hues stay, and nothing can rely on how renders draw skin and hair (RandConv,
    Xu et al. 2021)."""
    chosen = _chosen(generator, images, share)
    if not len(chosen):
        return images
    grey = images[chosen].mean(1, keepdim=True)  # [C, 1, H, W]
    kernels = torch.randn(len(chosen), 1, 5, 5, generator=generator, device=generator.device).to(images)
    # One that turned bright into dark would cancel what it is blended with.
    kernels *= kernels.sum((1, 2, 3), keepdim=True).sign()
    padded = F.pad(grey, (2, 2, 2, 2), mode="replicate").transpose(0, 1)
    drawn = F.conv2d(padded, kernels, groups=len(chosen)).transpose(0, 1)
    mean, spread = grey.mean((2, 3), keepdim=True), grey.std((2, 3), keepdim=True)
    drawn = (drawn - drawn.mean((2, 3), keepdim=True)) / (drawn.std((2, 3), keepdim=True) + 1e-4) * spread + mean
    images = images.clone()
    images[chosen] += 0.6 * _draw(generator, images.device, len(chosen), 1, 1, 1) * (drawn - grey)
    return images.clamp(0, 1)


def expose(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random gamma, exposure, white balance, saturation, contrast and fall-off of light across the image; [B, 3, H, W]
    in [0, 1]."""
    count, device = len(images), images.device
    # Each image has its own strength: photos in good light are as common as those in bad.
    strength = _draw(generator, device, count, 1, 1, 1)

    def between(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = low + (high - low) * _draw(generator, device, count, channels, 1, 1)
        rest = 1.0 if low > 0 else 0.0
        return rest + (drawn - rest) * strength

    images = images.clamp(1e-3, 1) ** between(0.7, 1.4)  # The floor keeps the power's gradient and logarithm finite.
    images = images * between(0.75, 1.25) * between(0.84, 1.16, 3)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * between(0.6, 1.3)
    middle = images.mean((2, 3), keepdim=True)
    images = middle + (images - middle) * between(0.75, 1.25)
    across = torch.linspace(-1, 1, images.shape[3], device=device)
    down = torch.linspace(-1, 1, images.shape[2], device=device)[:, None]
    return images * (1 + between(-0.2, 0.2) * across + between(-0.2, 0.2) * down)


def soften(images: Tensor, generator: torch.Generator, share: float, smallest: float) -> Tensor:
    """Shrink a `share` of the images to between `smallest` and 1 of their size and enlarge them again, as small
    photos are.

    The batch shares two random sizes, half each: one pair of resizes per half, not one per image."""
    size = images.shape[2:]
    chosen = _chosen(generator, images, share)
    images = images.clone()
    for half in chosen.chunk(2):
        if len(half):
            scale = smallest + (1 - smallest) * _draw(generator, torch.device("cpu"), 1).item()
            small = F.interpolate(images[half], scale_factor=scale, mode="bilinear", antialias=True)
            images[half] = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return images


def cover(images: Tensor, generator: torch.Generator, share: float) -> None:
    """Draw a flat ellipse of random colour over a `share` of the images, in place: hands, hair, a microphone, a
    caption."""
    count, _, height, width = images.shape
    down = torch.linspace(0, 1, height, device=images.device)[:, None]
    across = torch.linspace(0, 1, width, device=images.device)
    for i in (_draw(generator, torch.device("cpu"), count) < share).nonzero()[:, 0].tolist():
        x, y, radius_x, radius_y, *colour = _draw(generator, torch.device("cpu"), 7).tolist()
        inside = ((across - x) / (0.04 + 0.2 * radius_x)) ** 2 + ((down - y) / (0.04 + 0.2 * radius_y)) ** 2 < 1
        images[i] = torch.where(inside, torch.tensor(colour, device=images.device)[:, None, None], images[i])


def _chosen(generator: torch.Generator, images: Tensor, share: float) -> Tensor:
    """Places of about a `share` of the images. Counted on the host: to count on a GPU is to wait for it."""
    drawn = _draw(generator, torch.device("cpu"), len(images)) < share
    return drawn.nonzero()[:, 0].to(images.device)


def _draw(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) from a generator that may live elsewhere than the images."""
    return torch.rand(shape, generator=generator, device=generator.device).to(device)
