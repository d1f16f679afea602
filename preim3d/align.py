"""Photo -> upright EG3D crop (PIL, 512 px), the only crop the encoder knows (Chan et al. 2022, supplement).

    photo ── Haar cascade, on turned copies ──> boxes ── landmark network, twice ──> five points ── fit ──> crop

Points are in pixels of the photo, x right, y down, (0, 0) the outer corner of the first pixel; image left first."""

import itertools
import math
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from preim3d.landmarks import LandmarkNetwork
from preim3d.photo import PhotoError, load_photo


# The mean face: x right, y up, z to the viewer. Eye centres, nose tip, mouth corners.
TEMPLATE = np.array(
    [
        [-0.31148657, 0.29036078, 0.13377953],
        [0.30979887, 0.28972036, 0.13179526],
        [0.0032535, -0.04617932, 0.55244243],
        [-0.25216928, -0.38133916, 0.22405732],
        [0.2484662, -0.38128236, 0.22235769],
    ]
)
CROP_PX = 512
CROP_SIDE = 700 / 300  # of the crop, in units of the template: EG3D brings a unit to 300 px and keeps 700
NETWORK_SIDE = 2.0  # of the landmark network's box, in the same units: hairline to below the chin
FACE_WIDTH = 1.37  # cheek to cheek, in the same units: 2.2 eye distances
FACE_HEIGHT = 1.8
MIN_FACE_PX = 64  # width; the crop of such a face is 109 px wide, less than the smallest encoder input (128)

# The cascade finds faces that lean by up to 15 degrees.
ROLLS_DEG = (0, -15, 15, -30, 30)
# Sides of the copies that the cascade reads. The small one is quick; the large one finds faces of 2 % of its width.
SEARCH_SIDES_PX = (400, 1600)
# Half of that on each side, so that a face that fills the photo has a border, too.
SEARCH_PAD = 0.2

# Faces in real photos had at least 8 overlapping boxes; most textures taken for faces have fewer than 6.
MIN_NEIGHBOURS = 6
MIN_FACE_LOGIT = 2.0  # real faces read 4.2 and more
MAX_DISAGREEMENT = 0.25  # between the readings of a face and of its mirror image, in half boxes


@dataclass(frozen=True)
class Face:
    """A face in a photo. Lengths in pixels of the photo."""

    points_px: np.ndarray  # [5,2] eye centres, nose tip, mouth corners
    confidence: float  # in [0, 1]

    @cached_property
    def fit(self) -> "Fit":
        return fit_template(self.points_px)

    @property
    def roll_deg(self) -> float:
        """How far the head leans, clockwise as seen."""
        return math.degrees(self.fit.roll)

    @property
    def width_px(self) -> float:
        return FACE_WIDTH * self.fit.scale_px

    @property
    def box_px(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the face, hairline to chin."""
        (x, y), half_width, half_height = self.fit.centre_px, self.width_px / 2, FACE_HEIGHT / 2 * self.fit.scale_px
        return x - half_width, y - half_height, x + half_width, y + half_height


@dataclass(frozen=True)
class Fit:
    """Where the template lies in a photo."""

    scale_px: float  # one unit of the template
    centre_px: np.ndarray  # [2] its origin
    roll: float  # radians, clockwise as seen

    def crop_to_photo(self, side: float, size_px: int) -> np.ndarray:
        """[3,3]: positions in an upright square picture of `size_px` that is `side` template units wide -> photo."""
        return _square_to_photo(self.centre_px, side * self.scale_px, self.roll, size_px)


def fit_template(
    points_px: np.ndarray,  # [5,2]
) -> Fit:
    """Levels the points, then fits the template to them by least squares, as scaled orthography."""
    roll = _roll(points_px)
    turn = _turn(roll)
    # In the frame that is upright: y up, as the template has it.
    upright = points_px @ turn * [1, -1]
    solution = np.linalg.lstsq(np.column_stack([TEMPLATE, np.ones(5)]), upright, rcond=None)[0]  # [4,2]
    scale_px = np.linalg.norm(solution[:3], axis=0).mean()
    return Fit(float(scale_px), turn @ (solution[3] * [1, -1]), roll)


def crop_face(photo: Image.Image, face: Face) -> Image.Image:
    """The EG3D crop: 512 x 512, head upright. Beyond the photo's borders it goes on mirrored and blurred."""
    # At the photo's own resolution first, then Lanczos, which averages when it shrinks.
    native_px = max(CROP_PX, math.ceil(CROP_SIDE * face.fit.scale_px))
    source = np.asarray(photo)
    to_photo = face.fit.crop_to_photo(CROP_SIDE, native_px)
    native = _warp(source, to_photo, native_px, cv2.INTER_CUBIC, cv2.BORDER_REFLECT)
    crop = Image.fromarray(native).resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS)
    return _blur_beyond(crop, face.fit.crop_to_photo(CROP_SIDE, CROP_PX), photo.size, face.fit)


