"""What is measured and how, fixed once: PSNR, identity cosine, pose distance, attribute altering and dependency, FID
and KID (paper, section 4.2, C and G)."""

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


def pose_distance(estimated: Tensor, asked: Tensor) -> float:
    """APD: root mean squared error between pose encodings [N,K] in radians, estimated on the views and asked for."""
    return (estimated - asked).square().mean().sqrt().item()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """FID (Heusel et al. 2017): the Fréchet distance of two Gaussians fitted to features [N,D] and [M,D].

    It shrinks as N and M grow: compare figures of equal n only."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.double().mean(0), torch.cov(x.double().T)) for x in (first, second))
    # tr((A B)^(1/2)) = tr((A^(1/2) B A^(1/2))^(1/2)), of which both roots are of symmetric matrices.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """KID (Binkowski et al. 2018): the unbiased squared MMD of features [N,D] and [M,D], kernel (x.y / D + 1)^3."""
    x, y = first.double(), second.double()
    within_x, within_y, between = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    own = (within_x.sum() - within_x.trace()) / (n * (n - 1)) + (within_y.sum() - within_y.trace()) / (m * (m - 1))
    return (own - 2 * between.mean()).item()
