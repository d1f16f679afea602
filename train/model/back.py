"""Synthetic heads from all around -> the back that a generator stitches to what a photo shows (see preim3d.back).

    python -m train.back --source heads_source.npz --data dataset/heads --photos photos \\
        --generator runs/faces/generator --encoder runs/faces/encoder --out runs/back/generator

Each head is carved out of its views, as a signed distance and colours on a grid; their principal components are what
w, as the encoder reads it off the same heads' photos, is asked for. Nothing is trained by gradients. `--out` is the
generator with its back, and works with the directions of the one without.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from tqdm import tqdm

from preim3d.back import BOX, CELLS, Back, back_share
from preim3d.camera import FOCAL, camera_from_angles
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import load_component
from train.heads.dataset import HeadsDataset
from train.heads.geometry import HeadBuilder
from train.heads.renderer import RenderedHead
from train.heads.sampler import sample_person
from train.heads.source import HeadSource
from train.loop import checkpoint
from train.loop.options import run_stage, stage_parser
from train.model.batches import draw_photos
from train.photos import augment
from train.photos.real_photos import RealPhotos


# Views that carve a head: yaw and nominal pitch in degrees. None from below, where the bust is open.
VIEWS = ((0, -85), *((yaw, 0) for yaw in range(0, 360, 45)), *((yaw, -50) for yaw in range(45, 360, 90)))
VIEW_PX = 96
SURFACE_DENSITY = 25.0  # raw: hair from photos is thinner than that of synthetic heads
VIEW_FOCAL = FOCAL / 1.85  # shows the whole box from the cameras' distance
FINE = 2  # carved cells along a side of a grid's cell
FURTHEST = 0.12  # distances are clipped here: far away they say nothing about the surface
OPEN_BELOW = -0.15  # from here down walls of the bust are missing, and between its front and its back is its inside
RIM = 0.5  # no head beyond this in any coordinate: the box must close
MARGIN_CELLS = 2  # of the hull around all heads
BATCH = 8
RIDGE = 1.0  # of the reader, in mean variances of w's entries


class Carved(NamedTuple):
    """One head, or N stacked, on the back's grid."""

    distance: np.ndarray  # [G, G, G] float32, inside positive
    color: np.ndarray  # [G, G, G, 3] float32 in [0, 1], of the nearest surface


def main() -> int:
    parser = stage_parser(__doc__, "train.back")
    parser.add_argument("--source", type=Path, required=True, help="of train.heads build")
    parser.add_argument("--data", type=Path, required=True, help="of train.heads render")
    parser.add_argument("--photos", type=Path, required=True, help="real photos, see train.photos.real_photos")
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--heads", type=int, default=600, help="to carve")
    parser.add_argument("--read-heads", type=int, default=1800, help="whose photos the reader learns from, at most")
    parser.add_argument("--real", type=int, default=400, help="real photos, whose mean w is to give the mean head")
    return run_stage("train.back", run, parser.parse_args())


@torch.no_grad()
def run(args: argparse.Namespace) -> None:
    """Makes the back and saves the generator with it."""
    rng = np.random.default_rng(args.seed)
    dataset, photos = HeadsDataset(args.data), RealPhotos(args.photos)
    encoder = load_component(PortraitEncoder, args.encoder, torch.float32).to(args.device)
    generator = with_back(load_component(TriPlaneGenerator, args.generator, torch.float32)).to(args.device)

    heads = rng.permutation(dataset.ready)[: args.read_heads]
    w = encode_heads(encoder, dataset, heads, rng, args.seed)
    rows = rng.permutation(np.flatnonzero(~photos.held))[: args.real]
    real_w = encode_photos(encoder, photos, rows)

    builder = HeadBuilder(HeadSource(args.source))
    carved = [
        carve(RenderedHead(person, builder), person.light)
        for person in map(sample_person, tqdm(dataset.z[heads[: args.heads]], unit="head", mininterval=2))
    ]
    carved = Carved(*(np.stack(part) for part in zip(*carved)))
    report = fit(generator.back, carved, torch.from_numpy(dataset.features[heads]).double(), w, real_w)
    fit_lift(generator, w)
    checkpoint.save_component(generator, args.out)
    print(" ".join(f"{name} {value:.3f}" for name, value in report.items()), f"-> {args.out}")


