"""What is measured and how, fixed once: PSNR over the person, nearest of so many, pose distance, attribute altering
and dependency, FID and KID (paper, section 4.2, C and G)."""

from math import comb

import torch
from torch import Tensor


def person_psnr_db(images: Tensor, photos: Tensor, person: Tensor) -> float:
    """Peak signal-to-noise ratio over the person's pixels of all photos together: images and photos [B, 3, H, W] in
    [-1, 1] (a range of 2), person [B, 1, H, W] of 0 and 1."""
    error = ((images.clamp(-1, 1) - photos).square() * person).sum() / (3 * person.sum())
    return -10 * torch.log10(error / 4).item()


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Between embeddings [..., E] of the same pictures, [...]."""
    return (first - second).norm(dim=-1)


def mean_of_others(distances: Tensor) -> float:
    """Between different people: distances [N, N], row to column, own ones on the diagonal."""
    count = len(distances)
    return ((distances.sum() - distances.trace()) / (count * (count - 1))).item()


def nearest_rate(distances: Tensor, among: int) -> float | None:
    """How often the right person is the nearest of `among` people, the others of whom are drawn by lot: the mean over
    all such draws. Distances [N, N], row to column, own ones on the diagonal. None with fewer people."""
    others = len(distances) - 1
    if others < among - 1:
        return None
    nearer = (distances < distances.diagonal()[:, None]).sum(1).tolist()
    # The own one is nearest where none of the nearer ones is drawn.
    return sum(comb(others - count, among - 1) / comb(others, among - 1) for count in nearer) / len(nearer)


def attribute_altering(before: Tensor, after: Tensor, sigma: Tensor, edited: int) -> float:
    """AA: mean change of the edited attribute's logit over its standard deviation; logits [B, A], sigma [A]."""
    return ((after - before)[:, edited] / sigma[edited]).mean().item()


def attribute_dependency(before: Tensor, after: Tensor, sigma: Tensor, edited: int) -> float:
    """AD: mean over the other attributes of the absolute change of logit over its standard deviation."""
    change = ((after - before) / sigma).abs().mean(0)
    others = torch.arange(len(sigma)) != edited
    return change[others].mean().item()


def pose_distance(estimated: Tensor, asked: Tensor) -> float:
    """APD: root mean squared error between pose encodings [N, K] in radians, estimated on the views and asked for."""
    return (estimated - asked).square().mean().sqrt().item()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """FID (Heusel et al. 2017): the Fréchet distance of two Gaussians fitted to features [N, D] and [M, D].

    It shrinks as N and M grow: compare figures of equal n only."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.double().mean(0), torch.cov(x.double().T)) for x in (first, second))
    # tr((A B)^(1/2)) = tr((A^(1/2) B A^(1/2))^(1/2)), of which both roots are of symmetric matrices.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """KID (Binkowski et al. 2018): the unbiased squared MMD of features [N, D] and [M, D], kernel (x.y / D + 1)^3."""
    x, y = first.double(), second.double()
    within_x, within_y, between = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    own = (within_x.sum() - within_x.trace()) / (n * (n - 1)) + (within_y.sum() - within_y.trace()) / (m * (m - 1))
    return (own - 2 * between.mean()).item()
