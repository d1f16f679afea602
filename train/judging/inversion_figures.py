"""An evaluation's photos -> how good their reconstructions are: likeness, pose, FID and KID, groups of people, time
(paper, Tables 2, 4 and 7)."""

import time

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from preim3d.efficientnet import perceptual_distance
from preim3d.film import pictures
from preim3d.tuning import tuned
from preim3d.turntable import depth_pictures, depth_range
from train.judging import metrics
from train.judging.evaluation import Evaluation, Heads, pose, resized, sheet
from train.photos.real_photos import CROP_PX


AMONG = 20  # people, of whom the right one should be the nearest
BANDS_DEG = ((0, 10), (10, 20), (20, 30))  # of yaw, either side: together ID, apart Table 4
WHOLE_DEG, PITCH_DEG = (0, 30), (0, 20)  # of ID: |yaw| and |pitch|
PAPER_VIEWS = 20  # of each photo, for ID and for each ID_a-b (section 4.2, B)
ANGLES = ("yaw", "pitch", "roll")
FAR_DEG = {"sm": ((15, 20), (10, 15)), "mid": ((25, 30), (15, 20)), "la": ((35, 40), (20, 25))}  # yaw, pitch: Table 7
TIMED = 10  # runs of which the median is taken


def reconstruction_figures(evaluation: Evaluation) -> dict:
    """Likeness and pose of the held-out photos from their own cameras, the front and the sides."""
    held, count = evaluation.subjects.held, evaluation.args.views
    cameras = around(evaluation)

    def look(images: Tensor) -> tuple[Tensor, ...]:
        return images[:1], evaluation.embed(images), evaluation.read_angles(images)

    images, embedding, angles = evaluation.views(evaluation.heads, cameras, look)
    figures = identity_figures(evaluation, embedding) | picture_figures(evaluation, images[:, 0], held)
    asked = pose(cameras)
    # The estimator errs on the photos too: nothing below this can be told from none.
    of_photos = evaluation.read_photos(held, lambda photos, masks: evaluation.read_angles(photos))
    sides = slice(2, 2 + count if count else None)  # over all of yaw, as likeness is measured
    return figures | {
        "views": count or 1,
        "pose_angles": len(ANGLES),
        "apd_rad": metrics.pose_distance(angles[:, 0], asked[:, 0]),
        "apd_sides_rad": metrics.pose_distance(angles[:, sides], asked[:, sides]),
        "apd_sides_by_angle_rad": {
            angle: metrics.pose_distance(angles[:, sides, place], asked[:, sides, place])
            for place, angle in enumerate(ANGLES)
        },
        "apd_of_photos_rad": metrics.pose_distance(of_photos, asked[:, 0]),
    }


def around(evaluation: Evaluation) -> Tensor:
    """Cameras [N, 2+V+3V, 25] of the held-out photos: their own, the front, V over all of yaw, V in each band of it;
    where no number is given, one in each band, which together stand for the whole."""
    count, views = len(evaluation.heads.ws), evaluation.args.views
    own, front = evaluation.own_cameras(evaluation.subjects.held), evaluation.generator.frontal_camera().cpu()
    ranges = [WHOLE_DEG, *BANDS_DEG] if views else BANDS_DEG
    sides = [evaluation.cameras_between(count * (views or 1), yaw, PITCH_DEG).view(count, -1, 25) for yaw in ranges]
    return torch.cat([own[:, None], front.expand(count, 1, -1), *sides], 1)


def population_figures(evaluation: Evaluation) -> dict:
    """FID and KID of many photos; the likeness of groups of people."""
    rows = evaluation.subjects.many
    far = [evaluation.cameras_between(len(rows), *ranges) for ranges in FAR_DEG.values()]
    features, seen = evaluation.views(
        evaluation.invert(rows),
        torch.stack([evaluation.own_cameras(rows), *far], 1),
        lambda images: (evaluation.fid_features(images), evaluation.embed(images[:1])),
    )
    distances = distances_to_photos(evaluation, rows, seen[:, 0])
    return fid_figures(evaluation, features, rows) | group_figures(evaluation, distances)


