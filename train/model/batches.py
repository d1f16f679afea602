"""Random batches of a synthetic heads dataset as float tensors, which of its heads are held out, and batches of
renders."""

import numpy as np
import torch
from torch import Tensor

from preim3d.fit import CROP_SIDE, fit_template
from preim3d.generator import TriPlaneGenerator
from train.heads.dataset import FRONT_VIEWS, HeadsDataset


READ_RAYS = 64  # per side: enough for a reader that sees 128 px, where thousands of views must take minutes
POINT_ERROR_PX = 1.2  # Of the landmark network, in pixels of a 160 px photo (train.landmarks reports it).


def to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """To a GPU by way of memory from which it fetches on its own, while the host goes on."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_float(pixels: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """uint8 [B, S, S, C] -> float [B, C, S, S] in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float().div_(255)


def aligned_theta(
    points_px: np.ndarray,  # [B, 5, 2] in pixels of a size x size picture.
    size: int,
    rng: np.random.Generator | None = None,  # Draws the errors of the points.
    error_px: float = 0.0,  # Standard deviation of those errors, as the landmark network makes them.
) -> Tensor:
    """The aligner's crop of each picture as theta [B, 2, 3] of `affine_grid`: the encoder learns from what it will be
    given."""
    theta = np.empty((len(points_px), 2, 3), np.float32)
    for i, points in enumerate(np.asarray(points_px, np.float64)):
        if rng is not None:
            points = points + rng.normal(0, error_px, points.shape)
        to_picture = fit_template(points).crop_to_photo(CROP_SIDE, size)  # [3, 3] pixels of the crop -> of the picture
        # affine_grid counts from -1 to 1: crop pixel = (g + 1) size / 2.
        theta[i, :, :2] = to_picture[:2, :2]
        theta[i, :, 2] = (to_picture[:2, :2].sum(1) * size / 2 + to_picture[:2, 2]) * 2 / size - 1
    return torch.from_numpy(theta)


def draw_plain(
    dataset: HeadsDataset,
    heads: np.ndarray,  # [B] indices
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor, np.ndarray]:
    """One frontal view of each head in the generator's light: RGBA [B, 4, S, S] in [0, 1], cameras [B, 25], which
    views [B]."""
    views = rng.integers(0, min(FRONT_VIEWS, dataset.images.shape[1]), len(heads))
    return to_float(dataset.images[heads, views], device), to_camera(dataset.cameras[heads, views], device), views


def draw_photos(
    dataset: HeadsDataset,
    heads: np.ndarray,  # [B] indices
    rng: np.random.Generator,
    device: str | torch.device = "cpu",
    error_px: float = POINT_ERROR_PX,
) -> tuple[Tensor, Tensor, Tensor]:
    """One photo of each head in its own light: RGBA [B, 4, S', S'] in [0, 1], the aligner's crop of it [B, 2, 3],
    cameras [B, 25]."""
    views = rng.integers(0, dataset.photos.shape[1], len(heads))
    rgba = to_float(dataset.photos[heads, views], device)
    theta = aligned_theta(dataset.photo_points[heads, views], rgba.shape[-1], rng, error_px).to(device)
    return rgba, theta, to_camera(dataset.photo_cameras[heads, views], device)


def to_camera(cameras: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """A copy of camera labels [..., 25] of a memory map."""
    return torch.as_tensor(np.array(cameras), dtype=torch.float32, device=device)


@torch.no_grad()
def render_views(
    generator: TriPlaneGenerator,
    ws: Tensor,  # [N, num_ws, w_dim]
    cameras: Tensor,  # [N, 25], one for each, or [1, 25] for all
    most_rays: int | None = None,  # along a side, where fewer than configured will do
    styles_offset: Tensor | None = None,  # [1, S] for all, see `TriPlaneGenerator.planes`
) -> Tensor:
    """Images [N, 3, H, W] in [-1, 1]."""
    rays = min(generator.config.ray_resolution, most_rays or generator.config.ray_resolution)
    cameras = cameras.expand(len(ws), -1)
    if styles_offset is not None:
        styles_offset = styles_offset.to(generator.device)
    images = []
    for w, camera in zip(ws.split(8), cameras.split(8)):
        w, camera = w.to(generator.device), camera.to(generator.device)
        view = generator.render(generator.planes(w, styles_offset), camera, w, ray_resolution=rays)
        images.append(view.image.clamp(-1, 1).cpu())
    return torch.cat(images)
