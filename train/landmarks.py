"""Synthetic portraits -> the five point network of preim3d/landmarks.py.

    python -m train.landmarks --data dataset/heads --held-out dataset/held_out --out weights/faces/landmarks

It must read real photos and has seen none: the renders give the geometry; light, skin, background, occlusion and the
camera's faults are drawn anew for each step, far stronger than in life (domain randomisation).

Of the weights in weights/faces/landmarks: 401 steps of 96, seed 0, on the photos of 2356 heads, then 594 more with
`--start weights/faces/landmarks --minutes 13 --seed 1` on those of 5323 heads; about ten minutes of a CPU core in all.
Error of two readings on photos of held-out heads, in % of the eye distance: plain 4.1 (median 3.5), photo-like 6.4
(median 5.0); mouth corners worst (5 and 8), eyes best (3 and 5).
"""

import argparse
import copy
import math
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.align import NETWORK_SIDE, TEMPLATE, fit_template
from preim3d.camera import angles_from_camera
from preim3d.landmarks import MIRRORED, LandmarkNetwork, gaussian_heatmaps
from train.augment import soften
from train.heads.dataset import HeadsDataset
from train.progress import Progress, cosine_rate


UNIT_TO_TWO = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])  # [-1, 1] -> [0, 2], a picture of 2 pixels
NEGATIVES = 0.2  # of a batch: backgrounds, and heads seen through a box that is far off
# Bundled with scikit-image, free of rights, and without human faces: surroundings and things that are no faces.
PICTURES = (
    "coffee", "chelsea", "rocket", "brick", "grass", "gravel",
    "hubble_deep_field", "page", "coins", "clock", "text", "moon",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Boxes: as the cascade gives them, as the network's own first reading gives them, and such as hold no face.


def face_frame(points_px: np.ndarray) -> np.ndarray:
    """Points [5,2] -> [3,3]: position in the right box (-1..1) -> pixels."""
    return fit_template(points_px).crop_to_photo(NETWORK_SIDE, 2) @ UNIT_TO_TWO


def jitter(count: int, generator: torch.Generator, zoom: float, shift: float, turn_deg: float) -> Tensor:
    """Random boxes [count,3,3] near the right one: size up to e^zoom either way, moved by `shift` half sides, turned.

    A box maps positions in it (-1..1) to positions in the right box."""
    uniform = torch.rand(count, 4, generator=generator) * 2 - 1
    size, angle = (uniform[:, 0] * zoom).exp(), uniform[:, 1] * math.radians(turn_deg)
    box = torch.eye(3).repeat(count, 1, 1)
    box[:, 0, 0] = box[:, 1, 1] = size * angle.cos()
    box[:, 1, 0] = size * angle.sin()
    box[:, 0, 1] = -box[:, 1, 0]
    box[:, :2, 2] = uniform[:, 2:] * shift
    return box


def misses(count: int, generator: torch.Generator) -> Tensor:
    """Boxes [count,3,3] that hold part of a head but not a face: beside it, far too large or small, or upside down."""
    box = jitter(count, generator, 0.5, 0.3, 180)
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    away = torch.stack([angle.cos(), angle.sin()], 1) * (1.1 + 0.9 * torch.rand(count, 1, generator=generator))
    kind = torch.randint(0, 3, (count,), generator=generator)
    box[kind == 0, :2, 2] = away[kind == 0]
    sizes = torch.tensor([0.3, 2.6])[torch.randint(0, 2, (count,), generator=generator)]
    box[kind == 1, :2, :2] = torch.eye(2) * sizes[kind == 1, None, None]
    box[kind == 2] = jitter(count, generator, 0.2, 0.1, 40)[kind == 2] @ torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    return box


# ---------------------------------------------------------------------------------------------------------------------
# Looks: a render becomes something like a photo.


class Pictures:
    """Random cut-outs of ordinary pictures, as backgrounds and as things that are no faces."""

    def __init__(self):
        self.pictures = []
        for name in PICTURES:
            picture = getattr(skimage.data, name)()
            self.pictures.append(picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))

    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """[count,1,size,size] in [0, 1]."""
        cuts = []
        for choice, side, across, down in torch.rand(count, 4, generator=generator).tolist():
            picture = self.pictures[int(choice * len(self.pictures))]
            side_px = int(40 + side**2 * (min(picture.shape) - 40))
            left, top = int(across * (picture.shape[1] - side_px)), int(down * (picture.shape[0] - side_px))
            part = picture[top : top + side_px, left : left + side_px]
            cuts.append(cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA))
        return torch.from_numpy(np.stack(cuts))[:, None].float() / 255