def group_figures(evaluation: Evaluation, own_distance: dict[int, float]) -> dict:
    """The likeness of each group of people; `own_distance` is what is known already, by row."""
    subjects = evaluation.subjects
    rows = {row for group in subjects.groups.values() for row in group.tolist()} - own_distance.keys()
    if rows:
        others = np.array(sorted(rows))
        heads, cameras = evaluation.invert(others), evaluation.own_cameras(others)[:, None]
        (seen,) = evaluation.views(heads, cameras, lambda images: (evaluation.embed(images),))
        own_distance = own_distance | distances_to_photos(evaluation, others, seen[:, 0])
    groups = {
        name: {
            "n": len(group),
            "held": int(np.isin(group, subjects.held).sum()),
            "identity_own": float(np.mean([own_distance[row] for row in group.tolist()])),
        }
        for name, group in subjects.groups.items()
    }
    return {"groups": groups}


def distances_to_photos(evaluation: Evaluation, rows: np.ndarray, seen: Tensor) -> dict[int, float]:
    """By row: how far the embedding [N, E] of a reconstruction is from its photo's."""
    wanted = evaluation.read_photos(rows, lambda photos, masks: evaluation.embed(photos))
    return dict(zip(rows.tolist(), metrics.distances(wanted, seen).tolist()))


def identity_figures(evaluation: Evaluation, embedding: Tensor) -> dict:
    """Distances of embeddings [N, 2+V+3V, E] of views (own camera, front, sides: see `around`) to the photos'."""
    to_own = metrics.distances(evaluation.photo_embedding[:, None], embedding)
    views = evaluation.args.views or 0
    by_band = to_own[:, 2 + views :].unflatten(1, (len(BANDS_DEG), -1)).mean((0, 2)).tolist()
    # Nobody is a stranger to their own mirrored photo: mirrored ones are compared among themselves.
    apart = [
        [torch.cdist(embedding[part, view], evaluation.photo_embedding[part]) for part in evaluation.subjects.alone]
        for view in (0, 1)
    ]  # [reconstructions, photos] each
    return {
        "identity_own": to_own[:, 0].mean().item(),
        "identity_frontal": to_own[:, 1].mean().item(),
        "identity_strangers": float(np.mean([metrics.mean_of_others(part) for part in apart[0]])),
        f"nearest_of_{AMONG}": nearest_rate(apart[0]),
        f"nearest_of_{AMONG}_frontal": nearest_rate(apart[1]),
        # The bands are equally wide: uniform in all is the mean of the three.
        "identity_0_30": to_own[:, 2 : 2 + views].mean().item() if views else float(np.mean(by_band)),
        **{f"identity_{low}_{high}": value for (low, high), value in zip(BANDS_DEG, by_band)},
    }


def nearest_rate(apart: list[Tensor]) -> float | None:
    """Among 20, over parts that are equally large; None where there are too few people."""
    rates = [metrics.nearest_rate(part, AMONG) for part in apart]
    return None if None in rates else float(np.mean(rates))


def two_pose_figures(evaluation: Evaluation) -> dict:
    """How far two views of one head are apart, from two cameras that are drawn by lot: of heads that the generator
    makes of drawn z, and of inverted photos; beside it two heads' (section 4.3, which follows EG3D)."""
    generator, count = evaluation.generator, evaluation.args.two_poses
    z = torch.from_numpy(evaluation.rng.standard_normal((count, generator.config.z_dim))).float()
    camera = generator.frontal_camera().expand(count, -1)
    both = {
        "samples": Heads.untuned(generator.mapping(z.to(evaluation.device), camera).cpu()),
        "photos": evaluation.heads.at(range(min(count, len(evaluation.heads.ws)))),
    }
    figures = {}
    for name, heads in both.items():
        cameras = evaluation.cameras_between(2 * len(heads.ws), WHOLE_DEG, PITCH_DEG).view(-1, 2, 25)
        (seen,) = evaluation.views(heads, cameras, lambda images: (evaluation.embed(images),))
        apart = torch.cdist(seen[:, 0], seen[:, 1])
        same, others = apart.diagonal().mean().item(), metrics.mean_of_others(apart)
        figures[name] = {"n": len(heads.ws), "same": same, "others": others}
    return {"two_poses": figures}


