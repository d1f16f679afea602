"""Photo -> faces in it, five points each, roughly: by our own network, or by insightface's where it is on disk.

photo ── Haar cascade, on turned copies ──> boxes ── landmark network, twice ──> five points"""

import math
import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from preim3d.fit import FACE_WIDTH, Fit, cut_box, fit_template, square_to_photo, warp
from preim3d.landmarks import LandmarkNetwork


NETWORK_SIDE = 2.0  # of the landmark network's box, in units of the template: hairline to below the chin
# The cascade finds faces that lean by up to 15 degrees.
ROLLS_DEG = (0, -15, 15, -30, 30)
# Sides of the copies that the cascade reads. The small one is quick; the large one finds faces of 2 % of its width.
SEARCH_SIDES_PX = (400, 1600)
# Half of that on each side, so that a face that fills the photo has a border, too.
SEARCH_PAD = 0.2

# Faces in real photos had at least 8 overlapping boxes; most textures taken for faces have fewer than 6.
MIN_NEIGHBOURS = 6
# Where none was found: pale, dark or half covered faces have fewer, and the landmark network says what is a face.
FAINT_NEIGHBOURS = 2
MIN_FACE_LOGIT = 2.0  # real faces read 4.2 and more
MAX_DISAGREEMENT = 0.25  # between the readings of a face and of its mirror image, in half boxes

# Where the template lies in the cascade's boxes, measured on synthetic portraits.
HAAR_SCALE = 0.60
HAAR_DOWN = 0.54


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

    def find(
        self,
        pixels: np.ndarray,  # [H,W,3] uint8 RGB
        search_px: int,  # insightface searches at 640 px whatever is asked
        faint: bool = False,  # and finds what it finds
    ) -> list[Found]:
        return [
            # Their pixel centres are whole numbers, ours lie at .5.
            Found(face.kps.astype(np.float64) + 0.5, float(face.det_score))
            for face in self._analysis.get(pixels[..., ::-1])
        ]


class OwnFinder:
    """Haar boxes on copies turned by `ROLLS_DEG`, then the landmark network: once on each box, once more on the box
    that its own points give."""

    def __init__(self, folder: Path):
        self._network = LandmarkNetwork.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True
        ).eval()
        self._cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
        self._lock = threading.Lock()  # a cascade keeps its working memory: one caller at a time

    def find(
        self,
        pixels: np.ndarray,  # [H,W,3] uint8 RGB
        search_px: int,  # longer side of the copy that the cascade reads
        faint: bool = False,  # whether faces that are hard to see are looked for, which takes more things for faces
    ) -> list[Found]:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        neighbours = FAINT_NEIGHBOURS if faint else MIN_NEIGHBOURS
        searched = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(grey) if faint else grey
        with self._lock:
            fits = [
                fit for roll in ROLLS_DEG for fit in haar_fits(self._cascade, searched, search_px, roll, neighbours)
            ]
        return self._read(grey, fits)

    def _read(self, grey: np.ndarray, fits: list[Fit]) -> list[Found]:
        if not fits:
            return []
        size = self._network.config.input_size
        for _ in range(2):
            squares = [fit.crop_to_photo(NETWORK_SIDE, size) for fit in fits]
            boxes = np.stack([cut_box(grey, square, size) for square in squares])  # [B,S,S]
            readings = self._network.read(torch.from_numpy(boxes)[:, None])
            points, face_logits, disagreements = (reading.double().numpy() for reading in readings)
            in_box = (points + 1) * size / 2  # [B,5,2]
            in_photo = [p @ square[:2, :2].T + square[:2, 2] for p, square in zip(in_box, squares)]
            fits = [fit_template(p) for p in in_photo]
        faces = [
            Found(p, 1 / (1 + math.exp(-logit)))
            for p, logit, disagreement in zip(in_photo, face_logits, disagreements)
            if logit > MIN_FACE_LOGIT and disagreement < MAX_DISAGREEMENT
        ]
        return _one_each(faces)


def haar_fits(
    cascade: cv2.CascadeClassifier,
    grey: np.ndarray,  # [H,W] uint8
    side_px: int,  # the picture is shrunk to this first
    roll_deg: float,  # lean of the faces looked for, clockwise as seen
    neighbours: int,  # overlapping boxes that a face has at least
) -> list[Fit]:
    """The cascade's boxes as (rough) fits in pixels of `grey`."""
    height, width = grey.shape
    shrink = max(1.0, max(height, width) / side_px)
    # A square around the photo, which holds it at every roll of `ROLLS_DEG` up to what is cut off its corners.
    frame_side = (1 + SEARCH_PAD) * max(height, width)
    frame_px = round(frame_side / shrink)
    to_photo = square_to_photo(np.array([width / 2, height / 2]), frame_side, math.radians(roll_deg), frame_px)
    small = cv2.resize(grey, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    to_small = np.diag([small.shape[1] / width, small.shape[0] / height, 1]) @ to_photo
    frame = warp(small, to_small, frame_px, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    boxes = cascade.detectMultiScale(frame, scaleFactor=1.15, minNeighbors=neighbours, minSize=(24, 24))
    fits = []
    for left, top, box_px, _ in boxes:
        centre = to_photo @ [left + 0.5 * box_px, top + HAAR_DOWN * box_px, 1]
        fits.append(Fit(HAAR_SCALE * box_px * frame_side / frame_px, centre[:2], math.radians(roll_deg)))
    return fits


def _one_each(faces: list[Found]) -> list[Found]:
    """Of readings of the same face, the surest."""
    kept: list[tuple[Found, Fit]] = []
    for face in sorted(faces, key=lambda face: face.confidence, reverse=True):
        fit = fit_template(face.points_px)
        apart = [np.linalg.norm(fit.centre_px - other.centre_px) for _, other in kept]
        if all(a > 0.5 * FACE_WIDTH * max(fit.scale_px, other.scale_px) for a, (_, other) in zip(apart, kept)):
            kept.append((face, fit))
    return [face for face, _ in kept]
