"""Photo -> faces in it, five points each, roughly: by our own network, or by insightface's where it is on disk.

photo ── landmark network, everywhere in turned copies ──> boxes ── the same in each, twice ──> five points"""

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
# It knows faces that lean by up to 25 degrees: first those that lean by less than 55, then all others.
LEANING_DEG, LYING_DEG = (30, -30), (75, -75, 125, -125, 180)
# What is searched at once: upright copies, for faces of 6 % of their width and more, and leaning ones for 9 %.
QUICK_SIDE_PX, QUICK_LEANING_SIDE_PX = 640, 440
TURNED_SIDE_PX = 1100  # the longest of a copy that is turned at all; there is no end to upright ones
BAND_PX = 512  # rows that are read at once: the first layer's channels of a whole copy could take a gigabyte

MIN_BOX_LOGIT = 0.0  # for a box to be read more closely: in ordinary light faces have 2.9 and more
FAINT_BOX_LOGIT = -2.5  # where none was found: covered faces
MAX_BOXES = 40  # those with the largest; each takes some milliseconds
MIN_FACE_LOGIT = 2.0  # real faces read 4.2 and more
MAX_DISAGREEMENT = 0.25  # between the readings of a face and of its mirror image, in half boxes


class Found(NamedTuple):
    points_px: np.ndarray  # [5, 2] eye centres, nose tip, mouth corners
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
        pixels: np.ndarray,  # [H, W, 3] uint8 RGB
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
    """Points [K, 2] of np.rot90(photo, quarters) -> points of the photo, of `shape`. rot90 turns counter-clockwise."""
    height, width = shape[:2]
    x, y = points_px.T
    return np.stack([(x, y), (width - y, x), (width - x, height - y), (y, height - x)][quarters], 1)


class Box(NamedTuple):
    """Where the landmark network sees a face, and how surely."""

    fit: Fit
    logit: float
    points_px: np.ndarray | None = None  # [5, 2] where it was read more closely


# For each copy its longer side in pixels, and how far what is upright in it leans in the photo, in degrees clockwise.
Copies = list[tuple[float, float]]


