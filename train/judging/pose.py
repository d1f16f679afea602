"""Points of faces -> how far their heads lean in the pictures: with the yaw and pitch that a network reads, the pose
that APD compares (paper, section 4.2)."""

import numpy as np
import torch
from torch import Tensor

from train.photos.real_photos import RealPhotos


NEARLY_FRONTAL = 0.15  # radians of yaw and pitch


def upright_face(photos: RealPhotos) -> Tensor:
    """The mean [K, 3] of the points of faces that look at the camera; crops have no roll, so it has none."""
    frontal = (np.abs(photos.pose) < NEARLY_FRONTAL).all(1)
    points = photos.landmarks[frontal] if frontal.any() else photos.landmarks
    return torch.from_numpy(points.mean(0))


def roll_of(
    points: Tensor,  # [N, K, 3] x right, y down, z away, in any unit
    face: Tensor,  # [K, 3] the same points of an upright face
) -> Tensor:
    """Roll [N] in radians as `camera_from_angles` counts it, by the turn that brings the face nearest to the points
    (Kabsch 1976): where it takes the head's own down. Turned heads do not lean for that, as the line of their eyes
    does.

    On views of ten heads, yaw -30 and 0 and pitch -15 and 15 degrees, `FaceMesh`'s points gave 6.2 of 8 degrees of
    roll (means of ten: 4.7 to 7.4), and .3 to 1.5 of none; its five points by EG3D's template up to 4.2 of none."""
    across = (points - points.mean(1, keepdim=True)).mT.double() @ (face - face.mean(0)).double()  # [N, 3, 3]
    u, _, v = torch.linalg.svd(across)
    # A mirror image would fit some points better; a turn has determinant 1.
    flip = torch.diag_embed(torch.stack([*2 * [torch.ones(len(u))], torch.linalg.det(u @ v)], 1).double())
    down = (u @ flip @ v)[:, :, 1]
    return torch.atan2(down[:, 0], down[:, 1]).float()
