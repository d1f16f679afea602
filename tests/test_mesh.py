"""mesh: closed forms (sphere, torus, a coloured head, a field that the box cuts), and the files as others read them.

Khronos' validator and three.js come from `npm install` in tests/gltf, the browser from the machine; a test that misses
one is skipped."""

import functools
import http.server
import io
import json
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from preim3d.mesh import (
    POINTS_PER_CALL,
    Mesh,
    density_grid,
    extract_mesh,
    grid_points,
    in_blocks,
    isosurface,
    largest_component,
    mesh_bytes,
    srgb_to_linear,
)
from preim3d.weights import BUNDLED


GLTF = Path(__file__).parent / "gltf"
BOX = 0.8
LEVEL = 10.0
SKIN, HAIR, LIPS = (0.85, 0.62, 0.5), (0.2, 0.12, 0.08), (0.8, 0.1, 0.15)


def from_distance(distance):
    """A density that is LEVEL where the signed distance (inside: positive) is 0, and rises inwards."""
    return LEVEL + 100 * distance


def on_grid(field):
    """A field of points as `extract_mesh` wants to ask for densities."""
    return lambda axis: lambda index: field(axis[index])


def sphere(points, radius=0.3, center=(0.02, 0.01, -0.03)):
    return from_distance(radius - (points - torch.tensor(center)).norm(dim=-1))


def torus(points, radius=0.25, tube=0.08):
    x, y, z = points.unbind(-1)
    return from_distance(tube - torch.hypot(torch.hypot(x, y) - radius, z))


def column(points, radius=0.2):
    """Goes through the box's top and bottom."""
    return from_distance(radius - points[:, [0, 2]].norm(dim=-1))


def head(points):
    x, y, z = points.unbind(-1)
    skull = 0.28 - torch.sqrt((x / 0.8) ** 2 + ((y - 0.03) / 1.05) ** 2 + (z / 0.9) ** 2)
    nose = 0.05 - torch.sqrt(x**2 + (y / 1.5) ** 2 + (z - 0.25) ** 2)
    neck = torch.minimum(0.11 - torch.hypot(x, z + 0.03), -y - 0.05)  # down through the floor of the box
    return from_distance(torch.stack([skull, nose, neck]).amax(0))


def head_color(points):
    x, y, z = points.unbind(-1)
    color = torch.tensor(SKIN).repeat(len(points), 1)
    color[(y > 0.12) | (z < -0.05)] = torch.tensor(HAIR)
    color[(x.abs() < 0.08) & ((y + 0.12).abs() < 0.04) & (z > 0)] = torch.tensor(LIPS)
    return color


def position_color(points):
    return points / BOX + 0.5


def surface(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


# ----------------------------------------------------------------------------
# Invariants.


def test_a_bust_is_cut_to_a_cylinder_and_closed():
    def slab(points):  # wider than the cylinder, and down through its bottom
        x, y, z = points.unbind(-1)
        return from_distance(torch.minimum(0.1 - (y + 0.3).abs(), torch.full_like(y, 0.1)))

    mesh = extract_mesh(
        on_grid(slab), position_color, box_size=BOX, level=LEVEL, resolution=64, faces=200_000, bust=(0.3, -0.33)
    )
    solid = surface(mesh)
    assert solid.is_watertight and solid.euler_number == 2
    assert solid.volume == pytest.approx(np.pi * 0.3**2 * 0.13, rel=0.04)  # its edges are bevelled
    assert np.abs(np.hypot(mesh.vertices[:, 0], mesh.vertices[:, 2]).max() - 0.3) < 0.003
    assert mesh.vertices[:, 1].min() == pytest.approx(-0.33, abs=3e-3)


@pytest.mark.parametrize(
    "field, euler, volume",
    [
        (sphere, 2, 4 / 3 * np.pi * 0.3**3),
        (torus, 0, 2 * np.pi**2 * 0.25 * 0.08**2),
        (column, 2, np.pi * 0.2**2 * BOX),
        (head, 2, None),
    ],
)
@pytest.mark.parametrize("faces", [3_000, 200_000])
def test_surface_is_closed_and_faces_outwards(field, euler, volume, faces):
    mesh = extract_mesh(on_grid(field), position_color, box_size=BOX, level=LEVEL, resolution=64, faces=faces)
    assert mesh.vertices.dtype == mesh.normals.dtype == mesh.colors.dtype == np.float32
    assert mesh.faces.dtype == np.int32 and len(mesh.faces) <= faces
    solid = surface(mesh)
    assert solid.is_watertight and solid.is_winding_consistent
    assert solid.euler_number == euler
    assert solid.volume > 0 if volume is None else solid.volume == pytest.approx(volume, rel=0.02)
    assert np.abs(mesh.vertices).max() <= BOX / 2
    # Outwards: a step along the normal leads to less density.
    assert np.allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-5)
    step = torch.from_numpy(0.01 * mesh.normals)
    inside = np.abs(mesh.vertices).max(-1) < BOX / 2 - 0.02
    points = torch.from_numpy(mesh.vertices)
    assert (field(points + step) < field(points - step)).numpy()[inside].mean() > 0.99