class OwnFinder:
    """The landmark network three times: everywhere in copies of the photo, in the likeliest boxes, and in the boxes
    that its own points give."""

    def __init__(self, folder: Path):
        self._network = LandmarkNetwork.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True
        ).eval()
        fold_batch_norms(self._network)
        self._network.to(memory_format=torch.channels_last)

    def searches(
        self,
        pixels: np.ndarray,  # [H, W, 3] uint8 RGB
    ) -> Iterator[list[Found]]:
        """What ever longer searches find: see `search_plan`."""
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        for min_logit, copies in search_plan(max(grey.shape)):
            yield self._read(grey, _apart(self._look(grey, copies, min_logit))[:MAX_BOXES])

    def _look(
        self,
        grey: np.ndarray,  # [H, W] uint8
        copies: Copies,
        min_logit: float,
    ) -> list[Box]:
        """Where in the photo there may be faces: such as fill the network's box in one of the copies."""
        if not copies:
            return []
        size, step = self._network.config.input_size, self._network.STEP_PX
        rolls = [math.radians(roll_deg) for _, roll_deg in copies]
        # Shrunk to the largest of them once for all.
        largest, largest_to_photo = shrunk(grey, max(side_px for side_px, _ in copies))
        turned = [turned_copy(largest, side_px, roll, size) for (side_px, _), roll in zip(copies, rolls)]
        # As one picture: each call takes 5 ms, however small its picture.
        sheet, corners = sheet_of([copy for copy, _ in turned], size, step)
        bands = [
            torch.from_numpy(sheet[top : top + BAND_PX + size - step])[None, None]
            for top in range(0, len(sheet) - size + 1, BAND_PX)
        ]
        logits = np.concatenate([self._network.everywhere(band).numpy() for band in bands])
        boxes = []
        for (copy, to_largest), roll, (top, left) in zip(turned, rolls, corners):
            to_photo = largest_to_photo @ to_largest
            rows, columns = ((side_px - size) // step + 1 for side_px in copy.shape)
            part = logits[top // step :, left // step :][:rows, :columns]
            peaks = (part == cv2.dilate(part, np.ones((3, 3)))) & (part > min_logit)
            scale_px = size / NETWORK_SIDE * np.linalg.norm(to_photo[:2, 0])
            for row, column in np.argwhere(peaks):
                centre = to_photo @ [step * column + size / 2, step * row + size / 2, 1]
                boxes.append(Box(Fit(scale_px, centre[:2], roll), float(part[row, column])))
        return boxes

    def _read(self, grey: np.ndarray, boxes: list[Box]) -> list[Found]:
        """The faces in boxes, each once."""
        if not boxes:
            return []
        size = self._network.config.input_size
        for _ in range(2):
            squares = [box.fit.crop_to_photo(NETWORK_SIDE, size) for box in boxes]
            cut = np.stack([cut_box(grey, square, size) for square in squares])  # [B, S, S]
            readings = self._network.read(torch.from_numpy(cut)[:, None])
            points, logits, disagreements = (reading.double().numpy() for reading in readings)
            in_box = (points + 1) * size / 2  # [B, 5, 2]
            in_photo = [p @ square[:2, :2].T + square[:2, 2] for p, square in zip(in_box, squares)]
            boxes = [Box(fit_template(p), logit, p) for p, logit in zip(in_photo, logits)]
        faces = [
            box
            for box, disagreement in zip(boxes, disagreements)
            if box.logit > MIN_FACE_LOGIT and disagreement < MAX_DISAGREEMENT
        ]
        return [Found(face.points_px, 1 / (1 + math.exp(-face.logit))) for face in _apart(faces)]


def search_plan(
    photo_px: int,  # the photo's longer side
) -> list[tuple[float, Copies]]:
    """The searches in turn: the copies that each looks at, and the least logit of its boxes. They look for faces of
    6 % of the photo's width and more, upright or leaning; for lying ones; for smaller ones, upright, then at any roll;
    and for faint ones."""
    quick = _sides(SMALLEST_SIDE_PX, min(QUICK_SIDE_PX, photo_px))
    fine = _sides(quick[-1] * SIDE_STEP, FINEST * photo_px)
    upright = [(side, 0) for side in quick]
    leaning = [(side, roll) for side in quick if side <= QUICK_LEANING_SIDE_PX for roll in LEANING_DEG]
    lying = [(side, roll) for side in quick for roll in LEANING_DEG + LYING_DEG if (side, roll) not in leaning]
    fine_turned = [(side, roll) for side in fine if side <= TURNED_SIDE_PX for roll in LEANING_DEG + LYING_DEG]
    return [
        (MIN_BOX_LOGIT, upright + leaning),
        (MIN_BOX_LOGIT, lying),
        (MIN_BOX_LOGIT, [(side, 0) for side in fine]),
        (MIN_BOX_LOGIT, fine_turned),
        (FAINT_BOX_LOGIT, upright),
    ]


def _sides(first: float, last: float) -> list[float]:
    """By steps of at most `SIDE_STEP`, both ends included; none where there is nothing between them."""
    if last <= first:
        return []
    steps = math.ceil(math.log(last / first) / math.log(SIDE_STEP))
    return [first * (last / first) ** (step / steps) for step in range(steps + 1)]


def shrunk(
    grey: np.ndarray,  # [H, W] uint8
    side_px: float,  # its longer side is brought to this, by enlarging it, too
) -> tuple[np.ndarray, np.ndarray]:
    """[H', W'] uint8, and [3, 3]: positions in it -> in `grey`."""
    size_px = np.array(grey.shape[::-1])
    small_px = np.maximum(1, (size_px * side_px / size_px.max()).round()).astype(int)
    interpolation = cv2.INTER_AREA if side_px < size_px.max() else cv2.INTER_LINEAR
    return cv2.resize(grey, small_px.tolist(), interpolation=interpolation), np.diag([*size_px / small_px, 1])


def turned_copy(
    grey: np.ndarray,  # [H, W] uint8
    side_px: float,  # its longer side is brought to this
    roll: float,  # in radians; what leans so, clockwise as seen, is upright in the copy
    least_px: int,  # no side is less, and a quarter of that is added around; there the photo's outermost pixels go on
) -> tuple[np.ndarray, np.ndarray]:
    """The copy [H', W'] uint8, which holds all of the photo but corners that lean out of it; and a matrix [3, 3] from
    positions in the copy to positions in `grey`."""
    small, to_grey = shrunk(grey, side_px)
    small_px = np.array(small.shape[::-1])
    cos, sin = math.cos(roll), math.sin(roll)
    # A photo that lies on its side is as wide as it was high.
    copy_px = np.maximum((small_px if abs(cos) > abs(sin) else small_px[::-1]) + least_px // 2, least_px)
    to_small = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    to_small[:2, 2] = small_px / 2 - to_small[:2, :2] @ copy_px / 2
    copy = warp(small, to_small, copy_px.tolist(), cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return copy, to_grey @ to_small


def sheet_of(
    copies: list[np.ndarray],  # [H, W] uint8 each
    size: int,
    step: int,
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """All copies on one sheet [H', W'] float32, with brightness and contrast evened out over `size` px around each
    pixel; and the top left corner of each copy, a multiple of `step`."""
    sizes = [[-(-side_px // step) * step for side_px in copy.shape] for copy in copies]
    width = max(width for _, width in sizes)
    corners: list[tuple[int, int]] = [(0, 0)] * len(copies)
    top = left = shelf = 0
    for place in sorted(range(len(copies)), key=lambda place: sizes[place], reverse=True):  # the highest first
        if left + sizes[place][1] > width:
            top, left = top + shelf, 0
        shelf = sizes[place][0] if left == 0 else shelf
        corners[place] = top, left
        left += sizes[place][1]
    sheet = np.zeros((top + shelf, width), np.float32)
    for copy, (top, left) in zip(copies, corners):
        # Some rows at a time, and what the means reach of those around: a large copy is not in memory four times.
        for first in range(0, len(copy), BAND_PX):
            above = min(first, size)
            rows = copy[first - above : first + BAND_PX + size].astype(np.float32)
            mean = cv2.blur(rows, (size, size), borderType=cv2.BORDER_REPLICATE)
            variance = cv2.blur(rows * rows, (size, size), borderType=cv2.BORDER_REPLICATE) - mean * mean
            even = (rows - mean) / np.sqrt(np.maximum(variance, (255 * LEAST_SPREAD) ** 2))
            even = even[above : above + min(BAND_PX, len(copy) - first)]
            sheet[top + first : top + first + len(even), left : left + copy.shape[1]] = even
    return sheet, corners


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
