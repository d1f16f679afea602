"""Random numbers where they are used, from one generator on the host: its seed alone decides all of them, so that a
resumed run draws the same again."""

import torch
from torch import Tensor


def on_device(draws: torch.Generator, device: torch.device) -> torch.Generator:
    """`draws` itself; for another device one there that it gives the seed. For many numbers, which would take the host
    longer than a GPU takes for all the rest of a step."""
    if draws.device == device:
        return draws
    seed = int(torch.randint(2**62, (), generator=draws, device=draws.device))
    return torch.Generator(device).manual_seed(seed)


def noise_like(images: Tensor, draws: torch.Generator) -> Tensor:
    """Normal noise."""
    return torch.randn(images.shape, generator=on_device(draws, images.device), device=images.device)