def _blur_beyond(crop: Image.Image, to_photo: np.ndarray, photo_size: tuple[int, int], fit: Fit) -> Image.Image:
    """Blurs what lies outside the photo, so that a mirrored ear does not pass for one; the blur grows over 24 px."""
    centres = np.arange(CROP_PX) + 0.5
    x, y = np.meshgrid(centres, centres)
    photo_x, photo_y = (to_photo[i, 0] * x + to_photo[i, 1] * y + to_photo[i, 2] for i in (0, 1))
    beyond_px = np.maximum.reduce([-photo_x, photo_x - photo_size[0], -photo_y, photo_y - photo_size[1]])
    share = np.clip(beyond_px * CROP_PX / (CROP_SIDE * fit.scale_px) / 24, 0, 1)[..., None]
    if not share.any():
        return crop
    sharp = np.asarray(crop).astype(np.float32)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 12)
    return Image.fromarray((sharp + (blurred - sharp) * share).round().astype(np.uint8))


class FaceAligner:
    """Finds the faces of a photo and cuts them out.

    Uses insightface's detector instead of ours where one of its model packs is on disk already (their licence: for
    non-commercial research only). `source` says in one line which is in use. Never downloads anything."""

    def __init__(
        self,
        landmarks_folder: str | Path,  # of our landmark network, e.g. weights/faces/landmarks
        insightface_folder: str | Path | None = "installed",  # one with det_*.onnx, or where insightface keeps them
    ):
        folder = find_insightface() if insightface_folder == "installed" else insightface_folder
        if folder is None:
            self._finder = _OwnFinder(Path(landmarks_folder))
            self.source = "faces by OpenCV's cascade and our own landmark network"
        else:
            self._finder = _InsightFaceFinder(Path(folder))
            self.source = f"faces by insightface's models in {folder} (for non-commercial research only)"

    def faces(self, photo: Image.Image) -> list[Face]:
        """The faces of an upright RGB photo, the largest first. A photo that lies on its side or head is turned until
        a face is found."""
        pixels = np.asarray(photo)
        for search_px, quarters in itertools.product(SEARCH_SIDES_PX, (0, 1, 3, 2)):
            turned = np.ascontiguousarray(np.rot90(pixels, quarters))
            found = self._finder.find(turned, search_px)
            if found:
                found = [Face(_turn_back(face.points_px, quarters, photo.size), face.confidence) for face in found]
                return sorted(found, key=lambda face: face.width_px, reverse=True)
        return []

    def choose(self, photo: Image.Image, number: int = 0, faces: list[Face] | None = None) -> Face:
        """Face `number` of a photo, 0 the largest; `faces`, where they are known already, saves finding them again.

        Raises `PhotoError` if there is no such face, or it is too small."""
        faces = self.faces(photo) if faces is None else faces
        if not faces:
            width, height = photo.size
            raise PhotoError(
                "no_face", f"No face found in the photo ({width} x {height} px): choose one that looks at the camera."
            )
        if not 0 <= number < len(faces):
            raise PhotoError(
                "no_such_face",
                f"There is no face {number} in the photo: {len(faces)} found, numbered from 0 (the largest).",
            )
        if faces[number].width_px < MIN_FACE_PX:
            raise PhotoError(
                "face_too_small", f"The face is {faces[number].width_px:.0f} px wide; {MIN_FACE_PX} px is the least."
            )
        return faces[number]

    def align_photo(self, photo: str | Path | bytes | Image.Image, face: int = 0) -> Image.Image:
        """Any photo -> the EG3D crop (PIL, 512 x 512) of face number `face`, 0 the largest. Raises `PhotoError`."""
        picture = load_photo(photo)
        return crop_face(picture, self.choose(picture, face))


def find_insightface() -> Path | None:
    """The folder of an insightface model pack that is on disk and has a detector, or None."""
    models = Path("~/.insightface/models").expanduser()
    packs = sorted({file.parent for name in ("det_*.onnx", "scrfd_*.onnx") for file in models.glob(f"*/{name}")})
    return packs[0] if packs else None


class _InsightFaceFinder:
    def __init__(self, folder: Path):
        from insightface.app import FaceAnalysis  # takes .6 s and most people have none of its models

        assert any(folder.glob("*.onnx")), folder  # or insightface would start a download
        self._analysis = FaceAnalysis(str(folder), allowed_modules=["detection"], providers=["CPUExecutionProvider"])
        self._analysis.prepare(ctx_id=-1, det_size=(640, 640))

    def find(
        self,
        pixels: np.ndarray,  # [H,W,3] uint8 RGB
        search_px: int,  # insightface searches at 640 px whatever is asked
    ) -> list[Face]:
        return [
            # Their pixel centres are whole numbers, ours lie at .5.
            Face(face.kps.astype(np.float64) + 0.5, float(face.det_score))
            for face in self._analysis.get(pixels[..., ::-1])
        ]