def with_back(generator: TriPlaneGenerator) -> TriPlaneGenerator:
    """The same generator, with a back that is still empty."""
    config = {name: value for name, value in generator.config.items() if not name.startswith("_")}
    changes = {"has_back": True, "surface_density": SURFACE_DENSITY}
    whole = TriPlaneGenerator(**(config | changes)).eval().requires_grad_(False)
    whole.load_state_dict(generator.state_dict(), strict=False)
    return whole


# ----------------------------------------------------------------------------
# Photos.


def encode_heads(encoder: PortraitEncoder, dataset: HeadsDataset, heads: np.ndarray, rng, seed: int) -> Tensor:
    """w [N, num_ws, w_dim] of a photo of each head."""
    draws, w = torch.Generator().manual_seed(seed), []
    for start in tqdm(range(0, len(heads), BATCH), unit_scale=BATCH, unit="photo", mininterval=2):
        rgba, theta, _ = draw_photos(dataset, heads[start : start + BATCH], rng)
        images, _ = augment.photo_like(rgba, draws, theta=theta, size=encoder.config.input_size)
        w.append(encoder(images.to(encoder.device)).cpu())
    return torch.cat(w)


def encode_photos(encoder: PortraitEncoder, photos: RealPhotos, rows: np.ndarray) -> Tensor:
    """w [N, num_ws, w_dim] of real photos."""
    size, w = encoder.config.input_size, []
    for start in range(0, len(rows), BATCH):
        crops = photos.crops(rows[start : start + BATCH]).to(encoder.device)
        w.append(encoder(F.interpolate(crops, (size, size), mode="area")).cpu())
    return torch.cat(w)


# ----------------------------------------------------------------------------
# Heads on a grid.


def grid_places(cells: int) -> np.ndarray:
    """The middles [cells^3, 3] of the box's cells, z fastest."""
    return ((np.indices(3 * (cells,)).reshape(3, -1).T + 0.5) / cells - 0.5) * BOX


def carve(rendered: RenderedHead, light) -> Carved:
    """What no view sees past is inside (a visual hull, with depth); colours are those that the views see."""
    cells = CELLS * FINE
    places = grid_places(cells).astype(np.float32)
    solid = np.flatnonzero((np.abs(places) < RIM).all(1))
    pixels = []
    for yaw, pitch in VIEWS:
        camera = camera_from_angles(math.radians(yaw), math.radians(pitch), pivot=(0, 0, 0), focal=VIEW_FOCAL).numpy()
        rgba, depth = rendered.view(camera, VIEW_PX, light)
        solid = solid[~seen_past(places[solid], camera, depth)]
        pixels.append(surface(camera, rgba, depth))
    points, seen = (np.concatenate(part) for part in zip(*pixels))
    kept = (np.abs(points) < BOX / 2).all(1)
    cell = np.ravel_multi_index(((points[kept] / BOX + 0.5) * cells).astype(int).T, 3 * (cells,))
    counts = np.bincount(cell, minlength=cells**3)
    colors = np.stack([np.bincount(cell, channel, minlength=cells**3) for channel in seen[kept].T], 1)
    solid = np.isin(np.arange(cells**3), solid)
    solid = filled_below(solid.reshape(3 * (cells,)))
    cell_size = BOX / cells
    distance = (distance_transform_edt(solid) - distance_transform_edt(~solid)) * cell_size
    nearest = distance_transform_edt(counts.reshape(solid.shape) == 0, return_distances=False, return_indices=True)
    color = (colors / np.maximum(counts, 1)[:, None]).reshape(*solid.shape, 3)[tuple(nearest)]
    return Carved(
        coarser(distance.clip(-FURTHEST, FURTHEST)[..., None])[..., 0].astype(np.float32),
        coarser(color).astype(np.float32),
    )


