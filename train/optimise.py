"""A photo -> w by descent, generator and camera fixed: the naive inversion that the encoder is compared with (paper,
section D)."""

import torch
from torch import Tensor, nn

from preim3d.generator import TriPlaneGenerator
from train.perceptual import perceptual_distance
from train.progress import cosine_rate


def optimise_latent(
    generator: TriPlaneGenerator,
    network: nn.Module,  # images -> list of features
    photo: Tensor,  # [1,3,H,W] in [-1, 1], of the generator's size
    person: Tensor,  # [1,1,H,W] of 0 and 1: where it is compared
    camera: Tensor,  # [1,25]
    steps: int = 300,
    rate: float = 0.1,  # Adam's, in standard deviations of the mapping's w
    seed: int = 0,
) -> Tensor:
    """w [1,num_ws,w_dim] whose view from `camera` is nearest to `photo` in L2 and in the network's features, found
    from the mean w."""
    z = torch.randn(1000, generator.config.z_dim, generator=torch.Generator().manual_seed(seed)).to(generator.device)
    with torch.no_grad():
        sampled = generator.mapping(z, generator.frontal_camera().expand(len(z), -1))
    w = sampled.mean(0, keepdim=True).requires_grad_()
    rate = rate * sampled.std(0).mean().item()
    optimizer = torch.optim.Adam([w], rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step / steps, rate, warm=0.05)
        seen = generator.render(generator.planes(w), camera, w).image
        loss = ((seen - photo).square() * person).sum() / (3 * person.sum())
        loss = loss + 0.8 * perceptual_distance(network, seen, photo, person)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return w.detach()