def test_vertices_lie_on_the_sphere_and_normals_along_its_radii():
    mesh = extract_mesh(
        on_grid(functools.partial(sphere, center=(0, 0, 0))), position_color, box_size=BOX, level=LEVEL
    )
    radii = np.linalg.norm(mesh.vertices, axis=-1, keepdims=True)
    assert np.abs(radii - 0.3).max() < 0.1 * BOX / 128
    assert ((mesh.vertices / radii) * mesh.normals).sum(-1).min() > 0.99


def test_axes_are_kept():
    """Not a cube: longest along x, shortest along z, off centre along +y."""

    def egg(points):
        return from_distance(0.3 - ((points - torch.tensor([0, 0.1, 0])) * torch.tensor([1, 1.5, 3])).norm(dim=-1))

    mesh = extract_mesh(on_grid(egg), position_color, box_size=BOX, level=LEVEL, resolution=64)
    assert np.allclose(mesh.vertices.min(0), [-0.3, -0.1, -0.1], atol=0.005)
    assert np.allclose(mesh.vertices.max(0), [0.3, 0.3, 0.1], atol=0.005)


def test_colors_are_those_of_the_field_just_below_the_surface():
    mesh = extract_mesh(on_grid(sphere), position_color, box_size=BOX, level=LEVEL, faces=5_000)
    inwards = mesh.vertices - 0.5 * BOX / 128 * mesh.normals
    assert np.allclose(mesh.colors, inwards / BOX + 0.5, atol=1e-5)

    def black_air(points):
        return torch.where(sphere(points)[:, None] > LEVEL + 0.1, torch.tensor(SKIN), torch.zeros(3))

    mesh = extract_mesh(on_grid(sphere), black_air, box_size=BOX, level=LEVEL, faces=20_000)
    assert np.allclose(mesh.colors, SKIN), "no colour of the air around it"


def test_following_the_surface_finds_what_the_whole_grid_has():
    """The slow obvious twin: the density at every point. The surface is bumpy, so blocks are entered from the side."""

    def bumpy(points):
        return head(points) + 3 * torch.sin(60 * points).prod(dim=-1)

    whole = in_blocks(on_grid(bumpy)(torch.linspace(-BOX / 2, BOX / 2, 65)), grid_points(65)).reshape(65, 65, 65)
    vertices, triangles = largest_component(*isosurface(density_grid(on_grid(bumpy), BOX, LEVEL, 64), BOX, LEVEL))
    all_vertices, all_triangles = largest_component(*isosurface(whole, BOX, LEVEL))
    assert len(vertices) == len(all_vertices)
    assert np.allclose(vertices, all_vertices, atol=1e-6) and np.array_equal(triangles, all_triangles)


def test_field_is_read_in_bounded_blocks_and_seldom():
    calls = []

    def counted(points):
        calls.append(len(points))
        return sphere(points).double()  # what it answers with is brought to float32

    extract_mesh(on_grid(counted), position_color, box_size=BOX, level=LEVEL, resolution=128)
    assert max(calls) <= POINTS_PER_CALL
    assert sum(calls) < 0.3 * 129**3


