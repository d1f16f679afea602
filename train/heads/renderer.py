"""HeadMesh + camera -> RGBA, depth and the five points, in the EG3D camera convention; dozens of views a second."""

import math

import numpy as np

from train.heads import shading
from train.heads.geometry import HeadBuilder, HeadMesh
from train.heads.sampler import Light, Person


OCCLUSION_DIRECTIONS, OCCLUSION_SIZE, OCCLUSION_BIAS = 40, 112, 0.018
SHADOW_SIZE = 320
SUPERSAMPLING = 2  # per axis

# How much of the scalp under each hair style is covered by hair that grows close to it.
SCALP_COVER = {"bald": 0.1, "buzz": 0.75, "afro01": 0.95}
OTHER_SCALP_COVER = 0.9

SCLERA, MOUTH, TEETH = (0.72, 0.69, 0.67), (0.20, 0.045, 0.04), (0.75, 0.70, 0.60)  # linear RGB


class RenderedHead:
    """One person's head, ready to be seen from anywhere. Geometry and occlusion are worked out once."""

    def __init__(self, person: Person, builder: HeadBuilder):
        self.person = person
        self.mesh: HeadMesh = builder.build(person)
        self.normals = np.zeros_like(self.mesh.vertices)
        shading.vertex_normals(self.mesh.vertices, self.mesh.faces, self.normals)
        self.openness = self._sky_openness()

    def view(self, camera: np.ndarray, size: int, light: Light) -> tuple[np.ndarray, np.ndarray]:
        """RGBA [size, size, 4] uint8, colour not premultiplied, and depth [size, size] along the axis, 0: nothing.

        `camera` [25] as in `preim3d.camera`.
        """
        fine = size * SUPERSAMPLING
        nearness, faces, barycentric = _buffers(fine)
        shading.rasterise(
            project(self.mesh.vertices, camera, fine),
            self.mesh.vertices,
            self.mesh.faces,
            nearness,
            faces,
            barycentric,
        )
        shadow_map, shadow_axes = (
            self._shadow(light) if light.casts_shadow else (np.zeros((0, 0), np.float32), np.eye(3))
        )
        rgba = np.zeros((fine, fine, 4), np.float32)
        palette, amounts = _paint_box(self.person, light)
        mesh = self.mesh
        shading.shade(faces, barycentric, mesh.faces, mesh.material, mesh.vertices, self.normals, mesh.rest,
                      mesh.masks, self.openness, shadow_map, shadow_axes, light.direction, palette,
                      amounts, rgba)  # fmt: skip
        rgba[..., :3] *= rgba[..., 3:]
        rgba = rgba.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 4).mean((1, 3))
        rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-6)
        # The nearest of a pixel's samples: an average would lie between head and background.
        depth = nearness.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).max((1, 3))
        return (rgba * 255 + 0.5).clip(0, 255).astype(np.uint8), np.where(
            depth > 0, 1 / np.maximum(depth, 1e-6), 0
        ).astype(np.float32)

    def points_px(self, camera: np.ndarray, size: int) -> np.ndarray:
        """The five points [5, 2] in pixels: eye centres (image left first), nose tip, mouth corners."""
        return project(self.mesh.points, camera, size)[:, :2]

    def _sky_openness(self) -> np.ndarray:
        """Share of the sky in [0, 1] that each vertex sees (ambient occlusion)."""
        seen, total = np.zeros(len(self.normals), np.float32), np.full(len(self.normals), 1e-3, np.float32)
        nearness, faces, barycentric = _buffers(OCCLUSION_SIZE)
        for direction in _sky_directions():
            screen, _ = _seen_from_afar(self.mesh.vertices, direction, OCCLUSION_SIZE)
            shading.rasterise(screen, self.mesh.vertices, self.mesh.faces, nearness, faces, barycentric)
            shading.count_visible(self.normals, screen, nearness, direction, OCCLUSION_BIAS, seen, total)
        return seen / total

    def _shadow(self, light: Light):
        screen, axes = _seen_from_afar(self.mesh.vertices, light.direction, SHADOW_SIZE)
        nearness, faces, barycentric = _buffers(SHADOW_SIZE)
        shading.rasterise(screen, self.mesh.vertices, self.mesh.faces, nearness, faces, barycentric)
        return nearness, axes


