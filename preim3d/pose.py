"""Five points of a face -> yaw and pitch of the camera that took it, by a weak-perspective fit of the mean face."""

import math

import numpy as np

from preim3d.align import TEMPLATE


# Five points say little about depth, and a smile looks like a nod: these hold the fit near the frontal view.
RIDGE_YAW, RIDGE_PITCH = 0.05, 0.5
FURTHEST_YAW_DEG, FURTHEST_PITCH_DEG = 45.0, 20.0  # beyond these the encoder has seen no faces


def face_angles(
    points_px: np.ndarray,  # [5, 2] as in `align.Face`: x right, y down
) -> tuple[float, float]:
    """Yaw and nominal pitch in degrees, as in `camera`: +yaw looks from the image-right side of the frontal view."""
    face = TEMPLATE - TEMPLATE.mean(0)
    picture = (points_px - points_px.mean(0)) * (1, -1)  # y up
    # picture = face @ axes: the camera's right and up axes in the world, times the scale.
    frontal = np.eye(3)[:, :2] * np.sqrt((picture**2).sum() / (face[:, :2] ** 2).sum())
    axes = frontal.copy()  # [3, 2]
    for axis, ridge in enumerate((RIDGE_YAW, RIDGE_PITCH)):
        rest = face.T @ (picture - face @ frontal)[:, axis]
        axes[:, axis] += np.linalg.solve(face.T @ face + ridge * np.eye(3), rest)
    towards = np.cross(axes[:, 0], axes[:, 1])  # from the face to the camera
    towards /= np.linalg.norm(towards)
    yaw, pitch = math.degrees(math.atan2(towards[0], towards[2])), -90 * towards[1]
    return (
        float(np.clip(yaw, -FURTHEST_YAW_DEG, FURTHEST_YAW_DEG)),
        float(np.clip(pitch, -FURTHEST_PITCH_DEG, FURTHEST_PITCH_DEG)),
    )
