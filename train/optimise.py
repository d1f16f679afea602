"""A picture -> w by descent, generator and camera fixed: the naive inversion that the encoder is compared with
(paper, section D)."""

import torch
from torch import Tensor

from preim3d.generator import TriPlaneGenerator
from train import losses
from train.attributes import HeadReader
from train.progress import cosine_rate


def optimise_latents(
    generator: TriPlaneGenerator,
    reader: HeadReader,
    images: Tensor,  # [B,3,H,W] in [-1, 1], of the generator's size
    cameras: Tensor,  # [B,25]
    steps: int = 300,
    rate: float = 0.1,  # Adam's, in standard deviations of the mapping's w
    seed: int = 0,
) -> Tensor:
    """w [B,num_ws,w_dim] whose views from `cameras` are nearest to `images` in L2 and in the reader's features, found
    from the mean w. Every image counts alone: a batch gives what its images give one by one."""
    z = torch.randn(1000, generator.config.z_dim, generator=torch.Generator().manual_seed(seed)).to(generator.device)
    with torch.no_grad():
        sampled = generator.mapping(z, generator.frontal_camera().expand(len(z), -1))
    w = sampled.mean(0, keepdim=True).repeat(len(images), 1, 1).requires_grad_()
    rate = rate * sampled.std(0).mean().item()
    optimizer = torch.optim.Adam([w], rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step / steps, rate, warm=0.05)
        seen = generator.render(generator.planes(w), cameras, w).image
        # Means over the batch times its size: the gradient of each image is as if it were alone.
        loss = losses.pixel_loss(seen, images, 1.0) + 0.8 * losses.perceptual_loss(reader, seen, images)
        optimizer.zero_grad()
        (loss * len(images)).backward()
        optimizer.step()
    return w.detach()
