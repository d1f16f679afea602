"""How much each direction of a code (head features, or w) shows in the picture: the weight of errors in that code.

Predicting codes is a hundred times cheaper than rendering them. To first order the error of the picture is
|J (code - truth)|^2 = (code - truth)^T M (code - truth) with M = J^T J, J being the picture's linear dependence on
the code, so a regression weighted by M minimises the picture's error without rendering."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.camera import angles_from_camera
from train import augment
from train.batches import to_float
from train.heads.dataset import BACKGROUND, HeadsDataset


METRIC_PICTURE = 32  # Side of the pictures that weigh the features,
METRIC_HEADS = 3000  # and how many heads they show: many times the number of features.


def frontal_pictures(
    dataset: HeadsDataset, heads: np.ndarray, size: int = METRIC_PICTURE
) -> tuple[np.ndarray, Tensor]:
    """The most frontal plain view of each of `heads`, where it is near enough -> which heads, pictures
    [n,3,size,size]."""
    cameras = torch.as_tensor(np.asarray(dataset.cameras[heads]), dtype=torch.float32)
    yaw, pitch = angles_from_camera(cameras.flatten(0, 1))
    tilt = (yaw.square() + pitch.square()).sqrt().reshape(cameras.shape[:2])
    nearest, view = tilt.min(1)
    near = (nearest < 0.3).numpy()
    heads, view = heads[near], view.numpy()[near]
    pictures = []
    for start in range(0, len(heads), 64):
        span = slice(start, start + 64)
        images = augment.plain(to_float(dataset.images[heads[span], view[span]]), BACKGROUND)
        pictures.append(F.interpolate(images, (size, size), mode="area"))
    return heads, torch.cat(pictures)


# Where the expression is, in the EG3D crop (fractions of its side): left eye, right eye, mouth; and their radius.
EXPRESSION_SPOTS = ((0.367, 0.376), (0.633, 0.376), (0.5, 0.664))
SPOT_RADIUS = 0.11


def expression_weights(
    size: int,
    boost: float = 4.0,  # Eyes and mouth are 1/12 of the picture but all of the expression.
    device: str | torch.device = "cpu",
) -> Tensor:
    """[1,1,size,size]: 1 + `boost` around the eyes and the mouth of a frontal crop, 1 elsewhere."""
    place = (torch.arange(size, device=device) + 0.5) / size
    weights = torch.ones(size, size, device=device)
    for x, y in EXPRESSION_SPOTS:
        squared = (place[None, :] - x) ** 2 + (place[:, None] - y) ** 2
        weights += boost * torch.exp(-squared / (2 * (SPOT_RADIUS / 2) ** 2))
    return weights[None, None]


def picture_metric(
    codes: Tensor,  # [N,D], N some times D
    pictures: Tensor,  # [N,3,h,w] of these codes, all from about the same camera
    *,
    boost: float = 4.0,
    plain_share: float = 0.2,  # Of the plain squared error, for what a linear map does not see.
    ridge: float = 1e-2,
) -> Tensor:
    """M [D,D], positive definite, mean of the diagonal 1: the picture's squared change per change of the code."""
    weights = expression_weights(pictures.shape[-1], boost, pictures.device).sqrt()
    slopes = _slopes(codes, ((pictures - pictures.mean(0)) * weights).flatten(1).double(), ridge)
    metric = slopes @ slopes.T
    metric = metric / metric.diagonal().mean()
    eye = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    return ((1 - plain_share) * metric + plain_share * eye).float()


def visibility(
    codes: Tensor,  # [N,D], N some times D
    pictures: Tensor,  # [N,3,h,w] of these codes, all from about the same camera
    *,
    pixels: int = 20,  # A feature counts by the pixels that it explains best: a smile is small, but all of a mouth.
    ridge: float = 1e-2,
) -> Tensor:
    """[D], of mean square 1: the share of a pixel's spread that one spread of each entry explains, at its best."""
    y = (pictures - pictures.mean(0)).flatten(1).double()
    slopes = _slopes(codes, y, ridge)
    explained = slopes.square() / y.var(0).clamp(min=1e-3)  # [D,P]; the clamp leaves out plain background
    explained = explained.view(len(slopes), pictures.shape[1], -1).mean(1).topk(pixels, 1).values.mean(1)
    return (explained / explained.mean()).sqrt().float()


def _slopes(codes: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Ridge regression of centred y [N,P] on codes [N,D]: slopes [D,P], the transpose of J."""
    x = (codes - codes.mean(0)).double()
    covariance = x.T @ x / len(x)
    # Without the ridge, directions in which the codes hardly vary would get huge, meaningless slopes.
    damping = ridge * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(covariance + damping, x.T @ y / len(x))


def code_loss(predicted: Tensor, truth: Tensor, metric: Tensor) -> Tensor:
    """Mean over the batch of (p - t)^T M (p - t) / D; codes [B,D], metric [D,D]. With M = 1 the mean square."""
    error = predicted.float() - truth
    return ((error @ metric) * error).sum(1).mean() / error.shape[1]
