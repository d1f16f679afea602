"""An evaluation's photos -> ways of inversion side by side: likeness, pose, pictures from far aside, what edits do,
and seconds (paper, Tables 2 and 7, Figure 7).

Beside the ways of `preim3d.inversion` there are two with networks of their own, which nobody edits with:

    z        an encoder to Z (`train.z_encoder`), Pixel2NeRF's way: one w for all rows, no feedback, no detail
    tuned    generator and encoder that learned on together (`train.faces` without heads; section E), and the weights'
             own feedback, but no detail; of the back of the head, which that training leaves out, it has the weights'
             own, too"""

import copy
import functools
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import grid_cameras
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.film import labelled, pictures
from preim3d.generator import TriPlaneGenerator
from preim3d.inversion import Judges, Target, invert
from preim3d.pipeline import load_component
from preim3d.tuning import Tuning
from train.inversion.z_encoder import ZInversion
from train.judging import metrics
from train.judging.attributes import read_images
from train.judging.edit_figures import EDIT_STRENGTH, altered, is_read
from train.judging.evaluation import Evaluation, Heads, pose, resized, sheet
from train.judging.inversion_figures import AMONG, BANDS_DEG, FAR_DEG, fid_figures, picture_figures
from train.photos.real_photos import CROP_PX


EDITS = ("age", "smile", "eyeglasses")  # of Table 3
SHEET_YAWS_DEG = (0, -30, 30)  # Figure 7
SHEET_PHOTOS = 8


class Way(NamedTuple):
    """One way of inversion and how many photos it is measured on."""

    method: str
    photos: int
    folder: Path | None = None  # of its networks: those of `LEARNED`


LEARNED = ("z", "tuned")
AT_ONCE = ("encoder", *LEARNED)  # they look at a photo once


class Inverted(NamedTuple):
    """What one way made of some photos."""

    heads: Heads
    seconds: list[float]  # each, from the crop on


def inversions_figures(evaluation: Evaluation, ways: list[Way], seed: int) -> dict:
    """Of each way on as many photos as asked for, and of the encoder on the same ones."""
    figures, drawn = {}, []

    @functools.cache  # of the same photos once, however many ways are compared with it
    def of_encoder(photos: int) -> tuple[dict, Inverted]:
        rows = spaced(evaluation.subjects.held, photos)
        found = invert_photos(evaluation, "encoder", rows, seed)
        return figures_of(evaluation, rows, found), found

    for way in ways:
        rows = spaced(evaluation.subjects.held, way.photos)
        if way.method == "encoder":
            equipped, (figures["encoder"], found) = evaluation, of_encoder(len(rows))
        else:
            equipped = with_networks(evaluation, way)
            found = invert_photos(equipped, way.method, rows, seed)
            figures[way.method] = figures_of(equipped, rows, found) | {"encoder": of_encoder(len(rows))[0]}
        drawn.append((equipped, way.method, rows, found))
    common = functools.reduce(np.intersect1d, (rows for _, _, rows, _ in drawn))
    if len(common):
        evaluation.sheets["inversions"] = draw(evaluation, drawn, spaced(common, SHEET_PHOTOS))
    return {"inversions": figures}


def with_networks(evaluation: Evaluation, way: Way) -> Evaluation:
    """The same evaluation with a way's own networks.

    Raises:
        OSError, ValueError: there are none in the folder, or they do not fit the weights.
    """
    if way.folder is None:
        return evaluation
    equipped = copy.copy(evaluation)
    equipped.detail = None  # it was learned with the weights' own encoder and generator
    encoder = load_component(PortraitEncoder, way.folder / "encoder", torch.float32).to(evaluation.device)
    made = encoder.config.num_ws, encoder.config.w_dim
    config = evaluation.generator.config
    wanted = (1, config.z_dim) if way.method == "z" else (evaluation.generator.num_ws, config.w_dim)
    if made != wanted:
        raise ValueError(
            f"The encoder in {way.folder} makes {made[0]} x {made[1]} numbers; `{way.method}` needs one that makes"
            f" {wanted[0]} x {wanted[1]}."
        )
    if way.method == "z":
        equipped.encoder, equipped.feedback = ZInversion(encoder, evaluation.generator), None
    else:
        front = load_component(TriPlaneGenerator, way.folder / "generator", torch.float32)
        equipped.encoder, equipped.generator = encoder, with_back(front, evaluation.generator)
    return equipped


def with_back(front: TriPlaneGenerator, other: TriPlaneGenerator) -> TriPlaneGenerator:
    """A generator with the back of another one, if that has any. Raises ValueError where their shapes differ."""
    whole = copy.deepcopy(other)
    of_back = {name: tensor for name, tensor in other.state_dict().items() if name.startswith("back.")}
    try:
        whole.load_state_dict(of_back | front.state_dict())
    except RuntimeError as error:
        raise ValueError("The generator that learned on has another shape than that of the weights.") from error
    return whole


def spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """So many of the rows, evenly: packed photos lie set by set."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]


def invert_photos(evaluation: Evaluation, method: str, rows: np.ndarray, seed: int) -> Inverted:
    """What is in `--outcomes` already is taken from there. Ways with networks of their own are quick, and the folder
    does not know whose they were."""
    ws, tunings, seconds = [], [], []
    for row in tqdm(rows, desc=method):
        file = (
            method not in LEARNED
            and evaluation.args.outcomes
            and Path(evaluation.args.outcomes, f"{method}-{seed}-{row}.npz")
        )
        if file and file.is_file():
            stored = np.load(file)
            tuning = Tuning.from_bytes(stored["tuning"].tobytes()) if "tuning" in stored else None
            one = torch.from_numpy(stored["w"]), tuning, float(stored["seconds"])
        else:
            started = time.perf_counter()
            w, tuning = invert_photo(evaluation, method, row, seed)
            one = w.cpu(), tuning, time.perf_counter() - started
            if file:
                kept = {} if tuning is None else {"tuning": np.frombuffer(tuning.to_bytes(), np.uint8)}
                with whole_file(file) as part:
                    np.savez(part, w=one[0].numpy(), seconds=one[2], **kept)
        for column, value in zip((ws, tunings, seconds), one):
            column.append(value)
    return Inverted(Heads(torch.cat(ws), tunings), seconds)


def invert_photo(evaluation: Evaluation, method: str, row: int, seed: int) -> tuple[Tensor, Tuning | None]:
    """w [1, num_ws, w_dim], and what the planes are tuned by."""
    ws, (tuning,) = evaluation.invert(np.array([row]))
    if method in AT_ONCE:
        return ws, tuning
    photo = evaluation.photos(np.array([row]))[0]
    angles, person = evaluation.see(photo)
    corners = evaluation.subjects.photos.corners[row] / CROP_PX
    judges = Judges(evaluation.identity, evaluation.perceptual)
    target = Target.of_crop(pictures(photo)[0], angles[0].rad2deg().tolist(), person[0, 0].numpy(), judges, corners)
    found = invert(evaluation.generator, judges, target, method, ws.to(evaluation.device), tuning, seed=seed)
    (reached,) = deque(found, maxlen=1)
    return reached.w, reached.tuning


def figures_of(evaluation: Evaluation, rows: np.ndarray, found: Inverted) -> dict:
    """One line of Tables 2, 3 and 7."""
    count = len(rows)
    grid = grid_cameras(evaluation.generator.config.pivot).expand(count, -1, -1)
    bands = [evaluation.cameras_between(count, band, (0, 20)) for band in BANDS_DEG]
    far = [evaluation.cameras_between(count, *ranges) for ranges in FAR_DEG.values()]
    cameras = torch.cat([evaluation.own_cameras(rows)[:, None], grid, torch.stack([*bands, *far], 1)], 1)

    def look(images: Tensor) -> tuple[Tensor, ...]:
        return images[:1], evaluation.embed(images), evaluation.fid_features(images), evaluation.read_angles(images)

    images, embedding, features, angles = evaluation.views(found.heads, cameras, look)
    photos = evaluation.read_photos(rows, lambda photos, masks: evaluation.embed(photos))
    to_own = metrics.distances(photos[:, None], embedding)
    first, last = 1 + grid.shape[1], 1 + grid.shape[1] + len(bands)
    by_band = to_own[:, first:last].mean(0).tolist()
    from_far = torch.cat([features[:, :1], features[:, last:]], 1)
    return {
        "n": count,
        "time_s": float(np.median(found.seconds)),
        "identity_own": to_own[:, 0].mean().item(),
        "identity_grid": to_own[:, 1:first].mean().item(),
        **{f"identity_{low}_{high}": value for (low, high), value in zip(BANDS_DEG, by_band)},
        f"nearest_of_{AMONG}": metrics.nearest_rate(torch.cdist(embedding[:, 0], photos), AMONG),
        "apd_sides_rad": metrics.pose_distance(angles[:, first:last], pose(cameras)[:, first:last]),
        **picture_figures(evaluation, images[:, 0], rows),
        **fid_figures(evaluation, from_far, rows),
        **edited_figures(evaluation, found.heads),
    }


def edited_figures(evaluation: Evaluation, heads: Heads) -> dict:
    """AA and AD of three edits, frontal view (Table 3)."""
    front = evaluation.generator.frontal_camera().cpu().expand(len(heads.ws), 1, -1)

    def read(heads: Heads) -> Tensor:
        def look(images: Tensor) -> tuple[Tensor]:
            return (read_images(evaluation.reader, images).logits,)

        return evaluation.views(heads, front, look)[0][:, 0]

    before, aa, ad = read(heads), {}, {}
    for key in EDITS:
        if key in evaluation.directions.names and is_read(evaluation, key):
            after = read(heads.edited(evaluation.directions, key, EDIT_STRENGTH))
            aa[key], ad[key] = altered(evaluation, key, before, after)
    return {"aa": aa, "ad": ad}


def draw(
    evaluation: Evaluation,
    drawn: list[tuple[Evaluation, str, np.ndarray, Inverted]],  # each way's networks, name, photos and heads
    chosen: np.ndarray,  # photos that are among all of these
) -> Image.Image:
    """A line for each photo: the photo, then each way's head from the front and either side (Figure 7)."""
    yaw = torch.tensor(SHEET_YAWS_DEG).deg2rad()
    cameras = evaluation.cameras(yaw, torch.zeros(len(yaw)))
    lines = [[labelled(photo, "photo")] for photo in pictures(evaluation.photos(chosen)[0])]
    for equipped, method, rows, found in drawn:
        places = np.searchsorted(rows, chosen)
        views = cameras.expand(len(places), -1, -1)
        (images,) = equipped.views(found.heads.at(places), views, lambda images: (images,))
        for line, (first, *others) in zip(lines, (pictures(resized(seen, CROP_PX)) for seen in images)):
            line += [labelled(first, method), *others]
    return sheet(lines)
