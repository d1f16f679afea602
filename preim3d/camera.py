"""Yaw and pitch <-> camera label, rays through pixels, the 3x3 grid and the orbit. Pure functions of tensors.

A camera label is 25 floats: the 16 of a cam2world matrix, row by row, then the 9 of the intrinsics normalised by
the image size. The world has y up, the face looks to +z, x is to the viewer's right when facing the face. The
camera is OpenCV's: x right, y down, z forward (EG3D's convention, Chan et al. 2022, section 4).

Yaw and pitch are the *nominal* angles of the look-at sampler that EG3D's weights were trained with and that the
PREIM3D paper states its poses in. +yaw moves the camera to +x; **+pitch puts it below the face**. A nominal pitch
p is not the elevation: sin(elevation) = -2 p / pi, so 20 degrees nominal are 12.84 degrees of elevation.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


FOCAL = 4.2647  # Focal length over image width, EG3D faces. (An FOV of 18.837 degrees gives 4.2634: not it.)
RADIUS = 2.7  # Distance of the camera from the world origin (not from the pivot).
PIVOT = (0.0, 0.0, 0.2)  # The point the camera looks at, for faces.
YAWS_DEG = (-30, 0, 30)  # Columns of the pose grid, left to right.
PITCHES_DEG = (-20, 0, 20)  # Rows of the pose grid, top to bottom: seen from above, level, seen from below.
FURTHEST_YAW_DEG, FURTHEST_PITCH_DEG = 45.0, 20.0  # Beyond these hardly any photo of a face was learned from.


def camera_from_angles(
    yaw: Tensor | float,  # [...] radians, 0 = in front of the face.
    pitch: Tensor | float,  # [...] nominal radians, 0 = level, positive = from below.
    roll: Tensor | float = 0.0,  # [...] radians about the view axis, positive = the picture turns counter-clockwise.
    radius: Tensor | float = RADIUS,  # [...] distance from the world origin.
    pivot: tuple[float, float, float] = PIVOT,  # The point looked at.
    focal: Tensor | float = FOCAL,  # [...] focal length over image width.
) -> Tensor:
    """Camera labels [..., 25] of cameras that look at `pivot`; the arguments broadcast against each other."""
    values = (yaw, pitch, roll, radius, focal)
    # On the device of those that are tensors, and made there: copying a number would keep a GPU waiting.
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    values = (
        value.float() if isinstance(value, Tensor) else torch.full((), value, dtype=torch.float32, device=device)
        for value in values
    )
    yaw, pitch, roll, radius, focal = torch.broadcast_tensors(*values)

    # Position: cos(phi) is uniform in the vertical angle v, hence "nominal". v = 0 or pi is straight up or down,
    # where the look-at frame does not exist.
    v = (math.pi / 2 + pitch).clamp(1e-5, math.pi - 1e-5)
    cos_phi = 1 - 2 * v / math.pi
    sin_phi = (1 - cos_phi.square()).sqrt()
    origin = radius[..., None] * torch.stack([sin_phi * yaw.sin(), cos_phi, sin_phi * yaw.cos()], dim=-1)

    # Orientation: z forward to the pivot, x right and y down in the picture.
    forward = F.normalize(torch.stack([p - o for p, o in zip(pivot, origin.unbind(-1))], dim=-1), dim=-1)
    up = torch.zeros_like(forward)
    up[..., 1] = 1
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = F.normalize(torch.linalg.cross(forward, right), dim=-1)
    cos_roll, sin_roll = roll.cos()[..., None], roll.sin()[..., None]
    right, down = cos_roll * right + sin_roll * down, cos_roll * down - sin_roll * right

    cam2world = torch.zeros(*yaw.shape, 4, 4, dtype=origin.dtype, device=origin.device)
    cam2world[..., :3, :] = torch.stack([right, down, forward, origin], dim=-1)
    cam2world[..., 3, 3] = 1
    intrinsics = torch.zeros(*yaw.shape, 3, 3, dtype=origin.dtype, device=origin.device)
    intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
    intrinsics[..., :2, 2] = 0.5
    intrinsics[..., 2, 2] = 1
    return torch.cat([cam2world.flatten(-2), intrinsics.flatten(-2)], dim=-1)


def angles_from_camera(
    camera: Tensor,  # [..., 25] looking at the pivot from anywhere but straight above or below it.
) -> tuple[Tensor, Tensor]:
    """Yaw and nominal pitch in radians, each [...]: the inverse of `camera_from_angles`, read off the position."""
    x, y, z = camera[..., 3], camera[..., 7], camera[..., 11]
    radius = (x.square() + y.square() + z.square()).sqrt()
    return torch.atan2(x, z), -math.pi / 2 * y / radius


def grid_cameras(pivot: tuple[float, float, float] = PIVOT) -> Tensor:
    """The pose grid [9, 25], row by row: pitch -20 (from above), 0, 20 (from below) by yaw -30, 0, 30 degrees."""
    yaw = torch.tensor(YAWS_DEG).deg2rad().repeat(len(PITCHES_DEG))
    pitch = torch.tensor(PITCHES_DEG).deg2rad().repeat_interleave(len(YAWS_DEG))
    return camera_from_angles(yaw, pitch, pivot=pivot)


def orbit_cameras(
    count: int,  # Number of frames of one closed round.
    yaw_deg: float = 30.0,  # Half width of the ellipse.
    pitch_deg: float = 10.0,  # Half height of the ellipse, nominal.
    pivot: tuple[float, float, float] = PIVOT,
) -> Tensor:
    """One closed elliptic round about the frontal view [count, 25]; frame `count` would be frame 0 again."""
    phase = torch.arange(count) * (2 * math.pi / count)
    yaw, pitch = math.radians(yaw_deg) * phase.sin(), math.radians(pitch_deg) * phase.cos()
    return camera_from_angles(yaw, pitch, pivot=pivot)


def camera_rays(
    camera: Tensor,  # [B, 25]
    resolution: int,  # Rays per side of the picture.
) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [B, resolution**2, 3] of the rays through the pixel centres, x fastest."""
    assert camera.ndim == 2 and camera.shape[1] == 25, camera.shape
    cam2world = camera[:, :16].view(-1, 4, 4)
    fx, skew, cx, _, fy, cy = camera[:, 16:22, None].unbind(1)  # [B, 1] each

    centres = (torch.arange(resolution, dtype=camera.dtype, device=camera.device) + 0.5) / resolution
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    y = (v.flatten() - cy) / fy  # [B, N], the point where depth is 1
    x = (u.flatten() - cx - skew * y) / fx
    points = torch.stack([x, y, torch.ones_like(x), torch.ones_like(x)], dim=-1)  # [B, N, 4]
    # To the world and back to a direction. Turning the points alone would be shorter, but this is how EG3D rounds, and
    # where planes are steep a ray that leaves by 1e-7 ends in another colour.
    with torch.autocast(camera.device.type, enabled=False):  # Half precision would miss by several pixels.
        points = (cam2world @ points.transpose(1, 2)).transpose(1, 2)[..., :3]
    origins = cam2world[:, None, :3, 3].expand_as(points)
    return origins, F.normalize(points - origins, dim=-1)
