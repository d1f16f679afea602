"""Density and colour of a field -> closed coloured surface (`Mesh`) -> the bytes of a GLB, OBJ or PLY file.

World as in `camera`: y up, the face looks to +z, as glTF wants it; files are in metres. Knows nothing of networks: the
field is two functions, called for blocks of points, so that memory stays bounded:
    density(axis)(index) -> [N] raw density, inside where it is above `level`, at points of a grid: coordinates [n]
                            (float32 tensor on the CPU), the same in x, y and z, and places on the axis [N, 3] (int64)
    color(points) -> [N, 3] sRGB in [0, 1] of points [N, 3] (float32 tensor on the CPU)
Both may answer with a tensor on any device, or with a NumPy array.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

import fast_simplification
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from preim3d.texture import bake, textured_glb, unwrap


BLOCK_CELLS = 4  # Side of a block of the grid: the coarse grid has one point every so many cells.
CUT_STEEPNESS = 3000.0  # Raw density per side of the box, across a cut: far steeper than the field itself.
# Eyes are .150 apart on reconstructed heads, and .063 m on people's (Dodgson 2004). A head is then .26 m high.
METRES = 0.42
FACES = 50_000
TEXTURED_FACES = 10_000  # To lay out more takes ever longer, and what is small is in the texture.
TEXTURE_PX = 1024  # A pixel is half a millimetre wide.
POINTS_PER_CALL = 2**16  # Points that one call of the field gets: 64 Ki points of 32 features are 8 MB.


@dataclass
class Mesh:
    """A closed triangle mesh with a colour per vertex; or with a texture, and then cut open where its charts meet."""

    vertices: np.ndarray  # [V, 3] float32, world units
    faces: np.ndarray  # [F, 3] int32, counter-clockwise seen from outside
    normals: np.ndarray  # [V, 3] float32, unit length, outwards
    colors: np.ndarray  # [V, 3] float32, sRGB in [0, 1]
    uv: np.ndarray | None = None  # [V, 2] float32 in [0, 1], to the right and upwards
    texture: np.ndarray | None = None  # [S, S, 3] uint8, sRGB, the top row first


@torch.no_grad()
def extract_mesh(
    density: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]],  # [n] -> ([N, 3] -> [N])
    color: Callable[[torch.Tensor], torch.Tensor],  # [N, 3] -> [N, 3] sRGB in [0, 1]
    *,
    box_size: float,  # Side of the cube around the origin where the field is known, in world units.
    level: float,  # Raw density at the surface. EG3D's reference takes 10.
    resolution: int = 128,  # Cells along a side, a multiple of BLOCK_CELLS.
    faces: int = FACES,  # Triangles at most.
    bust: tuple[float, float] | None = None,  # Radius and bottom of the upright cylinder that the surface is cut to.
    texture_px: int | None = None,  # Side of a texture; None: there is none.
) -> Mesh:
    """The outer surface of the field: its largest closed piece, in about `faces` triangles, with a colour per vertex.

    Raises:
        ValueError: when an argument is out of its range, or when the field has no surface at `level`.
    """
    if resolution % BLOCK_CELLS or not 16 <= resolution <= 512:
        raise ValueError(f"`resolution` is {resolution}, but must be a multiple of {BLOCK_CELLS} from 16 to 512.")
    if faces < 100:
        raise ValueError(f"`faces` is {faces}, but a head needs at least 100 triangles.")
    if texture_px is not None and not 64 <= texture_px <= 8192:
        raise ValueError(f"`texture_px` is {texture_px}, but must be from 64 to 8192.")
    if bust is not None:
        density = cut_to_bust(density, *bust, level=level, slope=box_size * CUT_STEEPNESS)
    values = density_grid(density, box_size, level, resolution)
    vertices, triangles = isosurface(values, box_size, level)
    vertices, triangles = exact = largest_component(vertices, triangles)
    if len(triangles) > faces:
        vertices, triangles = fast_simplification.simplify(vertices, triangles, target_count=faces)
        vertices, triangles = largest_component(*without_pinches(vertices, triangles))

    def color_at(points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        # A ray from outside gathers its colour just below the surface; on the surface itself it is half that of the
        # air. Points are kept in the box, sides included: outside the field has no colour.
        below = np.clip(points - normals * (0.5 * box_size / resolution), -box_size / 2, box_size / 2)
        return in_blocks(color, below.astype(np.float32)).clip(0, 1)

    normals = vertex_normals(vertices, triangles)
    mesh = Mesh(
        vertices.astype(np.float32),
        triangles.astype(np.int32),
        normals.astype(np.float32),
        color_at(vertices, normals),
    )
    if texture_px is None:
        return mesh
    flat = unwrap(vertices, triangles, texture_px)
    return Mesh(
        mesh.vertices[flat.origins],
        flat.triangles.astype(np.int32),
        mesh.normals[flat.origins],
        mesh.colors[flat.origins],
        flat.uv,
        bake(flat, vertices, exact[0], vertex_normals(*exact), color_at, texture_px),
    )


# ----------------------------------------------------------------------------
# The field on a grid.


def density_grid(density, box_size: float, level: float, resolution: int) -> np.ndarray:
    """Density at the grid's points [n, n, n] (x, y, z), n = resolution + 1, exact wherever the surface is near.

    First every BLOCK_CELLS-th point, then all points of the blocks that the surface enters, followed from block to
    block: every piece of the surface that shows on the coarse grid comes out as if all points had been read, for about
    a quarter of the work. The other blocks keep a corner's value, which lies on the right side of `level`.
    """
    n = resolution + 1
    density = density(torch.linspace(-box_size / 2, box_size / 2, n))
    coarse = in_blocks(density, BLOCK_CELLS * grid_points(resolution // BLOCK_CELLS + 1))
    if coarse.max() <= level or coarse.min() > level:
        raise ValueError(
            f"The head has no surface at density {level:g}: its field goes from {coarse.min():.3g} to"
            f" {coarse.max():.3g}; choose a `level` in between."
        )

    coarse = coarse.reshape(3 * [resolution // BLOCK_CELLS + 1])
    values = coarse.repeat(BLOCK_CELLS, 0).repeat(BLOCK_CELLS, 1).repeat(BLOCK_CELLS, 2)[:n, :n, :n].copy()
    read = np.zeros_like(values, dtype=bool)  # [n, n, n] points whose density is exact
    refined = np.zeros(3 * [resolution // BLOCK_CELLS], dtype=bool)  # blocks whose points all are
    border = np.ones_like(read)  # [n, n, n] points with the outside next to them
    border[1:-1, 1:-1, 1:-1] = False
    while True:
        inside = values > level
        entered = block_any(inside) & block_any(~inside | border) & ~refined
        if not entered.any():
            return values
        refined |= entered
        points = np.argwhere(points_of_blocks(entered) & ~read)
        values[tuple(points.T)] = in_blocks(density, points)
        read[tuple(points.T)] = True


def cut_to_bust(density, radius: float, bottom: float, level: float, slope: float):
    """The same field, but below `level` outside of the cylinder: there the surface ends in a smooth and closed cut."""

    def cut(axis: torch.Tensor):
        at = density(axis)
        rim = radius - torch.hypot(axis[:, None], axis[None])  # [x, z] how far inside

        def limited(index: torch.Tensor) -> torch.Tensor:
            x, y, z = index.unbind(-1)
            inside = torch.minimum(rim[x, z], axis[y] - bottom)
            return torch.minimum(torch.as_tensor(at(index)).cpu().float(), level + slope * inside)

        return limited

    return cut


def grid_points(n: int) -> np.ndarray:
    """The places [n^3, 3] of a cubic grid's points, z fastest."""
    return np.indices(3 * (n,)).reshape(3, -1).T


