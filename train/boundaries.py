"""Latents and scores -> the directions that tell them apart: linear SVMs (paper, 3.4 and A.2), and, where nobody has
scores, principal components and the generator's own factors.

All give unit normals [num_ws,w_dim]; how far to go along them is `train.calibration`'s question."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from preim3d.generator import TriPlaneGenerator


@dataclass
class Boundary:
    """The plane between an attribute's extremes in W+."""

    normal: np.ndarray  # [num_ws,w_dim], unit length over all entries; towards more of the attribute
    pattern: np.ndarray  # likewise: how the latents move, on average, as they go along the normal
    accuracy: float  # balanced, on the 30 % that the SVM did not see
    sigma: float  # standard deviation of the latents along the normal
    correlation: float  # between the latents' place along the normal and the score
    taken: int  # latents that the SVM was fitted and validated on


class Manifold:
    """Latents [N,num_ws,w_dim] in their principal axes: the rows of one latent hardly differ, so that a few hundred
    numbers say all of it."""

    def __init__(self, w: np.ndarray, kept: float = 0.9999):  # share of the variance that the axes hold
        self.shape = w.shape[1:]
        flat = w.reshape(len(w), -1).astype(np.float64)
        flat -= flat.mean(0)
        variance, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
        variance, vectors = variance[::-1], vectors[:, ::-1]
        count = int(np.searchsorted(np.cumsum(variance) / variance.sum(), kept)) + 1
        self.axes = vectors[:, :count].T  # [q,num_ws*w_dim]
        self.coordinates = flat @ self.axes.T  # [N,q]

    def along(self, normals: np.ndarray) -> np.ndarray:
        """Places [N] of the latents, about their mean, along a unit direction [num_ws,w_dim]."""
        return self.coordinates @ (self.axes @ normals.ravel())


def fit_boundary(
    manifold: Manifold,
    score: np.ndarray,  # [N] the classifier's logit, or the label less .5: above 0 = has the attribute
    seed: int,
    extremes: int = 1000,  # At most so many of either end of the score.
    cost: float = 1.0,  # SVM's C over the number of latents, on latents scaled to unit variance in the mean.
    among: np.ndarray | None = None,  # [N] bool: the latents to learn from; None = all.
) -> Boundary:
    """Linear SVM between the highest and the lowest scores: InterFaceGAN's protocol (Shen et al. 2020), 70 % to fit
    and 30 % to validate on.

    A normal that separates well also cancels whatever else varies, and may hardly show; its pattern, the covariance
    times it (Haufe et al. 2014, Eq. 6), is the change that the classifier answers to."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.svm import LinearSVC

    chosen = np.arange(len(score)) if among is None else np.nonzero(among)[0]
    order = chosen[np.argsort(score[chosen], kind="stable")]
    # Rare attributes have fewer heads than `extremes`: never call a head without it one with it.
    counts = (score[order] > 0).sum(), (score[order] < 0).sum()
    most, least = (int(np.clip(n, 8, min(extremes, len(order) // 2))) for n in counts)
    chosen = np.concatenate([order[:least], order[-most:]])
    truth = np.concatenate([np.zeros(least, bool), np.ones(most, bool)])
    mixed = np.random.default_rng(seed).permutation(len(chosen))
    cut = int(0.7 * len(mixed))
    x, y = manifold.coordinates[chosen[mixed]] / manifold.coordinates.std(), truth[mixed]
    svm = LinearSVC(C=cost / len(x), loss="squared_hinge", dual=False, class_weight="balanced", intercept_scaling=10.0)
    svm.fit(x[:cut], y[:cut])
    accuracy = float(balanced_accuracy_score(y[cut:], svm.predict(x[cut:])))
    pattern = np.cov(x.T) @ svm.coef_[0]
    normal, pattern = (
        ((direction / np.linalg.norm(direction)) @ manifold.axes).reshape(manifold.shape)
        for direction in (svm.coef_[0], pattern)
    )
    places = manifold.along(normal)
    correlation = float(np.corrcoef(places, score)[0, 1])
    return Boundary(normal, pattern, accuracy, float(places.std()), correlation, len(x))


def project_out(
    normal: np.ndarray,  # [num_ws,w_dim]
    protected: list[np.ndarray],  # normals, likewise
) -> np.ndarray:
    """The unit direction nearest to `normal` along which no protected attribute's score changes (InterFaceGAN's
    conditional manipulation, Shen et al. 2020, section 3.3)."""
    basis, _ = np.linalg.qr(np.stack([other.ravel() for other in protected], 1))  # [D,P]
    rest = normal.ravel() - basis @ (basis.T @ normal.ravel())
    length = np.linalg.norm(rest)
    if length < 1e-6:
        raise ValueError("Nothing is left of the direction: the protected attributes already contain it.")
    return (rest / length).reshape(normal.shape)


def principal_components(w: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """GANSpace (Härkönen et al. 2020): the `count` unit directions [count,num_ws,w_dim] in which latents vary most,
    and the standard deviations [count] along them."""
    manifold = Manifold(w)
    return manifold.axes[:count].reshape(-1, *manifold.shape), manifold.coordinates[:, :count].std(0)


def closed_form_factors(generator: TriPlaneGenerator, count: int) -> Tensor:
    """SeFa (Shen and Zhou 2021, Eq. 5): the `count` unit directions [count,num_ws,w_dim] that change the styles most.

    They are the first eigenvectors of A^T A, A [S,w_dim] being the weights that make all layers' styles of w; every
    row of w moves alike."""
    styles = torch.cat([
        module.affine.weight.detach().double() * module.affine.weight_gain
        for module in generator.backbone.synthesis.modules()
        if hasattr(module, "affine")
    ])  # fmt: skip
    _, vectors = torch.linalg.eigh(styles.T @ styles)
    leading = vectors.flip(1)[:, :count].T.float()  # eigh sorts upwards
    return leading[:, None].expand(-1, generator.num_ws, -1) / generator.num_ws**0.5
