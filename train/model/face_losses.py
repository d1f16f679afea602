"""What `train.faces` asks of a reconstruction: the photo's looks, the person's identity, the face's relief."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preim3d.efficientnet import perceptual_distance
from preim3d.generator import RenderOutput, TriPlaneGenerator
from preim3d.identity import FaceIdentity, cut_chips
from train.model.face_batches import PhotoBatch


# Of photos; those of heads are field_losses.LOSS_WEIGHTS and `w`.
LOSS_WEIGHTS = {
    "pixels": 1.5,  # L1 of the picture
    "raw": 1.5,  # and of the picture before super-resolution
    "squares": 1.0,
    "outline": 0.5,
    "relief": 6.0,
    "lite0": 1.0,
    "vgg": 3.0,
    "identity": 1.2,
    "identity_features": 0.6,
    "identity_aside": 0.5,
    "w": 0.02,
}
IDENTITY_TAPS = (1, 4, 7, 10)  # blocks of dlib's network whose outputs are compared too
RELIEF_MOST = 0.05  # differences of depth beyond this are outliers: hair over the face, hands
MESH_DEPTH = 2.48  # distance of the camera to the face's surface, by which the landmarks' pixels become lengths


def photo_losses(
    view: RenderOutput,  # at the photos' cameras
    batch: PhotoBatch,
    identity: FaceIdentity,
    teachers: dict[str, nn.Module],  # of `perceptual_distance`
    generator: TriPlaneGenerator,
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of LOSS_WEIGHTS at the photo's own camera, and the photos' embeddings [B, 128]."""
    size = batch.targets.shape[-1]
    raw_size, image = view.raw.shape[-2:], F.interpolate(view.image, (size, size), mode="area")

    weight = F.interpolate(batch.compared, raw_size, mode="area")
    terms, wanted = picture_losses(image, batch.targets, batch.compared, teachers, identity)
    return terms | {
        "raw": mean_over((view.raw - F.interpolate(batch.targets, raw_size, mode="area")).abs(), weight),
        "outline": mean_over((view.opacity - F.interpolate(batch.person, raw_size, mode="area")).square(), weight),
        "relief": relief(view, batch, generator),
    }, wanted


def picture_losses(
    images: Tensor,  # [B, 3, S, S]
    targets: Tensor,  # [B, 3, S, S] in [-1, 1]
    compared: Tensor,  # [B, 1, S, S] how much each pixel counts
    teachers: dict[str, nn.Module],  # of `perceptual_distance`
    identity: FaceIdentity | None,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The terms of LOSS_WEIGHTS that ask for pictures alone, and the targets' embeddings [B, 128]; without an identity
    network those of its terms and the embeddings are left out."""
    terms = {
        "pixels": mean_over((images - targets).abs(), compared),
        "squares": mean_over((images - targets).square(), compared),
    }
    # Where nothing is compared, networks that look at whole pictures are shown the target itself.
    shown = torch.where(compared > 0, images, targets)
    seen = (compared > 0).float()
    for name, teacher in teachers.items():
        terms[name] = perceptual_distance(teacher, shown, targets, seen)
    if identity is None:
        return terms, None
    embedding, features = identity.embed_chips(cut_chips(shown))
    with torch.no_grad():
        wanted, wanted_features = identity.embed_chips(cut_chips(targets))
    terms["identity"] = (embedding.float() - wanted.float()).square().sum(1).mean()
    terms["identity_features"] = torch.stack([
        (features[tap].float() - wanted_features[tap].float()).abs().mean() / wanted_features[tap].float().abs().mean()
        for tap in IDENTITY_TAPS
    ]).mean()  # fmt: skip
    return terms, wanted.float()


def mean_over(error: Tensor, weight: Tensor) -> Tensor:
    """The mean of errors [B, C, S, S], each counting as much as its weight [B, 1, S, S]."""
    return (error * weight).sum() / (weight.sum() * error.shape[1]).clamp(min=1)


def relief(view: RenderOutput, batch: PhotoBatch, generator: TriPlaneGenerator) -> Tensor:
    """The depth that is rendered at the landmarks against their own, up to an offset for each photo."""
    place = (batch.landmarks[..., :2] / batch.targets.shape[-1] * 2 - 1)[:, None]  # [B, 1, 120, 2]
    depth, opacity = (F.grid_sample(x, place, align_corners=False)[:, 0, 0] for x in (view.depth, view.opacity))
    wanted = batch.landmarks[..., 2] * (MESH_DEPTH / generator.config.focal / batch.targets.shape[-1])
    met = ((opacity > 0.5) & (depth < generator.config.ray_end)).detach().float()
    apart = depth - wanted
    offset = (apart * met).sum(1, keepdim=True) / met.sum(1, keepdim=True).clamp(min=1e-3)
    return ((apart - offset).abs().clamp(max=RELIEF_MOST) * met).sum() / met.sum().clamp(min=1)


def identity_aside(images: Tensor, wanted: Tensor, identity: FaceIdentity) -> Tensor:
    """Views from other cameras [B, 3, H, W] against the photos' embeddings [B, 128] (paper, Eq. 6)."""
    return (identity(images).float() - wanted).square().sum(1).mean()