def block_any(points: np.ndarray) -> np.ndarray:
    """[n, n, n] bool at points -> [b, b, b] at blocks: is it true of any of a block's points, all faces included?"""
    for axis in range(3):
        points = np.moveaxis(points, axis, 0)
        starts = points[:-1].reshape(-1, BLOCK_CELLS, *points.shape[1:]).any(1)
        points = np.moveaxis(starts | points[BLOCK_CELLS::BLOCK_CELLS], 0, axis)
    return points


def points_of_blocks(blocks: np.ndarray) -> np.ndarray:
    """[b, b, b] bool at blocks -> [n, n, n] at points: does it belong to any such block, its faces included?"""
    for axis in range(3):
        blocks = np.moveaxis(blocks, axis, 0)
        points = np.concatenate([blocks.repeat(BLOCK_CELLS, 0), np.zeros_like(blocks[:1])])
        points[BLOCK_CELLS::BLOCK_CELLS] |= blocks
        blocks = np.moveaxis(points, 0, axis)
    return blocks


def in_blocks(field, points: np.ndarray) -> np.ndarray:
    """`field` at points [N, 3], POINTS_PER_CALL at a time -> float32 [N] or [N, C]."""
    parts = torch.from_numpy(np.ascontiguousarray(points)).split(POINTS_PER_CALL)
    return np.concatenate([torch.as_tensor(field(part)).float().cpu().numpy() for part in parts])


