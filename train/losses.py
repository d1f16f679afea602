"""The encoder's losses, one short function each (paper, sections 3.2 and 3.3). Images are [B,3,H,W] in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.attributes import HeadReader, Reading


def pixel_loss(images: Tensor, truth: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """L_2 of Eq. 7: the mean square; `weights` [1,1,H,W] of mean 1 may count eyes and mouth more."""
    return ((images - truth).square() * weights).mean()


def edge_loss(images: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Mean absolute error of horizontal and vertical differences: the sharpness that the mean square averages away."""
    error = images - truth
    across = (error[..., 1:] - error[..., :-1]).abs() * weights[..., 1:]
    down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weights[..., 1:, :]
    return across.mean() + down.mean()


def latent_norm_loss(w: Tensor, truth: Tensor) -> Tensor:
    """L_w, Eq. 4: the squared distance |w - E(G(w, c))|^2 of w [B,num_ws,w_dim], mean over the batch."""
    return (w.float() - truth).square().sum((1, 2)).mean()


def latent_loss(w: Tensor, truth: Tensor, metric: Tensor) -> Tensor:
    """Eq. 4 per entry of w [B,num_ws,w_dim], weighted by `metric` [w_dim,w_dim] (see `train.picture_metric`)."""
    error = w.float() - truth
    return ((error @ metric) * error).mean()


def perceptual_loss(reader: HeadReader, images: Tensor, truth: Tensor) -> Tensor:
    """L_LPIPS of Eq. 7 on our own network: distance of the body's unit-length features, averaged over its stages.

    Like LPIPS (Zhang et al. 2018, Eq. 1) with all channel weights 1; `train.lpips` is the published one."""
    seen = stage_features(reader, images)
    with torch.no_grad():
        wanted = stage_features(reader, truth)
    return sum(_unit(s).sub(_unit(t)).square().sum(1).mean() for s, t in zip(seen, wanted)) / len(seen)


def identity_loss(network: nn.Module, images: Tensor, truth: Tensor) -> Tensor:
    """L_ID, Eq. 5: 1 - <F(X), F(G(E(X), c))>, F being the identity network, or what stands for it (see `embed`).

    `truth` [B,3,H,W] may be any picture of the same head under the generator's light."""
    return surround_identity_loss(network, images[:, None], truth)


def surround_identity_loss(
    network: nn.Module,
    views: Tensor,  # [B,N,3,H,W]
    truth: Tensor,  # [B,3,H,W]
) -> Tensor:
    """The second sum of L_multiID, Eq. 6: L_ID between X and N views around its camera, mean over views and batch."""
    with torch.no_grad():
        wanted = embed(network, truth)  # [B,E]
    seen = embed(network, views.flatten(0, 1)).unflatten(0, views.shape[:2])  # [B,N,E]
    return 1 - (seen * wanted[:, None]).sum(2).mean()


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """Unit vectors [B,E] of images, by an `IdentityNetwork`, a `FeatureNetwork` or the embedding of a `HeadReader`."""
    output = network(images)
    return F.normalize((output.embedding if isinstance(output, Reading) else output).float(), dim=1)


def stage_features(reader: HeadReader, images: Tensor) -> list[Tensor]:
    """The body's feature maps at the end of each resolution, finest first."""
    size = reader.config.input_size
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    x, units, maps = reader.input_layer(images), iter(reader.body), []
    for count in reader.config.units:
        for _ in range(count):
            x = next(units)(x)
        maps.append(x)
    return maps


def _unit(features: Tensor) -> Tensor:
    # 1e-6: a pixel whose features are all zero stays zero.
    return features.float() / (features.float().square().sum(1, keepdim=True) + 1e-6).sqrt()