def photo_like(rgba: Tensor, pictures: Pictures, generator: torch.Generator) -> Tensor:
    """Colour times opacity, and opacity, [B,4,S,S] in [0, 1] -> grey pictures [B,1,S,S] in [0, 1]."""
    count, _, size, _ = rgba.shape

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), generator=generator)

    def some(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < share

    def clouds(cells: int) -> Tensor:
        return F.interpolate(torch.randn(count, 1, cells, cells, generator=generator), (size, size), mode="bilinear")

    # Any mixture of the channels: red film shows pale lips, blue film dark skin.
    weights = torch.tensor([0.3, 0.59, 0.11]) + between(-0.3, 0.3, 3)
    grey = torch.einsum("bchw,bc->bhw", rgba[:, :3], weights / weights.sum(1, keepdim=True))[:, None].clamp(0, 1)
    opacity = rgba[:, 3:]

    # Skin is not smooth: texture at three scales, and shadows with a soft or a hard edge.
    strength = between(0, 1, 3, 1, 1, 1).square() * torch.tensor([0.3, 0.2, 0.15]).view(3, 1, 1, 1)
    texture = sum(strength[:, i] * clouds(cells) for i, cells in enumerate((6, 24, size)))
    grey = grey * (1 + texture).clamp(0.3, 1.7)
    grey = grey * torch.where(some(0.4), _shadow(count, size, generator), torch.ones(1))

    # Behind the head: clouds, cuts of pictures, or other people of the same batch, pushed aside.
    backdrop = between(0, 1) + between(0, 0.5) * clouds(3) + between(0, 0.2) * clouds(12)
    backdrop = torch.where(some(0.6), pictures.draw(count, size, generator), backdrop).clamp(0, 1)
    others = (grey + (1 - opacity) * backdrop).roll(1, 0).roll((size // 2, size // 3), (2, 3))
    grey = grey + (1 - opacity) * torch.where(some(0.15), others, backdrop)

    # Hands, hair, microphones.
    hidden = _blobs(count, size, generator) & some(0.3)
    grey = torch.where(hidden, torch.where(some(0.5), between(0, 1), others), grey)

    # The camera: exposure, contrast, focus, noise, compression.
    grey = grey.clamp(1e-3, 1) ** between(-0.8, 0.7).exp()
    grey = (between(0.35, 0.65) + between(0.5, 1.4) * (grey - 0.5)).clamp(0, 1)
    grey = soften(grey, generator, 0.4, smallest=0.25)
    edges = grey - F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    grey = grey + torch.where(some(0.4), between(0, 1.5), torch.zeros(1)) * edges
    grey = grey + 0.06 * between(0, 1).square() * torch.randn(grey.shape, generator=generator)
    return torch.where(some(0.4), _jpeg(grey, between(0.01, 0.1)), grey).clamp(0, 1)


def _blobs(count: int, size: int, generator: torch.Generator) -> Tensor:
    """One random ellipse each, [count,1,size,size] bool."""
    x, y, long, short, angle = torch.rand(5, count, 1, 1, 1, generator=generator)
    axis = torch.linspace(0, 1, size)
    right, down, angle = axis - x, axis[:, None] - y, angle * math.pi
    along, across = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
    return (along / (0.05 + 0.3 * long)) ** 2 + (across / (0.03 + 0.15 * short)) ** 2 < 1


def _shadow(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Half planes of shade, [count,1,size,size] in [.15, 1]."""
    angle, offset, softness, depth = torch.rand(4, count, 1, 1, 1, generator=generator)
    axis = torch.linspace(-1, 1, size)
    distance = (angle * 2 * math.pi).cos() * axis + (angle * 2 * math.pi).sin() * axis[:, None] + offset * 1.6 - 0.8
    return 1 - 0.85 * depth * torch.sigmoid(distance / (0.02 + 0.4 * softness))


def _jpeg(grey: Tensor, step: Tensor) -> Tensor:
    """Quantises the cosine transform of 8x8 blocks, coarser at high frequencies, as JPEG does; `step` [B,1,1,1]."""
    k = torch.arange(8.0)
    basis = torch.cos(math.pi / 8 * k[:, None] * (k + 0.5)) * torch.where(k == 0, math.sqrt(1 / 8), 0.5)[:, None]
    blocks = grey.unfold(2, 8, 8).unfold(3, 8, 8)  # [B,1,n,n,8,8]
    quantum = step[..., None, None] * (1 + (k[:, None] + k) / 4)
    cosines = ((basis @ blocks @ basis.T) / quantum).round() * quantum
    return (basis.T @ cosines @ basis).transpose(3, 4).reshape(grey.shape)


# ---------------------------------------------------------------------------------------------------------------------


class Faces:
    """The photos of a heads dataset, and batches of them seen through boxes."""

    def __init__(self, folder: Path):
        heads = HeadsDataset(folder)
        self.photos, self.ready = heads.photos, heads.ready
        self.points = heads.photo_points[self.ready].astype(np.float64)  # [N,P,5,2] pixels
        frames = [face_frame(points) for points in self.points.reshape(-1, 5, 2)]
        self.frames = np.stack(frames).reshape(*self.points.shape[:2], 3, 3)
        # Most photos are frontal; turned heads are the hard ones: draw them more often.
        cameras = torch.from_numpy(heads.photo_cameras[self.ready])
        yaw_deg = angles_from_camera(cameras)[0].rad2deg().abs().numpy()  # [N,P]
        weights = (1 + (yaw_deg / 15) ** 2).ravel()
        self.chances = weights / weights.sum()

    def __len__(self) -> int:
        return len(self.chances)

    def batch(self, photos: np.ndarray, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Photos [B] (indices) seen through `boxes` [B,3,3] -> RGBA [B,4,size,size] in [0, 1], colour times
        opacity, and points [B,5,2] in the boxes (-1..1)."""
        seen, points = [], []
        # Beyond the border the outermost pixels go on, so that shoulders do not end in mid-air.
        how = dict(flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
        pixel_to_unit = np.array([[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]])
        for i, box in zip(photos, boxes.double().numpy()):
            head, view = divmod(int(i), self.points.shape[1])
            to_photo = self.frames[head, view] @ box
            rgba = self.photos[self.ready[head], view].astype(np.uint16)
            rgba[..., :3] = rgba[..., :3] * rgba[..., 3:] // 255
            # OpenCV's pixel centres are whole numbers, ours lie at .5.
            to_pixels = (to_photo @ pixel_to_unit)[:2] - [[0, 0, 0.5], [0, 0, 0.5]]
            seen.append(cv2.warpAffine(rgba.astype(np.uint8), to_pixels, (size, size), **how))
            from_photo = np.linalg.inv(to_photo)
            points.append(self.points[head, view] @ from_photo[:2, :2].T + from_photo[:2, 2])
        rgba = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float() / 255
        return rgba, torch.from_numpy(np.stack(points)).float()


def train(
    data: Path,
    held_out: Path,
    out: Path,
    minutes: float,
    seed: int,
    start: Path | None = None,  # a network to go on from
    batch: int = 96,
) -> None:
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    faces, pictures = Faces(data), Pictures()
    network = LandmarkNetwork() if start is None else LandmarkNetwork.from_pretrained(start, local_files_only=True)
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.02)
    size, wrong = network.config.input_size, round(NEGATIVES * batch)
    progress = Progress(minutes, every_seconds=60)
    while not progress.done:
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(progress.share, 3e-3, warm=0.05)

        # Half as the cascade sees them, half as the second reading does; some that are no faces.
        right = batch - wrong
        boxes = torch.cat([
            jitter(right // 2, generator, 0.32, 0.33, 22),
            jitter(right - right // 2, generator, 0.12, 0.12, 8),
            misses(wrong, generator),
        ])  # fmt: skip
        rgba, points = faces.batch(rng.choice(len(faces), batch, p=faces.chances), boxes, size)
        rgba[-(wrong // 2) :] = 0  # backgrounds alone
        images = photo_like(rgba, pictures, generator)
        mirror = torch.rand(batch, generator=generator) < 0.5
        images[mirror] = images[mirror].flip(3)
        points[mirror] = points[mirror][:, list(MIRRORED)] * torch.tensor([-1.0, 1.0])

        with torch.autocast("cpu", torch.bfloat16):
            read = network(images.contiguous(memory_format=torch.channels_last))
        distance = F.smooth_l1_loss(read.points[:right], points[:right], beta=0.02)
        wanted = gaussian_heatmaps(points[:right], read.heatmaps.shape[-1])
        surprise = -(wanted * read.heatmaps[:right]).sum((2, 3)).mean()
        is_face = (torch.arange(batch) < right).float()
        doubt = F.binary_cross_entropy_with_logits(read.face_logit, is_face)
        optimizer.zero_grad()
        (distance + 0.01 * surprise + 0.05 * doubt).backward()
        optimizer.step()
        if progress.advance(batch, distance=distance.item(), surprise=surprise.item(), doubt=doubt.item()):
            save(network, out)

    print(f"{progress.step} steps of {batch}, seed {seed}, {progress.seconds / 60:.1f} minutes, {len(faces)} photos")
    print(evaluate(network.eval(), Faces(held_out), pictures, seed))
    save(network, out)


def save(network: LandmarkNetwork, out: Path) -> None:
    copy.deepcopy(network).half().save_pretrained(out)


@torch.no_grad()
def evaluate(network: LandmarkNetwork, faces: Faces, pictures: Pictures, seed: int) -> str:
    """Error of two readings in % of the eye distance, on held-out heads, as photos and as plain renders."""
    generator = torch.Generator().manual_seed(seed + 1)
    size, lines = network.config.input_size, []
    for look in ("plain", "photo-like"):
        errors, logits = [], []
        for photos in np.array_split(np.arange(len(faces)), math.ceil(len(faces) / 64)):
            boxes = jitter(len(photos), generator, 0.25, 0.25, 15)
            seed_of_look = int(torch.randint(2**31, (1,), generator=generator))
            for _ in range(2):
                rgba, points = faces.batch(photos, boxes, size)
                images = rgba[:, :3].mean(1, keepdim=True) + 0.5 * (1 - rgba[:, 3:])
                if look == "photo-like":
                    images = photo_like(rgba, pictures, torch.Generator().manual_seed(seed_of_look))
                read, face_logit, _ = network.read(images)
                # The next box: the fit of these points, in the first box.
                centred = np.stack([face_frame(p) for p in read.double().numpy()])
                last, boxes = boxes, boxes @ torch.from_numpy(centred).float()
            side = last[:, :2, 0].norm(dim=1)  # of the box, in right boxes
            eye_distance = (TEMPLATE[1, 0] - TEMPLATE[0, 0]) * 2 / NETWORK_SIDE  # in half right boxes
            errors.append((read - points).norm(dim=2) * side[:, None] / eye_distance)
            logits.append(face_logit)
        errors, found = torch.cat(errors), (torch.cat(logits) > 0).float().mean()
        by_point = ", ".join(f"{e:.1f}" for e in (100 * errors.mean(0)).tolist())
        lines.append(
            f"{look}: mean {100 * errors.mean():.2f} %, median {100 * errors.median():.2f} %, by point {by_point}; "
            f"taken for faces {100 * found:.1f} %"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.landmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of `python -m train.heads render`")
    parser.add_argument("--held-out", type=Path, required=True, help="another such folder, to measure on")
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and the weights")
    parser.add_argument("--start", type=Path, help="folder of a network to go on from")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
