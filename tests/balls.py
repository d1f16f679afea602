"""Heads that are balls: a data set in the layout of `train.heads render` whose truth is known in closed form."""

import numpy as np

from preim3d.camera import camera_from_angles
from train.heads.dataset import FRONT_VIEWS, ROUND_VIEWS
from train.heads.sampler import Z_DIM
from train.model.field_batches import Pinhole


TINY_GENERATOR = {
    "w_dim": 16, "mapping_layers": 2, "c_dim": 0, "plane_resolution": 16, "plane_channels": 8, "channel_base": 256,
    "channel_max": 16, "mean_planes": True, "decoder_hidden": 16, "image_resolution": 32, "ray_resolution": 16,
    "superresolution_input": 16, "superresolution_blocks": [{"in": 8, "out": 8, "up": True}],
    "superresolution_clamp": None, "box_warp": 0.8, "ray_start": 2.28, "ray_end": 3.08, "coarse_samples": 6,
    "fine_samples": 6, "plane_axes": "fixed", "background": 0.82,
}  # fmt: skip
SIZE, BALL = 32, 0.2  # pixels, and the radius of the ball that stands in for every head


def make_balls(folder):
    """Red balls of known depth, seen from about the front."""
    heads, views = 6, FRONT_VIEWS + ROUND_VIEWS
    rng = np.random.default_rng(0)
    images = np.zeros((heads, views, SIZE, SIZE, 4), np.uint8)
    depth = np.zeros((heads, views, SIZE, SIZE), np.float16)
    cameras = np.zeros((heads, views, 25), np.float32)
    for head in range(heads):
        for view in range(views):
            cameras[head, view] = camera_from_angles(*rng.uniform(-0.5, 0.5, 2))
            camera = Pinhole(cameras[head, view])
            v, u = np.mgrid[0:SIZE, 0:SIZE].reshape(2, -1)
            rays = camera.directions((u + 0.5) / SIZE, (v + 0.5) / SIZE)
            b = rays @ camera.origin
            hit = b**2 - camera.origin @ camera.origin + BALL**2
            distance = np.where(hit > 0, -b - np.sqrt(np.maximum(hit, 0)), 0)
            depth[head, view] = (distance * (rays @ camera.forward)).reshape(SIZE, SIZE)
            images[head, view, ..., 0] = 200
            images[head, view, ..., 3] = 255 * (hit > 0).reshape(SIZE, SIZE)
    for name, array in {"images": images, "depth": depth, "cameras": cameras, "done": np.ones(heads, np.uint8),
                        "photos": images, "photo_cameras": cameras,
                        "photo_points": np.zeros((heads, views, 5, 2), np.float32)}.items():  # fmt: skip
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "heads.npz", z=np.zeros((heads, Z_DIM), np.float32),
             features=rng.standard_normal((heads, 5)).astype(np.float32),
             attributes=np.zeros((heads, 2), np.float32), attribute_names=np.array(["Male", "Young"]),
             seed=0)  # fmt: skip
    return folder