def project(points: np.ndarray, camera: np.ndarray, size: int) -> np.ndarray:
    """World points [N, 3] -> [N, 3]: x, y in pixels of a size x size picture and 1 / depth."""
    camera = np.asarray(camera, np.float64)
    cam2world, intrinsics = camera[:16].reshape(4, 4), camera[16:].reshape(3, 3)
    seen = (points - cam2world[:3, 3]) @ cam2world[:3, :3]
    depth = seen[:, 2:]
    pixels = size * (seen[:, :2] / depth * [intrinsics[0, 0], intrinsics[1, 1]] + intrinsics[:2, 2])
    return np.concatenate([pixels, 1 / depth], 1).astype(np.float32)


def _buffers(size):
    return np.zeros((size, size), np.float32), np.zeros((size, size), np.int32), np.zeros((size, size, 2), np.float32)


def _seen_from_afar(vertices, direction, size):
    """Parallel projection along `direction`: [V, 3] screen x, y and nearness, and the axes [3, 3]."""
    up = (0, 1, 0) if abs(direction[1]) < 0.95 else (1, 0, 0)
    x = np.cross(up, direction)
    x /= np.linalg.norm(x)
    axes = np.stack([x, np.cross(direction, x), direction]).astype(np.float32)
    seen, texel = vertices @ axes.T, size / (2 * shading.SHADOW_HALF_WIDTH)
    # + 2 keeps nearness positive (0 means nothing); that the rasteriser then corrects a perspective is harmless here.
    return np.stack([size / 2 + seen[:, 0] * texel, size / 2 - seen[:, 1] * texel, seen[:, 2] + 2], 1).astype(
        np.float32
    ), axes


def _sky_directions():
    """Even directions (golden spiral), without the ones from straight below."""
    k = np.arange(OCCLUSION_DIRECTIONS)
    y, turn = 1 - 2 * (k + 0.5) / OCCLUSION_DIRECTIONS, math.pi * (3 - math.sqrt(5)) * k
    directions = np.stack([np.cos(turn) * np.sqrt(1 - y**2), y, np.sin(turn) * np.sqrt(1 - y**2)], 1)
    return directions[y > -0.75]


def _paint_box(person: Person, light: Light):
    """The palette (linear RGB) and the amounts that the shader reads."""
    palette, amounts = np.zeros((shading.PALETTE, 3)), np.zeros(shading.AMOUNTS)
    for row, color in {
        shading.C_SKIN: person.skin, shading.C_LIP: person.lip, shading.C_EYESHADOW: person.eyeshadow,
        shading.C_HAIR: person.hair,
        shading.C_BROW: person.hair * 0.75 * 0.75 + person.skin * 0.35 * 0.25,
        shading.C_BEARD: person.hair * 0.8 + 0.02,
        shading.C_SHIRT: person.shirt, shading.C_IRIS: person.iris, shading.C_HAT: person.hat_color,
        shading.C_FRAME: person.frame_color,
    }.items():  # fmt: skip
        palette[row] = np.clip(color, 0, 1) ** 2.2
    palette[shading.C_SCLERA], palette[shading.C_MOUTH], palette[shading.C_TEETH] = SCLERA, MOUTH, TEETH
    palette[shading.C_KEY], palette[shading.C_AMBIENT] = light.key, light.ambient
    amounts[:] = (person.rosy, person.freckles, person.wrinkles, person.makeup, person.lipstick,
                  SCALP_COVER.get(person.hair_name, OTHER_SCALP_COVER), person.brow_thickness, person.brow_density,
                  *person.beard, light.exposure)  # fmt: skip
    return palette, amounts
