"""Real photos and synthetic portraits -> the networks that read a face: preim3d/landmarks.py, preim3d/face_mesh.py.

    python -m train.landmarks --photos dataset/photos --data dataset/heads --out runs/landmarks

Real photos (`python -m train.photos`) teach the mesh, the crop that five of its points give, the camera's angles and
where the person is; rendered heads add their angles and their outlines. The network that finds faces learns from both,
in grey and far more spoilt. Makes OUT/networks and OUT/networks/mesh (in half precision),
OUT/checkpoint.pt (to resume), OUT/events and OUT/report.json: what the mesh network reads on `held` photos."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preim3d.face_mesh import FaceMesh, MeshReading
from preim3d.files import whole_file
from preim3d.finder import NETWORK_SIDE
from preim3d.fit import CROP_SIDE, fit_template
from preim3d.landmarks import LandmarkNetwork, gaussian_heatmaps
from preim3d.options import more_than_nothing, whole_number
from train.loop import checkpoint
from train.loop.command import command_parser, run_command
from train.loop.precision import Precision, autocast, settle
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, set_rate
from train.photos import augment, grey_photos
from train.photos.face_boxes import (
    Photos,
    RenderedPhotos,
    Seen,
    five_of_mesh,
    jitter,
    mirror,
    mirror_partners,
    misfit,
    misses,
    move,
)
from train.photos.real_photos import CROP_PX, RealPhotos


RATE = 2e-3
CLIP = 5.0
HEADS_SHARE = 1 / 8  # of the mesh network's batch
FINDER_EVERY = 12  # steps: it is trained already, or learns fast
FINDER_HEADS, FINDER_MISSES = 0.3, 0.2  # shares of its batch
SMALLEST = 0.3  # of a photo's side, that its blurred copies are shrunk to


# ---------------------------------------------------------------------------------------------------------------------
# The mesh network.


def spoilt(rgba: Tensor, replace: Tensor, draws: torch.Generator) -> Tensor:
    """Faces [B, 4, S, S] -> photos [B, 3, S, S] in [0, 1], badly lit, half hidden, blurred; those of `replace` [B]
    (bool) before another background."""
    count, _, size, _ = rgba.shape

    def some(share: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=draws) < share

    images, alpha = rgba[:, :3].clone(), rgba[replace, 3:]
    behind = augment.random_backgrounds(len(alpha), (size, size), draws, rgba.device)
    images[replace] = images[replace] * alpha + behind * (1 - alpha)
    images = images * torch.where(some(0.3), grey_photos.shadows(count, size, draws), torch.ones(1))
    images = augment.expose(images, draws).clamp(0, 1)
    images = torch.where(some(0.15), images.mean(1, keepdim=True), images)
    hidden = grey_photos.blobs(count, size, draws) & some(0.25)
    colours = torch.rand(count, 3, 1, 1, generator=draws)
    images = torch.where(hidden, torch.where(some(0.5), colours, images.roll(1, 0)), images)  # or another's face
    images = augment.soften(images, draws, 0.4, smallest=SMALLEST)
    noise = 0.08 * torch.rand(count, 1, 1, 1, generator=draws).square()
    images = images + noise * torch.randn(images.shape, generator=draws)
    packed = torch.rand(count, generator=draws) < 0.3
    steps = 0.01 + 0.07 * torch.rand(count, 1, 1, 1, generator=draws)
    images[packed] = grey_photos.jpeg(images[packed], steps[packed])
    return images.clamp(0, 1)


def mesh_loss(network: FaceMesh, reading: MeshReading, seen: Seen, boxes: Tensor) -> dict[str, Tensor]:
    """The terms, each about .01 near the end: points and crop in half boxes and template units."""
    known = seen.mesh.isfinite()
    mesh = torch.where(known, seen.mesh, 0)
    real = known.any(2).any(1)
    apart = F.smooth_l1_loss(reading.points, mesh, beta=0.01, reduction="none") * known
    wanted = gaussian_heatmaps(mesh[..., :2], reading.heatmaps.shape[-1], sigma=0.04)
    surprise = -(wanted * reading.heatmaps).sum((2, 3)) * known[..., 0]
    five = network.five_points(reading.points)[real]
    crop = misfit(move(five, boxes[real]), CROP_SIDE)
    # Turn and size count as what they move at the face's rim, half a unit away.
    crop = crop * crop.new_tensor([1, 1, 0.5, 0.5])
    turned = F.smooth_l1_loss(reading.angles, seen.angles, beta=0.05, reduction="none").mean(1)
    alpha = F.adaptive_avg_pool2d(seen.rgba[:, 3:], reading.person.shape[-1])
    return {
        "points": apart.sum() / known.sum(),
        "surprise": 0.003 * surprise.sum() / known[..., 0].sum(),
        # These hold the points of mirrored faces that the mesh has no names for.
        "five": 0.5 * F.smooth_l1_loss(five, seen.five[real], beta=0.01),
        "crop": 3 * F.smooth_l1_loss(crop, torch.zeros_like(crop), beta=0.01),
        "angles": 0.3 * torch.where(real, turned, 0.3 * turned).mean(),
        "person": 0.05 * F.binary_cross_entropy_with_logits(reading.person, alpha),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The network that finds faces.


def finder_loss(
    finder: LandmarkNetwork,
    photos: Photos,
    heads: RenderedPhotos,
    pictures: grey_photos.Pictures,
    partners: Tensor,  # `mirror_partners`
    batch: int,
    rng: np.random.Generator,
    draws: torch.Generator,
    precision: Precision,
) -> Tensor:
    """Of one batch: faces as the cascade's boxes and as its own first reading shows them, and what is no face."""
    size = finder.config.input_size
    wrong, rendered = max(2, round(FINDER_MISSES * batch)), max(1, round(FINDER_HEADS * batch))  # one of each kind
    right = batch - wrong
    boxes = torch.cat([jitter(right // 2, draws, 0.32, 0.33, 22), jitter(right - right // 2, draws, 0.12, 0.12, 8)])
    boxes = boxes[torch.randperm(right, generator=draws)]
    wrong_boxes = misses(wrong, draws)
    seen = Seen.join([
        faces.seen(faces.draw(len(part), rng), part, NETWORK_SIDE, size)
        for faces, part in (
            (photos, boxes[rendered:]), (heads, boxes[:rendered]),
            (photos, wrong_boxes[wrong // 2 :]), (heads, wrong_boxes[: wrong // 2]),
        )
    ])  # fmt: skip
    seen = mirror(seen, torch.rand(batch, generator=draws) < 0.5, partners)
    alpha = seen.rgba[:, 3:].clone()
    alpha[: (right - rendered) // 2] = 1  # half the real photos keep their background
    alpha[right::3] = 0  # a background alone
    images = grey_photos.photo_like(torch.cat([seen.rgba[:, :3] * alpha, alpha], 1), pictures, draws)

    with autocast("cpu", precision):
        read = finder(images.contiguous(memory_format=torch.channels_last))
    distance = F.smooth_l1_loss(read.points[:right], seen.five[:right], beta=0.02)
    wanted = gaussian_heatmaps(seen.five[:right], read.heatmaps.shape[-1])
    surprise = -(wanted * read.heatmaps[:right]).sum((2, 3)).mean()
    is_face = (torch.arange(batch) < right).float()
    return distance + 0.01 * surprise + 0.05 * F.binary_cross_entropy_with_logits(read.face_logit, is_face)


# ---------------------------------------------------------------------------------------------------------------------


def train(
    photos: Path,
    data: Path,
    out: Path,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    start: Path | None = None,  # folder of earlier networks, or of the finder alone
    batch: int = 32,
    save_seconds: float = 120,
) -> dict[str, float]:
    """Train both networks and measure the mesh network; returns what the report says."""
    torch.manual_seed(seed)
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    real = RealPhotos(photos)
    if not real.held.any() or real.held.all():
        raise ValueError(f"{photos} must hold photos to learn from and held-out ones to measure on.")
    five, partners = five_of_mesh(real), torch.from_numpy(mirror_partners(real))
    crops, heads, pictures = Photos(real, False, five), RenderedPhotos(data), grey_photos.Pictures()

    finder, mesh = LandmarkNetwork(), FaceMesh()
    if start is not None:
        finder = LandmarkNetwork.from_pretrained(start, local_files_only=True)
        if (start / "mesh").is_dir():
            mesh = FaceMesh.from_pretrained(start / "mesh", local_files_only=True)
    mesh.five.copy_(torch.from_numpy(five))
    networks = nn.ModuleDict({"finder": finder, "mesh": mesh}).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(networks.parameters(), RATE, weight_decay=0.02)
    training = Training(out, {"networks": networks, "optimizer": optimizer}, "cpu", rng=rng, draws=draws)
    size, rendered = mesh.config.input_size, max(1, round(HEADS_SHARE * batch))
    sample = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    # What was measured once holds for the whole run.
    precision = training.notes.get("precision") or settle("auto", mesh, sample)
    training.notes["precision"] = precision

    def step(number: int, share: float) -> dict[str, Tensor]:
        set_rate(optimizer, cosine_rate(share, RATE, warm=0.05))
        # A third as the finder's points give the box, the others as the network's own first reading does.
        boxes = torch.cat([
            jitter(batch // 3, draws, 0.2, 0.13, 12), jitter(batch - batch // 3, draws, 0.06, 0.04, 4)
        ])[torch.randperm(batch, generator=draws)]  # fmt: skip
        seen = Seen.join([
            heads.seen(heads.draw(rendered, rng), boxes[:rendered], CROP_SIDE, size),
            crops.seen(crops.draw(batch - rendered, rng), boxes[rendered:], CROP_SIDE, size),
        ])  # fmt: skip
        chosen = torch.rand(batch, generator=draws) < 0.5
        seen = mirror(seen, chosen, partners)
        # The mirrored box, which the crop's error is measured in.
        flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
        boxes[chosen] = flip @ boxes[chosen] @ flip
        replace = (torch.arange(batch) < rendered) | (torch.rand(batch, generator=draws) < 0.25)
        images = seen.rgba[:, :3].clone()
        bad = replace | (torch.rand(batch, generator=draws) < 0.4)  # the others as good as they are
        images[bad] = spoilt(seen.rgba[bad], replace[bad], draws)
        with autocast("cpu", precision):
            reading = mesh(images.contiguous(memory_format=torch.channels_last))
        terms = mesh_loss(mesh, reading, seen, boxes)
        if number % FINDER_EVERY == 0:
            terms["finder"] = finder_loss(finder, crops, heads, pictures, partners, batch, rng, draws, precision)
        values = {name: term.detach() for name, term in terms.items()}
        descend(number, sum(terms.values()), values, [optimizer], CLIP)
        return values

    training.run(step, batch, minutes=minutes, steps=steps, save_seconds=save_seconds)
    training.save()
    training.log.close()

    save_half(finder.eval(), out / "networks")
    save_half(mesh.eval(), out / "networks" / "mesh")
    report = evaluate(
        FaceMesh.from_pretrained(out / "networks" / "mesh", local_files_only=True), Photos(real, True, five), seed
    )
    report |= {"steps": training.progress.step, "minutes": round(training.progress.seconds / 60, 1)}
    with whole_file(out / "report.json") as file:
        file.write_text(json.dumps(report, indent=1) + "\n")
    return report


def save_half(network: nn.Module, folder: Path) -> None:
    """In half precision, but for batch norm's running statistics, which may exceed its range."""
    network = copy.deepcopy(network).half()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.data, module.running_var.data = module.running_mean.float(), module.running_var.float()
    checkpoint.save_component(network, folder)


@torch.no_grad()
def evaluate(mesh: FaceMesh, held: Photos, seed: int) -> dict[str, float]:
    """Of two readings of each held-out photo, the first in a box as the finder gives it, the second in the box of the
    first: how far the crop lies from the given one, errors of the angles, points and mask."""
    generator, size = torch.Generator().manual_seed(seed), mesh.config.input_size
    square = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]])
    found = {name: [] for name in ("face", "corners", "angles", "points", "overlap", "union")}
    for rows in np.array_split(np.arange(len(held)), max(1, len(held) // 32)):
        boxes = jitter(len(rows), generator, 0.12, 0.08, 8)
        for _ in range(2):
            seen = held.seen(rows, boxes, CROP_SIDE, size)
            five, angles, _, reading = mesh.read(seen.rgba[:, :3])
            right = move(five, boxes).double().numpy()
            # The crop of these points, as positions in it (-1..1) -> in the right crop.
            crops = [fit_template(points).crop_to_photo(CROP_SIDE, 2) for points in right * CROP_SIDE / 2]
            crops = np.stack([np.diag([2 / CROP_SIDE, 2 / CROP_SIDE, 1]) @ crop for crop in crops])
            crops = torch.from_numpy(crops @ [[1, 0, 1], [0, 1, 1], [0, 0, 1]]).float()
            last, boxes = boxes, crops
        face = move(seen.mesh[..., :2], last)
        for name, points in (("face", face), ("corners", square.expand(len(rows), -1, -1))):
            found[name].append((move(points, crops) - points).norm(dim=2).mean(1) * CROP_PX / 2)
        found["angles"].append((angles - seen.angles).rad2deg())
        found["points"].append((move(reading.points[..., :2], last) - face).norm(dim=2).mean(1) * CROP_PX / 2)
        person = F.interpolate(reading.person, (size, size), mode="bilinear") > 0
        truth = seen.rgba[:, 3:] > 0.5
        found["overlap"].append((person & truth).sum((1, 2, 3)))
        found["union"].append((person | truth).sum((1, 2, 3)))
    found = {name: torch.cat(values) for name, values in found.items()}
    yaw, pitch = found["angles"].square().mean(0).sqrt().tolist()
    return {
        "alignment_px": round(found["face"].mean().item(), 3),  # mean over the mesh's points, of 256
        "alignment_corners_px": round(found["corners"].mean().item(), 3),
        "yaw_rms_deg": round(yaw, 2),
        "pitch_rms_deg": round(pitch, 2),
        "points_px": round(found["points"].mean().item(), 3),
        "mask_iou": round((found["overlap"] / found["union"].clamp_min(1)).mean().item(), 4),
        "n": len(held),
    }


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.landmarks")
    parser.add_argument("--photos", type=Path, required=True, help="folder of packed photos (*.npz)")
    parser.add_argument("--data", type=Path, required=True, help="folder of `python -m train.heads render`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the networks, checkpoint and report")
    parser.add_argument("--start", type=Path, help="folder of earlier networks to go on from")
    parser.add_argument(
        "--minutes", type=more_than_nothing, help="budget of time (default 30, where no steps are given)"
    )
    parser.add_argument("--steps", type=whole_number(1), help="or a budget of steps")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.minutes is None and args.steps is None:
        args.minutes = 30.0
    cv2.setNumThreads(1)  # the pictures are small: threads would only wait for each other
    return run_command("train.landmarks", lambda options: print(json.dumps(train(**vars(options)))), args)
