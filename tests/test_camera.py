import math

import pytest
import torch

from preim3d.camera import (
    PITCHES_DEG,
    PIVOT,
    YAWS_DEG,
    angles_from_camera,
    camera_from_angles,
    camera_rays,
    grid_cameras,
    orbit_cameras,
)


def pose(camera):
    return camera[..., :16].unflatten(-1, (4, 4))


def test_the_frontal_camera_is_on_the_z_axis_and_upright():
    camera = camera_from_angles(0.0, 0.0)
    expected = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]])
    torch.testing.assert_close(pose(camera), expected, atol=1e-6, rtol=0)
    assert camera[16:].tolist() == pytest.approx([4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1])


def test_positive_yaw_is_to_plus_x_and_positive_pitch_is_below():
    assert camera_from_angles(0.3, 0.0)[3] > 0
    assert camera_from_angles(0.0, 0.3)[7] < 0


def test_elevation_is_the_arcsine_of_two_pitch_over_pi():
    camera = camera_from_angles(0.0, math.radians(20))
    assert math.degrees(math.asin(-camera[7] / 2.7)) == pytest.approx(12.84, abs=0.005)


def test_angles_come_back_from_the_camera():
    yaw, pitch = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    camera = camera_from_angles(yaw, pitch, roll=0.2, radius=3.0)
    for found, given in zip(angles_from_camera(camera), (yaw, pitch)):
        torch.testing.assert_close(found, given, atol=1e-5, rtol=0)


def test_poses_are_rotations_that_look_at_the_pivot():
    camera = camera_from_angles(torch.linspace(-1, 1, 7)[:, None], torch.linspace(-0.5, 0.5, 5), roll=0.3)
    assert camera.shape == (7, 5, 25)
    rotation, origin = pose(camera)[..., :3, :3], pose(camera)[..., :3, 3]
    identity = torch.eye(3).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(7, 5), atol=1e-5, rtol=0)
    towards = torch.nn.functional.normalize(torch.tensor(PIVOT) - origin, dim=-1)
    torch.testing.assert_close(rotation[..., 2], towards, atol=1e-5, rtol=0)


def test_a_positive_roll_turns_the_picture_counter_clockwise():
    # A point to the viewer's right of the pivot must rise in the picture, where y is down.
    world2cam = torch.linalg.inv(pose(camera_from_angles(0.0, 0.0, roll=0.1)))
    point = world2cam @ torch.tensor([1.0, 0, 0.2, 1])
    assert point[1] < 0


def test_the_grid_goes_from_above_to_below_and_left_to_right():
    yaw, pitch = (angle.rad2deg().view(3, 3) for angle in angles_from_camera(grid_cameras()))
    torch.testing.assert_close(yaw, torch.tensor([YAWS_DEG] * 3).float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(pitch.T, torch.tensor([PITCHES_DEG] * 3).float(), atol=1e-3, rtol=0)
    assert grid_cameras()[0, 7] > 0 > grid_cameras()[-1, 7]  # heights: the first row is seen from above


def test_the_orbit_is_closed_and_evenly_paced():
    yaw, pitch = angles_from_camera(orbit_cameras(8, yaw_deg=30, pitch_deg=10))
    assert yaw.rad2deg().tolist() == pytest.approx([30 * math.sin(k * math.pi / 4) for k in range(8)], abs=1e-3)
    assert pitch.rad2deg().tolist() == pytest.approx([10 * math.cos(k * math.pi / 4) for k in range(8)], abs=1e-3)


def test_rays_run_through_the_pixel_centres_with_x_fastest():
    camera = camera_from_angles(0.0, 0.0)[None]
    origins, directions = camera_rays(camera, 4)
    assert origins.shape == directions.shape == (1, 16, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, 16))
    at_depth_1 = directions / directions[..., 2:].abs()
    # Pixel centres are at 1/8, 3/8, 5/8 and 7/8 of the picture; world x follows the picture's, world y is up.
    torch.testing.assert_close(at_depth_1[0, :4, 0], (torch.tensor([1, 3, 5, 7]) / 8 - 0.5) / 4.2647)
    torch.testing.assert_close(at_depth_1[0, ::4, 1], (0.5 - torch.tensor([1, 3, 5, 7]) / 8) / 4.2647)


def test_rays_keep_full_precision_within_autocast():
    cameras = orbit_cameras(3)
    with torch.autocast("cpu", torch.bfloat16):
        _, directions = camera_rays(cameras, 4)
    assert torch.equal(directions, camera_rays(cameras, 4)[1])


def test_rays_of_a_skewed_camera_project_back_to_their_pixels():
    camera = camera_from_angles(0.4, -0.2, roll=0.1)[None].clone()
    camera[0, 16:] = torch.tensor([4.0, 0.3, 0.45, 0, 4.5, 0.55, 0, 0, 1])
    origins, directions = camera_rays(camera, 8)
    points = origins + 2.5 * directions
    local = (points - pose(camera)[:, None, :3, 3]) @ pose(camera)[0, :3, :3]
    pixels = local @ camera[0, 16:].view(3, 3).T
    pixels = pixels[0, :, :2] / pixels[0, :, 2:] * 8 - 0.5
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"), dim=-1).view(-1, 2)
    torch.testing.assert_close(pixels, grid, atol=1e-4, rtol=0)


def test_numbers_go_where_the_tensors_are():
    there = torch.zeros(2, device="meta")  # as on a GPU, a tensor on the CPU would not mix with it
    assert camera_from_angles(there, 0.1, radius=2.7).device.type == "meta"
    assert camera_from_angles(0.1, 0.2, focal=there).shape == (2, 25)