# ----------------------------------------------------------------------------
# The surface.


def isosurface(values: np.ndarray, box_size: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Marching cubes (Lewiner) -> vertices [V, 3], triangles [F, 3], counter-clockwise from outside, closed.

    A layer of outside is laid around the grid, so that the surface closes where the volume ends."""
    assert np.isfinite(values).all(), "the field is not finite"
    # A point exactly at the level would give triangles without area, and with them cracks.
    values = np.where(values == level, np.nextafter(np.float32(level), np.float32(-np.inf)), values)
    # So far outside that the closing surface lies in the last layer, rather than between it and the one around it.
    outside = level - 1e4 * (values.max() - values.min())
    cell = box_size / (len(values) - 1)
    vertices, triangles, _, _ = marching_cubes(
        np.pad(values, 1, constant_values=outside),
        level,
        spacing=3 * (cell,),
        gradient_direction="ascent",  # skimage's word for: the inside is where the values are higher
    )
    return np.clip(vertices - (box_size / 2 + cell), -box_size / 2, box_size / 2), triangles


def largest_component(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected piece that encloses the largest volume: hollows inside enclose a negative one."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges), dtype=bool), edges.T), shape=2 * (len(vertices),))
    _, component = connected_components(graph, directed=False)
    volumes = np.bincount(component[triangles[:, 0]], tetrahedra(vertices, triangles))
    triangles = triangles[component[triangles[:, 0]] == volumes.argmax()]
    used, triangles = np.unique(triangles, return_inverse=True)
    return vertices[used], triangles.reshape(-1, 3)


def without_pinches(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same closed surface with exactly two triangles at each edge.

    Decimation presses thin places flat. Triangles that then lie back to back go, and where two sheets share an edge,
    one of them gets a vertex of its own in the middle of it.
    """
    triangles = triangles.astype(np.int64)
    while True:
        triangles = triangles[~back_to_back(triangles, len(vertices))]
        # Each triangle's sides (number 3 * triangle + corner) with the edge they lie on; of a closed surface, as many
        # run up it, from the lower vertex number to the higher, as down.
        starts, ends = triangles.ravel(), np.roll(triangles, -1, axis=1).ravel()
        edges = np.minimum(starts, ends) * len(vertices) + np.maximum(starts, ends)
        up, down = np.flatnonzero(starts < ends), np.flatnonzero(starts > ends)
        up, down = up[np.argsort(edges[up], kind="stable")], down[np.argsort(edges[down], kind="stable")]
        assert np.array_equal(edges[up], edges[down]), "the surface is not closed"
        pinched = 1 + np.flatnonzero(np.diff(edges[up]) == 0)
        if len(pinched) == 0:
            return vertices, triangles

        middles, halves, changed = [], [], set()
        for pair in zip(up[pinched].tolist(), down[pinched].tolist()):
            if changed.isdisjoint(side // 3 for side in pair):  # else it is for the next round
                for triangle, corner in (divmod(side, 3) for side in pair):
                    start, end, opposite = np.roll(triangles[triangle], -corner)
                    middle = len(vertices) + len(middles)
                    triangles[triangle] = start, middle, opposite
                    halves.append((middle, end, opposite))
                    changed.add(triangle)
                middles.append((vertices[start] + vertices[end]) / 2)
        vertices = np.concatenate([vertices, middles])
        triangles = np.concatenate([triangles, halves])


def back_to_back(triangles: np.ndarray, vertices: int) -> np.ndarray:
    """Which triangles have no area, or lie on others of the opposite sense with nothing between them? [F] bool"""
    low, middle, high = np.sort(triangles, axis=1).T
    _, place = np.unique((low * vertices + middle) * vertices + high, return_inverse=True)
    first = triangles.argmin(axis=1)[:, None]
    second, third = np.take_along_axis(triangles, (first + [1, 2]) % 3, axis=1).T
    sense = np.bincount(place, np.sign(third - second))
    return (sense[place] == 0) | (low == middle) | (middle == high)


def tetrahedra(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Signed volumes [F] of the tetrahedra origin-triangle; over a closed surface they sum to the enclosed volume."""
    a, b, c = vertices[triangles].astype(np.float64).transpose(1, 0, 2)
    return (a * np.cross(b, c)).sum(-1) / 6


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3]: the mean of the adjoining triangles' normals, weighted by their areas."""
    a, b, c = vertices[triangles].astype(np.float64).transpose(1, 0, 2)
    areas = np.cross(b - a, c - a)  # [F, 3] twice the area, along the normal
    sums = np.stack(
        [
            np.bincount(triangles.ravel(), weights=areas[:, axis].repeat(3), minlength=len(vertices))
            for axis in range(3)
        ],
        axis=-1,
    )
    lengths = np.linalg.norm(sums, axis=-1, keepdims=True)
    # A vertex of triangles without area has no normal of its own; glTF wants unit length all the same.
    return np.where(lengths > 0, sums / np.maximum(lengths, 1e-30), [0.0, 0.0, 1.0])


# ----------------------------------------------------------------------------
# The files.


def mesh_bytes(mesh: Mesh, format: str = "glb", extras: dict | None = None) -> bytes:
    """The whole file, in metres: "glb", "obj" or "ply". `extras` (JSON-able) is kept in the GLB's `asset.extras`.

    Raises:
        ValueError: when the format is another, or has no place for the texture.
    """
    if mesh.texture is not None:
        if format != "glb":
            raise ValueError(f"A texture is written into a 'glb' only, not into `format` {format!r}.")
        return textured_glb(METRES * mesh.vertices, mesh.faces, mesh.normals, mesh.uv, mesh.texture, extras)
    if format == "glb":
        return glb_bytes(mesh, extras)
    if format not in ("obj", "ply"):
        raise ValueError(f"`format` is {format!r}, but a mesh can be written as 'glb', 'obj' or 'ply'.")
    import trimesh

    surface = trimesh.Trimesh(
        METRES * mesh.vertices,
        mesh.faces,
        vertex_normals=mesh.normals,
        vertex_colors=np.round(mesh.colors * 255).astype(np.uint8),
        process=False,  # it would merge vertices
    )
    exported = surface.export(file_type=format)
    return exported if isinstance(exported, bytes) else exported.encode()


def glb_bytes(mesh: Mesh, extras: dict | None = None) -> bytes:
    """glTF 2.0 binary: one mesh of positions, normals and linear colours, under a material that ignores the light.

    Our own, because trimesh's GLB has no material (polished metal by default: black in three.js), and sRGB
    colours where the standard (section 3.7.2.1) wants linear ones.
    """
    positions = np.ascontiguousarray(METRES * mesh.vertices, dtype="<f4")
    # 16 bits, as 8 linear ones are too few in the dark; a fourth number fills the stride, which must divide by 4.
    colors = np.zeros((len(mesh.colors), 4), dtype="<u2")
    colors[:, :3] = np.round(srgb_to_linear(mesh.colors) * 65535)
    # The index 65535 is kept for restarting a primitive (section 3.7.2.1).
    indices = mesh.faces.astype("<u2" if len(positions) <= 65535 else "<u4").ravel()
    parts = [positions.tobytes(), mesh.normals.astype("<f4").tobytes(), colors.tobytes(), indices.tobytes()]

    offsets = np.cumsum([0] + [len(part) for part in parts]).tolist()
    vertex, triangle = 34962, 34963  # ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER
    float32, uint16, uint32 = 5126, 5123, 5125
    views = [
        {"buffer": 0, "byteOffset": offset, "byteLength": len(part), "target": target}
        for part, offset, target in zip(parts, offsets, (vertex, vertex, vertex, triangle))
    ]
    views[2]["byteStride"] = 8
    document = {
        "asset": {"version": "2.0", "generator": "preim3d", **({"extras": extras} if extras else {})},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "head"}],
        "meshes": [
            {
                "name": "head",
                "primitives": [
                    {
                        "attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2},
                        "indices": 3,
                        "material": 0,
                    }
                ],
            }
        ],
        # Where KHR_materials_unlit is not known, a matte surface: without the factors it would be polished metal.
        "materials": [
            {
                "name": "skin and hair",
                "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": float32,
                "count": len(positions),
                "type": "VEC3",
                "min": positions.min(0).tolist(),
                "max": positions.max(0).tolist(),
            },
            {"bufferView": 1, "componentType": float32, "count": len(positions), "type": "VEC3"},
            {"bufferView": 2, "componentType": uint16, "count": len(positions), "type": "VEC3", "normalized": True},
            {
                "bufferView": 3,
                "componentType": uint16 if indices.itemsize == 2 else uint32,
                "count": len(indices),
                "type": "SCALAR",
            },
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": offsets[-1]}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = [
        (b"JSON", text + b" " * (-len(text) % 4)),
        (b"BIN\0", b"".join(parts) + b"\0" * (-offsets[-1] % 4)),
    ]
    body = b"".join(struct.pack("<I4s", len(content), kind) + content for kind, content in chunks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """Light in [0, 1] from sRGB in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
