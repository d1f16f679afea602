"""The encoder's losses, one short function each (paper, sections 3.2 and 3.3). Images are [B, 3, H, W] in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixel_loss(images: Tensor, truth: Tensor) -> Tensor:
    """L_2 of Eq. 7: the mean square."""
    return (images - truth).square().mean()


def latent_norm_loss(w: Tensor, truth: Tensor) -> Tensor:
    """L_w, Eq. 4: the squared distance |w - E(G(w, c))|^2 of w [B, num_ws, w_dim], mean over the batch."""
    return (w.float() - truth).square().sum((1, 2)).mean()


def identity_loss(network: nn.Module, images: Tensor, truth: Tensor) -> Tensor:
    """L_ID, Eq. 5: 1 - <F(X), F(G(E(X), c))>, F being the identity network, or what stands for it (see `embed`).

    `truth` [B, 3, H, W] may be any picture of the same head under the generator's light."""
    return surround_identity_loss(network, images[:, None], truth)


def surround_identity_loss(
    network: nn.Module,
    views: Tensor,  # [B, N, 3, H, W]
    truth: Tensor,  # [B, 3, H, W]
) -> Tensor:
    """The second sum of L_multiID, Eq. 6: L_ID between X and N views around its camera, mean over views and batch."""
    with torch.no_grad():
        wanted = embed(network, truth)  # [B, E]
    seen = embed(network, views.flatten(0, 1)).unflatten(0, views.shape[:2])  # [B, N, E]
    return 1 - (seen * wanted[:, None]).sum(2).mean()


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """Unit vectors [B, E] of images, by an `IdentityNetwork`, dlib's `FaceIdentity` or a `FeatureNetwork`."""
    return F.normalize(network(images).float(), dim=1)
