"""A closed surface -> the same one cut open and laid out flat (by xatlas), a picture of its colours, a GLB of both.

A texture coordinate is [0, 1] to the right and upwards, as trimesh has it; row 0 of a picture is its top."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import trimesh
import xatlas
from PIL import Image
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree


PADDING_PX = 4  # between charts: as far as a viewer that shrinks the picture fourfold mixes neighbours
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963  # what glTF calls a buffer of vertices, and one of indices
TRIANGLES_PER_CALL = 2**11  # some 100 pixels each: their candidates take 50 MB


class Flat(NamedTuple):
    """A surface laid out: where two charts meet, a vertex is there twice."""

    origins: np.ndarray  # [V'] which vertex of the surface each one is
    triangles: np.ndarray  # [F, 3]
    uv: np.ndarray  # [V', 2]


def unwrap(vertices: np.ndarray, triangles: np.ndarray, size_px: int) -> Flat:
    """Charts of little distortion, packed into one picture. Takes a second for 10,000 triangles, five for 20,000."""
    atlas, pack = xatlas.Atlas(), xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = size_px, PADDING_PX, True
    atlas.add_mesh(vertices.astype(np.float32), triangles.astype(np.uint32))
    atlas.generate(pack_options=pack)
    origins, triangles, uv = atlas[0]
    return Flat(origins.astype(np.int64), triangles.astype(np.int64), uv)


def bake(
    flat: Flat,
    vertices: np.ndarray,  # [V, 3] of the surface that is laid out
    exact: np.ndarray,  # [E, 3] points of the surface that it stands for,
    normals: np.ndarray,  # [E, 3] and the normals there
    color: Callable[[np.ndarray, np.ndarray], np.ndarray],  # points, normals [N, 3] -> sRGB [N, 3] in [0, 1]
    size_px: int,
) -> np.ndarray:
    """The picture [size, size, 3] uint8. Each pixel has the colour of the exact surface's nearest place: a large
    triangle lies beside it. Between the charts, that of the nearest pixel of one."""
    picture = np.zeros((size_px, size_px, 3), np.uint8)
    empty = np.ones((size_px, size_px), bool)
    tree = KDTree(exact)
    corners = vertices[flat.origins]
    for row, column, triangle, weights in covered(flat, size_px):
        points = np.einsum("nk,nkc->nc", weights, corners[flat.triangles[triangle]])
        nearest = tree.query(points)[1]
        normal = normals[nearest]
        points -= ((points - exact[nearest]) * normal).sum(1, keepdims=True) * normal  # onto the plane that touches it
        picture[row, column] = np.round(255 * np.clip(color(points, normal), 0, 1))
        empty[row, column] = False
    nearest = distance_transform_edt(empty, return_distances=False, return_indices=True)
    return picture[tuple(nearest)]


def covered(flat: Flat, size_px: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The pixels whose middles lie in a triangle: rows [N], columns [N], triangles [N], weights of the corners [N, 3];
    some triangles at a time."""
    places = (flat.uv * [1, -1] + [0, 1]) * size_px - 0.5  # [V', 2] column and row
    for start in range(0, len(flat.triangles), TRIANGLES_PER_CALL):
        corners = places[flat.triangles[start : start + TRIANGLES_PER_CALL]]  # [T, 3, 2]
        first = np.ceil(corners.min(1)).astype(int).clip(0, size_px - 1)
        last = np.floor(corners.max(1)).astype(int).clip(0, size_px - 1)
        wide, high = (last - first + 1).clip(0).T
        triangle = np.arange(len(corners)).repeat(wide * high)
        count = np.arange(len(triangle)) - (np.cumsum(wide * high) - wide * high)[triangle]
        column, row = first[triangle, 0] + count % wide[triangle], first[triangle, 1] + count // wide[triangle]
        a, b, c = corners[triangle].transpose(1, 0, 2)
        at = np.stack([column, row], 1)
        areas = np.stack([cross(b - at, c - at), cross(c - at, a - at), cross(a - at, b - at)], 1)
        whole = areas.sum(1, keepdims=True)
        inside = ((areas * np.sign(whole) >= 0).all(1)) & (whole[:, 0] != 0)
        yield row[inside], column[inside], start + triangle[inside], (areas / np.where(whole == 0, 1, whole))[inside]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Twice the signed areas [N] between vectors [N, 2]."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def textured_glb(
    vertices: np.ndarray,  # [V, 3]
    triangles: np.ndarray,  # [F, 3]
    normals: np.ndarray,  # [V, 3]
    uv: np.ndarray,  # [V, 2]
    picture: np.ndarray,  # [S, S, 3] uint8 sRGB
    extras: dict | None = None,
) -> bytes:
    """glTF 2.0 binary: one mesh under a picture that ignores the light."""
    # Where KHR_materials_unlit is not known, a matte surface: without the factors it would be polished metal.
    material = trimesh.visual.material.PBRMaterial(
        name="skin and hair", baseColorTexture=Image.fromarray(picture), metallicFactor=0, roughnessFactor=1
    )
    surface = trimesh.Trimesh(
        vertices,
        triangles,
        vertex_normals=normals,
        visual=trimesh.visual.TextureVisuals(uv, material=material),
        process=False,  # it would merge vertices
    )

    def finish(document: dict) -> None:
        document["asset"] = {"version": "2.0", "generator": "preim3d", **({"extras": extras} if extras else {})}
        document["extensionsUsed"] = ["KHR_materials_unlit"]
        document["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
        (primitive,) = document["meshes"][0]["primitives"]
        for accessor in primitive["attributes"].values():
            document["bufferViews"][document["accessors"][accessor]["bufferView"]]["target"] = ARRAY_BUFFER
        indices = document["accessors"][primitive["indices"]]["bufferView"]
        document["bufferViews"][indices]["target"] = ELEMENT_ARRAY_BUFFER

    scene = trimesh.Scene({"head": surface})
    return trimesh.exchange.gltf.export_glb(scene, include_normals=True, tree_postprocessor=finish)