class _OwnFinder:
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
    ) -> list[Face]:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        with self._lock:
            fits = [fit for roll in ROLLS_DEG for fit in haar_fits(self._cascade, grey, search_px, roll)]
        return self._read(grey, fits)

    def _read(self, grey: np.ndarray, fits: list[Fit]) -> list[Face]:
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
            Face(p, 1 / (1 + math.exp(-logit)))
            for p, logit, disagreement in zip(in_photo, face_logits, disagreements)
            if logit > MIN_FACE_LOGIT and disagreement < MAX_DISAGREEMENT
        ]
        return _one_each(faces)


def haar_fits(
    cascade: cv2.CascadeClassifier,
    grey: np.ndarray,  # [H,W] uint8
    side_px: int,  # the picture is shrunk to this first
    roll_deg: float,  # lean of the faces looked for, clockwise as seen
) -> list[Fit]:
    """The cascade's boxes as (rough) fits in pixels of `grey`."""
    height, width = grey.shape
    shrink = max(1.0, max(height, width) / side_px)
    # A square around the photo, which holds it at every roll of `ROLLS_DEG` up to what is cut off its corners.
    frame_side = (1 + SEARCH_PAD) * max(height, width)
    frame_px = round(frame_side / shrink)
    to_photo = _square_to_photo(np.array([width / 2, height / 2]), frame_side, math.radians(roll_deg), frame_px)
    small = cv2.resize(grey, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
    to_small = np.diag([small.shape[1] / width, small.shape[0] / height, 1]) @ to_photo
    frame = _warp(small, to_small, frame_px, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    boxes = cascade.detectMultiScale(frame, scaleFactor=1.15, minNeighbors=MIN_NEIGHBOURS, minSize=(24, 24))
    fits = []
    for left, top, box_px, _ in boxes:
        centre = to_photo @ [left + 0.5 * box_px, top + HAAR_DOWN * box_px, 1]
        fits.append(Fit(HAAR_SCALE * box_px * frame_side / frame_px, centre[:2], math.radians(roll_deg)))
    return fits


# Where the template lies in the cascade's boxes, measured on synthetic portraits (train/landmarks.py prints it).
HAAR_SCALE = 0.60
HAAR_DOWN = 0.54


def cut_box(
    grey: np.ndarray,  # [H,W] uint8
    to_photo: np.ndarray,  # [3,3] position in the box -> in the photo
    size_px: int,
) -> np.ndarray:
    """An upright square of the photo, [size,size] float32 in [0, 1]; the photo's outermost pixels go on beyond it."""
    # One sample a pixel would alias where the face is large: take n x n and average.
    n = min(8, max(1, math.ceil(np.linalg.norm(to_photo[:2, 0]))))
    finer = to_photo @ np.diag([1 / n, 1 / n, 1])
    fine = _warp(grey, finer, n * size_px, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return cv2.resize(fine, (size_px, size_px), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _one_each(faces: list[Face]) -> list[Face]:
    """Of readings of the same face, the surest."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: face.confidence, reverse=True):
        apart = [np.linalg.norm(face.fit.centre_px - other.fit.centre_px) for other in kept]
        if all(a > 0.5 * max(face.width_px, other.width_px) for a, other in zip(apart, kept)):
            kept.append(face)
    return kept


def _roll(points_px: np.ndarray) -> float:
    """The lean that FFHQ's alignment takes out: that of the eye line plus the eye-to-mouth line turned by 90 degrees.

    On turned heads it is off by less than either line alone (perspective tilts them in opposite ways)."""
    eye_to_eye = points_px[1] - points_px[0]
    eye_to_mouth = points_px[3:].mean(0) - points_px[:2].mean(0)
    x, y = eye_to_eye + [eye_to_mouth[1], -eye_to_mouth[0]]
    return math.atan2(y, x)


def _turn(roll: float) -> np.ndarray:
    """[2,2] from the upright frame to the photo's (x right, y down): a turn clockwise as seen."""
    return np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])


def _square_to_photo(centre_px: np.ndarray, side_px: float, roll: float, size_px: int) -> np.ndarray:
    """[3,3]: positions in a square picture of `size_px` -> the photo, where the square leans by `roll`."""
    matrix = np.eye(3)
    matrix[:2, :2] = _turn(roll) * (side_px / size_px)
    matrix[:2, 2] = centre_px - matrix[:2, :2] @ [size_px / 2, size_px / 2]
    return matrix


def _warp(source: np.ndarray, to_source: np.ndarray, size_px: int, interpolation: int, border: int) -> np.ndarray:
    """Samples `source` on a square of `size_px`. OpenCV puts pixel centres at whole numbers, we at .5."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = (np.linalg.inv(half) @ to_source @ half)[:2]
    return cv2.warpAffine(
        source, matrix, (size_px, size_px), flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=border
    )


def _turn_back(points_px: np.ndarray, quarters: int, photo_size: tuple[int, int]) -> np.ndarray:
    """Points [K,2] of np.rot90(photo, quarters) -> points of the photo. rot90 turns counter-clockwise."""
    width, height = photo_size
    x, y = points_px.T
    return np.stack([(x, y), (width - y, x), (width - x, height - y), (y, height - x)][quarters], 1)