def seen_past(places: np.ndarray, camera: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """[N] bool: does the view with this depth [S, S] see through places [N, 3]?"""
    size, (seen, pixel) = len(depth), seen_from(places, camera)
    inside = ((pixel >= 0) & (pixel < 1)).all(1)
    column, row = (pixel.clip(0, 1 - 1e-6) * size).astype(int).T
    met = depth[row, column]
    return inside & ((met == 0) | (seen[:, 2] < met))


def seen_from(places: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places [N, 3] in the camera's axes, and where on the picture [N, 2] they are, in [0, 1]."""
    cam2world, k = camera[:16].reshape(4, 4), camera[16:].reshape(3, 3)
    seen = (places - cam2world[:3, 3]) @ cam2world[:3, :3]
    return seen, seen[:, :2] / seen[:, 2:] * [k[0, 0], k[1, 1]] + k[:2, 2]


def surface(camera: np.ndarray, rgba: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] that a view sees, and their colours [N, 3] in [0, 1]."""
    cam2world, k = camera[:16].reshape(4, 4), camera[16:].reshape(3, 3)
    row, column = np.nonzero((depth > 0) & (rgba[..., 3] == 255))
    along = depth[row, column]
    pixel = (np.stack([column, row], 1) + 0.5) / len(depth)
    flat = (pixel - k[:2, 2]) / [k[0, 0], k[1, 1]] * along[:, None]
    return np.column_stack([flat, along]) @ cam2world[:3, :3].T + cam2world[:3, 3], rgba[row, column, :3] / 255


def filled_below(solid: np.ndarray) -> np.ndarray:
    """[n, n, n] bool with the open bust filled between its front and its back."""
    n = len(solid)
    low = round((OPEN_BELOW / BOX + 0.5) * n)
    bust = solid[:, :low]
    between = np.logical_or.accumulate(bust, 2) & np.logical_or.accumulate(bust[..., ::-1], 2)[..., ::-1]
    return np.concatenate([between, solid[:, low:]], 1)


def coarser(grid: np.ndarray) -> np.ndarray:
    """Means over FINE^3 cells each: [n, n, n, C] -> [n / FINE, ..., C]."""
    n, channels = len(grid) // FINE, grid.shape[-1]
    return grid.reshape(n, FINE, n, FINE, n, FINE, channels).mean((1, 3, 5))


# ----------------------------------------------------------------------------
# Components, and the reader.


def fit(
    back: Back,
    carved: Carved,  # the first M of N heads
    features: Tensor,  # [N, F]
    w: Tensor,  # [N, num_ws, w_dim]
    real_w: Tensor,  # [R, num_ws, w_dim]
) -> dict[str, float]:
    """Sets all of the back but its lift; gives shares of variance explained.

    Components are of what the features tell, so that every head has them, carved or not; the reader learns them by
    ridge regression from w. Real photos are another domain: their mean w is made to give the mean head.
    """
    report, targets = {}, []
    parts = {
        "shape": torch.from_numpy(carved.distance).flatten(1),
        "color": torch.from_numpy(carved.color).permute(0, 4, 1, 2, 3).flatten(1),
    }
    for (name, values), count, buffer in zip(parts.items(), back.counts, (back.distance, back.color)):
        mean = values.mean(0)
        slopes = ridge(features[: len(values)], (values - mean).double(), 0.03)  # [F, V]
        scores, components = principal(features, slopes, count)
        report[f"{name}_told"] = explained(values - mean, (scores[: len(values)] @ components).float())
        buffer.copy_(torch.cat([mean[None], components.float()]).view(buffer.shape))
        targets.append(scores)
    targets = torch.cat(targets, 1)  # [N, K], of unit spread

    x, held = w.flatten(1).double(), len(w) // 10
    slopes = ridge(x[held:], targets[held:], RIDGE)
    guess = (x[:held] - x[held:].mean(0)) @ slopes
    for name, part in zip(parts, (slice(0, back.counts[0]), slice(back.counts[0], None))):
        report[f"{name}_read"] = explained(targets[:held, part], guess[:, part] + targets[held:, part].mean(0))
    slopes = ridge(x, targets, RIDGE)
    back.reader.weight.copy_(slopes.T)
    back.reader.bias.copy_(-real_w.flatten(1).double().mean(0) @ slopes)

    solid = torch.from_numpy(carved.distance > -BOX / CELLS).any(0)
    solid |= solid.flip(0)  # heads lean either way
    width = 2 * MARGIN_CELLS + 1
    hull = F.max_pool3d(solid[None].float(), width, stride=1, padding=MARGIN_CELLS)[0]
    back.hull.copy_(F.pad(hull[1:-1, 1:-1, 1:-1], 6 * (1,)))
    return report


def ridge(x: Tensor, y: Tensor, damping: float) -> Tensor:
    """Slopes [X, Y] of y [N, Y] on x [N, X], both from their means; damping in mean variances of x."""
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < x.shape[1]:  # the same by as many equations as there are rows
        inner = x @ x.T
        damping = damping * len(x) * x.square().mean()
        return x.T @ torch.linalg.solve(inner + damping * torch.eye(len(x), dtype=x.dtype), y)
    covariance = x.T @ x / len(x)
    damping = damping * covariance.diagonal().mean()
    return torch.linalg.solve(covariance + damping * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y / len(x))


def principal(features: Tensor, slopes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Principal components [count, V] of features @ slopes, and their scores [N, count] of unit spread."""
    x = features - features.mean(0)
    # The components span what the slopes do: a matrix as small as there are features has the same singular values.
    values, vectors = torch.linalg.eigh(slopes @ slopes.T)
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T = slopes @ slopes.T
    _, _, directions = torch.linalg.svd(x @ root, full_matrices=False)
    inverse = torch.where(values > values.max() * 1e-10, values.clamp(min=1e-30).rsqrt(), 0.0)
    components = directions[:count] @ ((vectors * inverse).T @ slopes)  # [count, V], orthonormal
    scores = x @ (root @ directions[:count].T)
    spread = scores.std(0)
    return scores / spread, components * spread[:, None]


def explained(truth: Tensor, guess: Tensor) -> float:
    """1 - error / variance, over all columns together."""
    return 1 - ((truth - guess).square().sum() / (truth - truth.mean(0)).square().sum()).item()


def fit_lift(generator: TriPlaneGenerator, w: Tensor) -> None:
    """How the field's colours beyond RGB follow from RGB, on the front's surfaces of some heads: super-resolution
    expects such features, though the back has none of its own."""
    places = torch.from_numpy(grid_places(CELLS)).float()
    in_front = (back_share(places) == 0) & (places.abs() < generator.config.box_warp / 2).all(1)
    places = places[in_front].to(generator.device)
    lines, others = [], []
    for latent in w[:12]:
        planes = generator.planes(latent[None].to(generator.device))
        density, color = (part[0] for part in generator.decode(planes, places[None]))
        color = color[density[:, 0].topk(len(places) // 8).indices]  # about as many as are in the head
        lines.append(torch.cat([color[:, :3], torch.ones_like(color[:, :1])], 1).double())
        others.append(color[:, 3:].double())
    lines, others = torch.cat(lines), torch.cat(others)
    ridge_term = 1e-3 * len(lines) * torch.eye(4, dtype=lines.dtype, device=lines.device)
    generator.back.lift.copy_(torch.linalg.solve(lines.T @ lines + ridge_term, lines.T @ others))