def test_a_surface_full_of_holes_stays_closed_when_decimated():
    """Noise as of a half-trained network: decimation presses its many handles flat."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 32, 32, 32)).astype(np.float32))

    def noisy(points):
        places = (points * 2 / BOX)[None, None, None]
        return head(points) + 12 * torch.nn.functional.grid_sample(noise, places, align_corners=True).flatten()

    mesh = extract_mesh(on_grid(noisy), head_color, box_size=BOX, level=LEVEL, resolution=64, faces=2_000)
    assert surface(mesh).is_watertight and surface(mesh).is_winding_consistent and surface(mesh).volume > 0
    assert len(mesh.faces) <= 2_000


def test_only_the_outermost_piece_is_kept():
    """A hollow ball with a satellite: neither the hollow's wall nor the satellite belongs to the head."""

    def three(points):
        radius = points.norm(dim=-1)
        shell = torch.minimum(0.3 - radius, radius - 0.25)
        satellite = 0.04 - (points - 0.35).norm(dim=-1)
        return from_distance(torch.maximum(shell, satellite))

    mesh = extract_mesh(on_grid(three), position_color, box_size=BOX, level=LEVEL, resolution=64)
    assert np.allclose(np.linalg.norm(mesh.vertices, axis=-1), 0.3, atol=0.01)
    assert surface(mesh).euler_number == 2


def test_numpy_fields_and_values_at_the_level():
    def ball_of_cubes(points):
        return (np.abs(points.numpy()).max(-1) < 0.2).astype(np.float64) + 9  # 9 outside, LEVEL itself inside

    with pytest.raises(ValueError):
        extract_mesh(on_grid(ball_of_cubes), position_color, box_size=BOX, level=LEVEL, resolution=32)
    mesh = extract_mesh(on_grid(ball_of_cubes), position_color, box_size=BOX, level=9.0, resolution=32)
    assert surface(mesh).is_watertight and surface(mesh).euler_number == 2


def test_the_same_field_gives_the_same_bytes():
    first, second = (extract_mesh(on_grid(head), head_color, box_size=BOX, level=LEVEL, faces=5_000) for _ in range(2))
    assert mesh_bytes(first) == mesh_bytes(second)


@pytest.mark.parametrize("density", [0.0, 20.0])
def test_a_field_without_a_surface_says_so(density):
    with pytest.raises(ValueError, match=r"no surface at density 10: .* choose a `level`"):
        extract_mesh(
            on_grid(lambda points: torch.full((len(points),), density)), position_color, box_size=BOX, level=LEVEL
        )


@pytest.mark.parametrize("mistake", [{"resolution": 130}, {"resolution": 1024}, {"faces": 3}])
def test_mistakes_are_named(mistake):
    with pytest.raises(ValueError, match=f"`{next(iter(mistake))}` is {next(iter(mistake.values()))}, but"):
        extract_mesh(on_grid(sphere), position_color, box_size=BOX, level=LEVEL, **mistake)


# ----------------------------------------------------------------------------
# Files.


@pytest.fixture(scope="module")
def head_mesh() -> Mesh:
    return extract_mesh(on_grid(head), head_color, box_size=BOX, level=LEVEL)


@pytest.fixture(scope="module")
def textured_mesh() -> Mesh:
    return extract_mesh(on_grid(head), head_color, box_size=BOX, level=LEVEL, faces=5_000, texture_px=512)


def glb_document(glb: bytes) -> dict:
    return json.loads(glb[20 : 20 + struct.unpack("<I", glb[12:16])[0]])


