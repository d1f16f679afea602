"""What is measured and how, fixed once: PSNR, identity cosine, attribute altering and dependency (paper, section 4.2
and C)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr_db(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, [B], for [B,3,H,W] in [-1, 1] (a range of 2)."""
    return -10 * torch.log10((images.clamp(-1, 1) - truth).square().mean((1, 2, 3)) / 4)


def identity_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of identity embeddings [B,E], [B]."""
    return F.cosine_similarity(first, second, dim=1)


def attribute_altering(before: Tensor, after: Tensor, sigma: Tensor, edited: int) -> float:
    """AA: mean change of the edited attribute's logit over its standard deviation; logits [B,A], sigma [A]."""
    return ((after - before)[:, edited] / sigma[edited]).mean().item()


def attribute_dependency(before: Tensor, after: Tensor, sigma: Tensor, edited: int) -> float:
    """AD: mean over the other attributes of the absolute change of logit over its standard deviation."""
    change = ((after - before) / sigma).abs().mean(0)
    others = torch.arange(len(sigma)) != edited
    return change[others].mean().item()
