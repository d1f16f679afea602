"""Latents and scores -> the directions that tell them apart: linear SVMs (paper, 3.4 and A.2), and, where nobody has
scores, principal components and the generator's own factors.

All give unit normals [num_ws, w_dim]; how far to go along them is `calibration.py`'s question."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from preim3d.generator import TriPlaneGenerator


FEWEST = 8  # latents of either kind: fewer say nothing


@dataclass
class Boundary:
    """The hyperplane between an attribute's extremes in W+, and what lies across it."""

    normal: np.ndarray  # [num_ws, w_dim], unit length over all entries; towards more of the attribute
    pattern: np.ndarray  # likewise: how the latents move, on average, as they go along the normal
    offset: np.ndarray  # [num_ws, w_dim] from the mean of those without to the mean of those with it
    accuracy: float  # balanced, on the 30 % that the SVM did not see
    sigma: float  # standard deviation of the latents along the normal
    correlation: float  # between the latents' place along the normal and the score
    taken: int  # latents that the SVM was fitted and validated on


class PrincipalAxes:
    """Latents [N, num_ws, w_dim] in their principal axes: the rows of one latent hardly differ, so that a few hundred
    numbers say all of it."""

    def __init__(self, w: np.ndarray, kept: float = 0.9999):  # share of the variance that the axes hold
        self.shape = w.shape[1:]
        flat = w.reshape(len(w), -1).astype(np.float64)
        flat -= flat.mean(0)
        if len(flat) < flat.shape[1]:  # the covariance would be mostly nothing, and minutes of work
            _, spread, axes = np.linalg.svd(flat, full_matrices=False)
            variance = spread**2 / len(flat)
        else:
            variance, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
            variance, axes = variance[::-1], vectors[:, ::-1].T
        count = int(np.searchsorted(np.cumsum(variance) / variance.sum(), kept)) + 1
        self.axes = axes[:count]  # [q, num_ws*w_dim]
        self.coordinates = flat @ self.axes.T  # [N, q]

    def along(self, normals: np.ndarray) -> np.ndarray:
        """Places [N] of the latents, about their mean, along a unit direction [num_ws, w_dim]."""
        return self.coordinates @ (self.axes @ normals.ravel())


def fit_boundary(
    principal: PrincipalAxes,
    score: np.ndarray,  # [N] the classifier's logit, or the label less .5: above 0 = has the attribute
    seed: int,
    extremes: int = 1000,  # At most so many of either end of the score.
    cost: float = 1.0,  # SVM's C over the number of latents, on latents scaled to unit variance in the mean.
    among: np.ndarray | None = None,  # [N] bool: the latents to learn from; None = all.
    strata: np.ndarray | None = None,  # [N] int: groups within which both kinds are to weigh alike; None = one.
) -> Boundary:
    """Linear SVM between the highest and the lowest scores: InterFaceGAN's protocol (Shen et al. 2020), 70 % to fit
    and 30 % to validate on.

    A normal that separates well also cancels whatever else varies, and may hardly show; its pattern, the covariance
    times it (Haufe et al. 2014, Eq. 6), is the change that the classifier answers to.

    Raises ValueError where fewer than `FEWEST` latents have the attribute, or lack it."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.svm import LinearSVC

    chosen = np.arange(len(score)) if among is None else np.nonzero(among)[0]
    order = chosen[np.argsort(score[chosen], kind="stable")]
    # Rare attributes have fewer heads than `extremes`: never call a head without it one with it.
    counts = int((score[order] > 0).sum()), int((score[order] < 0).sum())
    if min(counts) < FEWEST:
        raise ValueError(f"Only {counts[0]} latents have it and {counts[1]} lack it; {FEWEST} of either are needed.")
    most, least = (min(count, extremes) for count in counts)
    chosen = np.concatenate([order[:least], order[-most:]])
    truth = np.concatenate([np.zeros(least, bool), np.ones(most, bool)])
    rng = np.random.default_rng(seed)
    # Each kind is split by itself, so that the few are on either side of the split.
    places = [rng.permutation(np.nonzero(truth == kind)[0]) for kind in (False, True)]
    fitted, validated = (
        np.concatenate([kind[cut(len(kind))] for kind in places])
        for cut in (lambda n: slice(int(0.7 * n)), lambda n: slice(int(0.7 * n), None))
    )
    x = principal.coordinates[chosen] / principal.coordinates.std()
    weight = balance(truth, np.zeros(len(truth), int) if strata is None else strata[chosen])
    svm = LinearSVC(C=cost / len(x), loss="squared_hinge", dual=False, intercept_scaling=10.0)
    svm.fit(x[fitted], truth[fitted], sample_weight=weight[fitted])
    accuracy = float(
        balanced_accuracy_score(truth[validated], svm.predict(x[validated]), sample_weight=weight[validated])
    )
    centred = x - np.average(x, axis=0, weights=weight)
    pattern = (weight * (centred @ svm.coef_[0])) @ centred
    offset = np.average(x[truth], axis=0, weights=weight[truth])
    offset -= np.average(x[~truth], axis=0, weights=weight[~truth])
    normal, pattern = (
        ((direction / np.linalg.norm(direction)) @ principal.axes).reshape(principal.shape)
        for direction in (svm.coef_[0], pattern)
    )
    offset = (offset * principal.coordinates.std() @ principal.axes).reshape(principal.shape)
    places = principal.along(normal)
    correlation = float(np.corrcoef(places[order], score[order])[0, 1])
    return Boundary(normal, pattern, offset, accuracy, float(places.std()), correlation, len(x))


def balance(truth: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Weights [n], 1 in the mean, with which those that have the attribute weigh as much as those that lack it, in
    every stratum: then an old face's direction is not a man's, where most of the old are men."""
    weight = np.zeros(len(truth))
    for stratum in np.unique(strata):
        kinds = [(strata == stratum) & (truth == kind) for kind in (False, True)]
        counts = [kind.sum() for kind in kinds]
        if min(counts):  # a stratum of one kind tells nothing apart
            for kind, count in zip(kinds, counts):
                weight[kind] = min(counts) / count
    if not weight.any():
        return balance(truth, np.zeros(len(truth), int))
    # Together too both kinds weigh alike: `min(counts)` is the same for both.
    return weight / weight.mean()


def principal_components(w: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """GANSpace (Härkönen et al. 2020): the `count` unit directions [count, num_ws, w_dim] in which latents vary most,
    and the standard deviations [count] along them."""
    principal = PrincipalAxes(w)
    return principal.axes[:count].reshape(-1, *principal.shape), principal.coordinates[:, :count].std(0)


def closed_form_factors(generator: TriPlaneGenerator, count: int) -> Tensor:
    """SeFa (Shen and Zhou 2021, Eq. 5): the `count` unit directions [count, num_ws, w_dim] that change the styles
    most.

    They are the first eigenvectors of A^T A, A [S, w_dim] being the weights that make all layers' styles of w; every
    row of w moves alike."""
    styles = torch.cat([
        module.affine.weight.detach().double() * module.affine.weight_gain
        for module in generator.backbone.synthesis.modules()
        if hasattr(module, "affine")
    ])  # fmt: skip
    _, vectors = torch.linalg.eigh(styles.T @ styles)
    leading = vectors.flip(1)[:, :count].T.float()  # eigh sorts upwards
    return leading[:, None].expand(-1, generator.num_ws, -1) / generator.num_ws**0.5