@torch.no_grad()
def picture_figures(evaluation: Evaluation, images: Tensor, rows: np.ndarray) -> dict:
    """How near pictures [N, 3, 256, 256] from the photos' cameras come to the photos, over the person."""
    grey = evaluation.generator.config.background * 2 - 1
    photos, person = evaluation.photos(rows)[0], evaluation.persons(rows)
    seen, wanted = (person * pictures + (1 - person) * grey for pictures in (images, photos))
    parts = zip(*(x.to(evaluation.device).split(1) for x in (seen, wanted, person)))
    distances = [perceptual_distance(evaluation.perceptual, *part).item() for part in tqdm(parts, desc="perceptual")]
    return {
        "person_psnr_db": metrics.person_psnr_db(images, photos, person),
        "lpips_like": float(np.mean(distances)),
    }


def fid_figures(evaluation: Evaluation, features: Tensor, rows: np.ndarray) -> dict:
    """FID and KID between features [N, 1+3, D] of reconstructions (own camera, sm, mid, la) and the photos'."""
    grey = evaluation.generator.config.background * 2 - 1
    wanted = evaluation.read_photos(
        rows, lambda photos, masks: evaluation.fid_features(masks * photos + (1 - masks) * grey)
    )
    figures = {"fid_n": len(wanted)}
    for name, seen in zip(("ori", *FAR_DEG), features.unbind(1)):
        figures[f"fid_{name}"] = metrics.frechet_distance(seen, wanted)
        figures[f"kid_{name}"] = metrics.kernel_distance(seen, wanted)
    return figures


def comparison_figures(evaluation: Evaluation) -> dict:
    """Likeness of what the bundled encoder and others reconstruct alone, from the same cameras for all (Table 4):
    feedback and detail know the bundled one only."""
    cameras = around(evaluation)
    figures = {}
    for name, encoder in {"bundled": evaluation.encoder, **evaluation.compared}.items():
        heads = evaluation.invert_alone(encoder, evaluation.subjects.held)
        (embedding,) = evaluation.views(heads, cameras, lambda images: (evaluation.embed(images),))
        figures[name] = identity_figures(evaluation, embedding)
    return {"compared": figures}


@torch.no_grad()
def time_figures(evaluation: Evaluation) -> dict:
    """Seconds to invert one photo and generate one view of it."""
    row, seconds = evaluation.subjects.held[:1], []
    for turn in range(TIMED + 1):
        started = time.perf_counter()
        ((w, photo),) = evaluation.encoded(row)
        planes = evaluation.generator.planes(w)
        if (tuning := evaluation.tuning(w, photo, planes)) is not None:
            planes = evaluation.generator.survey(tuned(planes, tuning))
        evaluation.generator.render(planes, evaluation.own_cameras(row).to(evaluation.device), w).image.cpu()
        if turn:  # the first one warms up; .cpu() waits for the device
            seconds.append(time.perf_counter() - started)
    return {"time_s": float(np.median(seconds))}


@torch.no_grad()
def draw_photos(evaluation: Evaluation) -> None:
    """Sheets: a photo, its own camera, front, +30, -30, depth; whole photos, and those that end at the hairline."""
    for name, full in (("whole", True), ("cut", False)):
        rows = evaluation.subjects.shown[evaluation.subjects.photos.full[evaluation.subjects.shown] == full]
        lines = []
        heads = evaluation.invert(rows) if len(rows) else Heads.untuned(torch.empty(0, 1, 1))
        for row, w, tuning in zip(rows, heads.ws.split(1), heads.tunings):
            turned = evaluation.cameras(torch.tensor([0.0, 30, -30]).deg2rad(), torch.zeros(3))
            cameras = torch.cat([evaluation.own_cameras(np.array([row])), turned]).to(evaluation.device)
            w = w.to(evaluation.device)
            seen = evaluation.generator.render(evaluation.planes(w, tuning), cameras, w)
            solid = seen.depth[:1].cpu(), seen.opacity[:1].cpu()
            depth = depth_pictures(*solid, CROP_PX, depth_range(*solid))[0]
            images = torch.cat([evaluation.photos(np.array([row]))[0], resized(seen.image, CROP_PX).cpu()])
            lines.append([*pictures(images), depth.convert("RGB")])
        if lines:
            evaluation.sheets[f"photos_{name}"] = sheet(lines)