def test_glb_is_small_linear_and_carries_its_recipe(head_mesh):
    glb = mesh_bytes(head_mesh, "glb", extras={"strengths": {"smile": 2.0}})
    assert len(glb) < 2e6 and len(head_mesh.faces) <= 50_000
    document = glb_document(glb)
    assert document["asset"]["extras"] == {"strengths": {"smile": 2.0}}
    assert document["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0

    scene = trimesh.load(io.BytesIO(glb), file_type="glb", process=False)
    (read,) = scene.geometry.values()
    assert np.allclose(read.vertices, 0.42 * head_mesh.vertices, atol=1e-7)
    assert np.array_equal(read.faces, head_mesh.faces)
    view = document["bufferViews"][2]
    start = 28 + struct.unpack("<I", glb[12:16])[0] + view["byteOffset"]
    colors = np.frombuffer(glb, "<u2", view["byteLength"] // 2, start).reshape(-1, 4)[:, :3]
    assert np.allclose(colors / 65535, srgb_to_linear(head_mesh.colors), atol=1e-5)


def test_srgb_to_linear_at_known_points():
    assert np.allclose(srgb_to_linear(np.array([0, 0.04045, 0.5, 1])), [0, 0.0031308, 0.2140411, 1], atol=1e-6)


@pytest.mark.parametrize("format", ["obj", "ply"])
def test_obj_and_ply_come_back(head_mesh, format):
    read = trimesh.load(io.BytesIO(mesh_bytes(head_mesh, format)), file_type=format, process=False)
    assert np.allclose(read.vertices, 0.42 * head_mesh.vertices, atol=1e-6) and np.array_equal(
        read.faces, head_mesh.faces
    )
    assert np.allclose(read.visual.vertex_colors[:, :3] / 255, head_mesh.colors, atol=1 / 255)
    assert (b"vn " if format == "obj" else b"float nx") in mesh_bytes(head_mesh, format)


def test_a_texture_has_the_colors_of_the_field(textured_mesh):
    """Read at random places of the surface, as a viewer reads it: the colour just below them."""
    mesh = textured_mesh
    assert mesh.texture.shape == (512, 512, 3) and mesh.texture.dtype == np.uint8
    assert mesh.uv.shape == (len(mesh.vertices), 2) and 0 <= mesh.uv.min() and mesh.uv.max() <= 1
    assert len(mesh.faces) <= 5_000
    read = trimesh.load(io.BytesIO(mesh_bytes(mesh, "glb")), file_type="glb", force="mesh", process=False)
    assert np.allclose(read.extents, 0.42 * np.ptp(mesh.vertices, axis=0), atol=1e-6)
    places, faces = trimesh.sample.sample_surface(read, 5_000, seed=0)
    weights = trimesh.triangles.points_to_barycentric(read.triangles[faces], places)
    uv = np.einsum("nk,nkc->nc", weights, read.visual.uv[read.faces[faces]])
    found = read.visual.material.baseColorTexture.convert("RGB")
    assert found.size == (512, 512)
    rows, columns = ((np.array([1 - uv[:, 1], uv[:, 0]]) * 512).astype(int)).clip(0, 511)
    found = np.asarray(found)[rows, columns] / 255
    points = places / 0.42 - 0.5 * BOX / 128 * read.face_normals[faces]
    wanted = head_color(torch.from_numpy(points)).numpy()
    # Nearly everywhere: this field's colours change at once, and a pixel or a triangle may lie on either side.
    assert (np.abs(found - wanted).max(1) < 0.02).mean() > 0.96


def test_a_texture_follows_the_surface_not_the_triangles():
    """A ball of very few triangles, whose sides lie far below the surface: each pixel has the surface's colour."""
    ball = functools.partial(sphere, center=(0, 0, 0))

    def depth_color(points):  # tells the distance to the middle
        return (points.norm(dim=-1, keepdim=True) / 0.3 - 0.5).expand(-1, 3)

    mesh = extract_mesh(on_grid(ball), depth_color, box_size=BOX, level=LEVEL, faces=100, texture_px=128)
    below = (0.3 - 0.5 * BOX / 128) / 0.3 - 0.5
    assert np.abs(mesh.texture / 255 - below).max() < 0.02
    middle = mesh.vertices[mesh.faces].mean(1)
    assert np.linalg.norm(middle, axis=1).min() < 0.28  # whose colour would be .43, not .49


def test_a_texture_takes_no_other_format_or_size(textured_mesh):
    with pytest.raises(ValueError, match="'glb' only, not into `format` 'obj'"):
        mesh_bytes(textured_mesh, "obj")
    with pytest.raises(ValueError, match="`texture_px` is 0, but"):
        extract_mesh(on_grid(head), head_color, box_size=BOX, level=LEVEL, texture_px=0)


def test_the_textured_glb_carries_its_recipe_under_no_light(textured_mesh):
    document = glb_document(mesh_bytes(textured_mesh, "glb", extras={"strengths": {"smile": 2.0}}))
    assert document["asset"]["extras"] == {"strengths": {"smile": 2.0}}
    (material,) = document["materials"]
    assert "KHR_materials_unlit" in material["extensions"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    (primitive,) = document["meshes"][0]["primitives"]
    assert "COLOR_0" not in primitive["attributes"]  # it would be multiplied with the texture


def test_the_same_texture_twice(textured_mesh):
    again = extract_mesh(on_grid(head), head_color, box_size=BOX, level=LEVEL, faces=5_000, texture_px=512)
    assert mesh_bytes(again) == mesh_bytes(textured_mesh)


def test_bundled_heads_are_as_large_as_peoples():
    """Down to the chest they are a third of a metre high; chin to crown, with hair, a quarter."""
    examples = sorted((BUNDLED / "examples").glob("*/head.glb"))
    if not examples:
        pytest.skip("weights/faces holds no examples")
    for path in examples:
        mesh = trimesh.load(path, force="mesh", process=False)
        assert 0.28 < mesh.extents[1] < 0.36, path
        front = mesh.vertices[(np.abs(mesh.vertices[:, 0]) < 0.01) & (mesh.vertices[:, 2] > 0)]
        tip = front[front[:, 2].argmax(), 1]  # of the nose: about the middle between chin and crown
        assert 0.14 < mesh.bounds[1, 1] - tip < 0.2, path


def test_unknown_format_is_named(head_mesh):
    with pytest.raises(ValueError, match="`format` is 'fbx', but"):
        mesh_bytes(head_mesh, "fbx")


def needs_npm(package: str) -> None:
    if not (GLTF / "node_modules" / package).is_dir():
        pytest.skip(f"{package} is not installed: run `npm install` in tests/gltf")


@pytest.mark.parametrize("resolution, faces, texture_px", [(64, 5_000, None), (256, 200_000, None), (64, 5_000, 256)])
def test_khronos_validator_finds_nothing(tmp_path, resolution, faces, texture_px):
    """Neither error nor warning, information or hint; with 16 and with 32 bit indices, and with a texture."""
    needs_npm("gltf-validator")
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    mesh = extract_mesh(
        on_grid(head),
        head_color,
        box_size=BOX,
        level=LEVEL,
        resolution=resolution,
        faces=faces,
        texture_px=texture_px,
    )
    assert (len(mesh.vertices) > 65535) == (faces > 100_000)
    (tmp_path / "head.glb").write_bytes(mesh_bytes(mesh, "glb", extras={"level": LEVEL}))
    command = ["node", str(GLTF / "validate.mjs"), str(tmp_path / "head.glb")]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["totalTriangleCount"] == len(mesh.faces)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def viewer_url():
    handler = functools.partial(QuietHandler, directory=str(GLTF))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/view.html"
        server.shutdown()


@pytest.mark.parametrize("kind", ["head_mesh", "textured_mesh"])
def test_three_js_shows_the_colors_of_the_field(kind, viewer_url, browser, request):
    """Neither black nor washed out, upright, the face towards +z: the picture's pixels are the sRGB that went in."""
    needs_npm("three")
    page = browser.new_page(viewport={"width": 512, "height": 512})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    glb = mesh_bytes(request.getfixturevalue(kind), "glb")
    page.route("**/head.glb", lambda route: route.fulfill(body=glb, content_type="model/gltf-binary"))
    page.goto(f"{viewer_url}?model=head.glb")
    page.wait_for_function("document.title == 'ready'", timeout=60_000)
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")) / 255
    page.close()
    assert errors == []

    # Points on the front of the head, through the camera of tests/gltf/view.html.
    points = [(0.1, 0, 0.22), (0, 0.25, 0.17), (0, -0.12, 0.22), (0, -0.3, 0.08)]
    for (x, y, z), color in zip(points, [SKIN, HAIR, LIPS, SKIN]):
        pixels_per_unit = 512 * 3 / (2.7 - z)
        seen = picture[round(256 - pixels_per_unit * y), round(256 + pixels_per_unit * x)]
        assert np.allclose(seen, color, atol=0.02), (x, y, z)
