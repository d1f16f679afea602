"""Five points of a face -> where the EG3D crop lies in the photo (Chan et al. 2022, supplement).

Points are in pixels of the photo, x right, y down, (0, 0) the outer corner of the first pixel; image left first."""

import math
from dataclasses import dataclass

import cv2
import numpy as np


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
CROP_SIDE = 700 / 300  # of the crop, in units of the template: EG3D brings a unit to 300 px and keeps 700
FACE_WIDTH = 1.37  # cheek to cheek, in the same units: 2.2 eye distances


@dataclass(frozen=True)
class Fit:
    """Where the template lies in a photo."""

    scale_px: float  # one unit of the template
    centre_px: np.ndarray  # [2] its origin
    roll: float  # radians, clockwise as seen

    def crop_to_photo(self, side: float, size_px: int) -> np.ndarray:
        """[3, 3]: positions in an upright square picture of `size_px` that is `side` template units wide -> photo."""
        return square_to_photo(self.centre_px, side * self.scale_px, self.roll, size_px)


def fit_template(
    points_px: np.ndarray,  # [5, 2]
) -> Fit:
    """Levels the points, then fits the template to them by least squares, as scaled orthography."""
    roll = _roll(points_px)
    turn = _turn(roll)
    # In the frame that is upright: y up, as the template has it.
    upright = points_px @ turn * [1, -1]
    solution = np.linalg.lstsq(np.column_stack([TEMPLATE, np.ones(5)]), upright, rcond=None)[0]  # [4, 2]
    scale_px = np.linalg.norm(solution[:3], axis=0).mean()
    return Fit(float(scale_px), turn @ (solution[3] * [1, -1]), roll)


def cut_box(
    photo: np.ndarray,  # [H, W] or [H, W, 3] uint8
    to_photo: np.ndarray,  # [3, 3] position in the box -> in the photo
    size_px: int,
) -> np.ndarray:
    """An upright square of the photo, [size, size] or [size, size, 3] float32 in [0, 1]; beyond the photo its
    outermost pixels go on."""
    # One sample a pixel would alias where the face is large: take n x n and average.
    n = min(8, max(1, math.ceil(np.linalg.norm(to_photo[:2, 0]))))
    finer = to_photo @ np.diag([1 / n, 1 / n, 1])
    fine = warp(photo, finer, (n * size_px, n * size_px), cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return cv2.resize(fine, (size_px, size_px), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _roll(points_px: np.ndarray) -> float:
    """The lean that FFHQ's alignment takes out: that of the eye line plus the eye-to-mouth line turned by 90 degrees.

    On turned heads it is off by less than either line alone (perspective tilts them in opposite ways)."""
    eye_to_eye = points_px[1] - points_px[0]
    eye_to_mouth = points_px[3:].mean(0) - points_px[:2].mean(0)
    x, y = eye_to_eye + [eye_to_mouth[1], -eye_to_mouth[0]]
    return math.atan2(y, x)


def _turn(roll: float) -> np.ndarray:
    """[2, 2] from the upright frame to the photo's (x right, y down): a turn clockwise as seen."""
    return np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])


def square_to_photo(centre_px: np.ndarray, side_px: float, roll: float, size_px: int) -> np.ndarray:
    """[3, 3]: positions in a square picture of `size_px` -> the photo, where the square leans by `roll`."""
    matrix = np.eye(3)
    matrix[:2, :2] = _turn(roll) * (side_px / size_px)
    matrix[:2, 2] = centre_px - matrix[:2, :2] @ [size_px / 2, size_px / 2]
    return matrix


def warp(
    source: np.ndarray, to_source: np.ndarray, size_px: tuple[int, int], interpolation: int, border: int
) -> np.ndarray:
    """Samples `source` on a picture of `size_px` (width, height). OpenCV puts pixel centres at whole numbers, we at
    .5."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = (np.linalg.inv(half) @ to_source @ half)[:2]
    return cv2.warpAffine(source, matrix, size_px, flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=border)
