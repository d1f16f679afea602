"""Photo -> faces in it, five points each, roughly: by our own network, or by insightface's where it is on disk.

photo ── landmark network, everywhere in turned and shrunk copies ──> boxes ── the same on each, twice ──> five points"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from preim3d.fit import FACE_WIDTH, Fit, cut_box, fit_template, warp
from preim3d.landmarks import LEAST_SPREAD, LandmarkNetwork, fold_batch_norms


NETWORK_SIDE = 2.0  # of the landmark network's box, in units of the template: hairline to below the chin

# Longer sides of the copies that are searched: in the first a face as wide as the photo fills the network's box.
SMALLEST_SIDE_PX = 44
SIDE_STEP = 1.5  # from one to the next: the network knows faces of .85 to 1.6 of their right size
FINEST = 0.62  # of the photo's side: there faces of 64 px, the narrowest of use, are .9 of their right size
ROLLS_DEG = (0, 45, -45, 90, -90, 135, -135, 180)  # it knows faces that lean by up to 25 degrees
# What is searched at once: upright copies, for faces of 8 % of their width and more, and small ones turned by 45.
QUICK_SIDE_PX, QUICK_TURNED_SIDE_PX = 500, 220
TURNED_SIDE_PX = 1100  # the longest of a copy that is turned at all; there is no end to upright ones
BAND_PX = 512  # rows that are read at once: the first layer's channels of a whole copy could take a gigabyte

MIN_BOX_LOGIT = 0.0  # for a box to be read more closely
MAX_BOXES = 40  # those with the largest; each takes some milliseconds
MIN_FACE_LOGIT = 2.0  # real faces read 4.2 and more
MAX_DISAGREEMENT = 0.25  # between the readings of a face and of its mirror image, in half boxes


class Found(NamedTuple):
    points_px: np.ndarray  # [5,2] eye centres, nose tip, mouth corners
    confidence: float  # in [0, 1]


def find_insightface() -> Path | None:
    """The folder of an insightface model pack that is on disk and has a detector, or None."""
    models = Path("~/.insightface/models").expanduser()
    packs = sorted({file.parent for name in ("det_*.onnx", "scrfd_*.onnx") for file in models.glob(f"*/{name}")})
    return packs[0] if packs else None


class InsightFaceFinder:
    def __init__(self, folder: Path):
        from insightface.app import FaceAnalysis  # takes .6 s and most people have none of its models

        assert any(folder.glob("*.onnx")), folder  # or insightface would start a download
        self._analysis = FaceAnalysis(str(folder), allowed_modules=["detection"], providers=["CPUExecutionProvider"])
        self._analysis.prepare(ctx_id=-1, det_size=(640, 640))

    def searches(
        self,
        pixels: np.ndarray,  # [H,W,3] uint8 RGB
    ) -> Iterator[list[Found]]:
        """What is found in the photo as it is, then on either side, then on its head."""
        for quarters in (0, 1, 3, 2):
            turned = np.ascontiguousarray(np.rot90(pixels, quarters)[..., ::-1])
            yield [
                # Their pixel centres are whole numbers, ours lie at .5.
                Found(turn_back(face.kps.astype(np.float64) + 0.5, quarters, pixels.shape), float(face.det_score))
                for face in self._analysis.get(turned)
            ]


def turn_back(points_px: np.ndarray, quarters: int, shape: tuple[int, ...]) -> np.ndarray:
    """Points [K,2] of np.rot90(photo, quarters) -> points of the photo, of `shape`. rot90 turns counter-clockwise."""
    height, width = shape[:2]
    x, y = points_px.T
    return np.stack([(x, y), (width - y, x), (width - x, height - y), (y, height - x)][quarters], 1)


class Box(NamedTuple):
    """Where the landmark network sees a face, and how surely."""

    fit: Fit
    logit: float


class OwnFinder:
    """The landmark network three times: everywhere in copies of the photo, in the likeliest boxes, and in the boxes
    that its own points give."""

    def __init__(self, folder: Path):
        self._network = LandmarkNetwork.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True
        ).eval()
        fold_batch_norms(self._network)

    def searches(
        self,
        pixels: np.ndarray,  # [H,W,3] uint8 RGB
    ) -> Iterator[list[Found]]:
        """What ever longer searches find: see `search_plan`."""
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        for copies in search_plan(max(grey.shape)):
            boxes = [box for side_px, roll_deg in copies for box in self._look(grey, side_px, roll_deg)]
            yield self._read(grey, _apart(boxes)[:MAX_BOXES])

    def _look(
        self,
        grey: np.ndarray,  # [H,W] uint8
        side_px: float,  # the longer side of the copy
        roll_deg: float,  # lean of the faces looked for, clockwise as seen
    ) -> list[Box]:
        """Where in the photo there may be a face of the size that fills the network's box in a copy."""
        size, step = self._network.config.input_size, self._network.STEP_PX
        copy, to_photo = turned_copy(grey, side_px, math.radians(roll_deg), margin_px=size // 2)
        logits = np.concatenate([
            self._network.everywhere(torch.from_numpy(band)[None, None]).numpy() for band in even_bands(copy, size, step)
        ])  # fmt: skip
        peaks = (logits == cv2.dilate(logits, np.ones((3, 3)))) & (logits > MIN_BOX_LOGIT)
        rows, columns = np.nonzero(peaks)
        centres = np.column_stack([columns, rows]) * step + size / 2
        centres = centres @ to_photo[:2, :2].T + to_photo[:2, 2]
        scale_px = size / NETWORK_SIDE * np.linalg.norm(to_photo[:2, 0])
        return [
            Box(Fit(scale_px, centre, math.radians(roll_deg)), float(logit))
            for centre, logit in zip(centres, logits[peaks])
        ]

    def _read(self, grey: np.ndarray, boxes: list[Box]) -> list[Found]:
        """The faces in boxes, each once."""
        size = self._network.config.input_size
        found: dict[int, np.ndarray] = {}
        for _ in range(2):
            if not boxes:
                return []
            squares = [box.fit.crop_to_photo(NETWORK_SIDE, size) for box in boxes]
            cut = np.stack([cut_box(grey, square, size) for square in squares])  # [B,S,S]
            readings = self._network.read(torch.from_numpy(cut)[:, None])
            points, logits, disagreements = (reading.double().numpy() for reading in readings)
            in_box = (points + 1) * size / 2  # [B,5,2]
            in_photo = [p @ square[:2, :2].T + square[:2, 2] for p, square in zip(in_box, squares)]
            boxes = [Box(fit_template(p), logit) for p, logit in zip(in_photo, logits)]
        return [
            Found(points, 1 / (1 + math.exp(-box.logit)))
            for points, box, disagreement in zip(in_photo, boxes, disagreements)
            if box.logit > MIN_FACE_LOGIT and disagreement < MAX_DISAGREEMENT
        ]


def search_plan(
    photo_px: int,  # the photo's longer side
) -> list[list[tuple[float, float]]]:
    """What one search after the other looks at, longer side and roll of each copy: faces of 8 % of the photo's width
    and more, upright; the same at any roll; smaller ones, upright; at any roll."""
    # A small photo is enlarged, too: then one hears of a face that it is too small.
    quick = _sides(SMALLEST_SIDE_PX, min(QUICK_SIDE_PX, 2 * photo_px))
    fine = _sides(quick[-1] * SIDE_STEP, FINEST * photo_px)
    at_once = [(side, 0) for side in quick]
    at_once += [(side, roll) for side in quick if side <= QUICK_TURNED_SIDE_PX for roll in (45, -45)]
    turned = [(side, roll) for side in quick for roll in ROLLS_DEG if (side, roll) not in at_once]
    fine_turned = [(side, roll) for side in fine if side <= TURNED_SIDE_PX for roll in ROLLS_DEG[1:]]
    return [at_once, turned, [(side, 0) for side in fine], fine_turned]


def _sides(first: float, last: float) -> list[float]:
    """By steps of `SIDE_STEP`; the last is always there, if it is more than the one before."""
    if last <= first:
        return []
    steps = itertools.takewhile(lambda side: side < last, (first * SIDE_STEP**n for n in itertools.count()))
    return [*steps, last]


def turned_copy(
    grey: np.ndarray,  # [H,W] uint8
    side_px: float,  # its longer side is brought to this
    roll: float,  # in radians; what leans so, clockwise as seen, is upright in the copy
    margin_px: int,  # around it; there the photo's outermost pixels go on
) -> tuple[np.ndarray, np.ndarray]:
    """The copy [H',W'] uint8 with all of the photo in it, and [3,3]: positions in it -> in the photo."""
    height, width = grey.shape
    shrink = max(height, width) / side_px
    small = cv2.resize(
        grey,
        (max(1, round(width / shrink)), max(1, round(height / shrink))),
        interpolation=cv2.INTER_AREA if shrink > 1 else cv2.INTER_LINEAR,
    )
    height_px, width_px = small.shape
    cos, sin = math.cos(roll), math.sin(roll)
    turned_px = np.ceil([
        abs(cos) * width_px + abs(sin) * height_px, abs(sin) * width_px + abs(cos) * height_px
    ]) + 2 * margin_px  # fmt: skip
    to_small = np.array([[cos, -sin, width_px / 2], [sin, cos, height_px / 2], [0, 0, 1.0]])
    to_small[:2, 2] -= to_small[:2, :2] @ turned_px / 2
    copy = warp(small, to_small, turned_px.astype(int), cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return copy, np.diag([width / width_px, height / height_px, 1]) @ to_small


def even_bands(
    copy: np.ndarray,  # [H,W] uint8, both at least `size`
    size: int,
    step: int,
) -> Iterator[np.ndarray]:
    """Bands [H',W] float32, in which brightness and contrast around each pixel (`size` px) are the same. Windows of
    `size` at multiples of `step` lie in one band each."""
    rows = BAND_PX // step * step
    for top in range(0, copy.shape[0] - size + 1, rows):
        bottom = top + min(rows + size - step, copy.shape[0] - top)
        first, last = max(0, top - size), min(copy.shape[0], bottom + size)
        band = copy[first:last].astype(np.float32)
        mean = cv2.blur(band, (size, size), borderType=cv2.BORDER_REPLICATE)
        variance = cv2.blur(band * band, (size, size), borderType=cv2.BORDER_REPLICATE) - mean * mean
        even = (band - mean) / np.sqrt(np.maximum(variance, (255 * LEAST_SPREAD) ** 2))
        yield even[top - first : bottom - first]


def _apart(boxes: list[Box]) -> list[Box]:
    """Of boxes of the same face, the surest; the surest first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: box.logit, reverse=True):
        if all(
            np.linalg.norm(box.fit.centre_px - other.fit.centre_px)
            > 0.5 * FACE_WIDTH * max(box.fit.scale_px, other.fit.scale_px)
            for other in kept
        ):
            kept.append(box)
    return kept
