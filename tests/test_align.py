"""align.py: five points -> the EG3D crop (interoperability facts, section 5), and finding faces in photos."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from preim3d.align import CROP_PX, Face, FaceAligner, crop_face, inside_photo, photo_corners, without_cast
from preim3d.face_mesh import FaceMesh
from preim3d.finder import (
    NETWORK_SIDE,
    InsightFaceFinder,
    find_insightface,
    search_plan,
    sheet_of,
    turn_back,
    turned_copy,
)
from preim3d.fit import CROP_SIDE, FACE_WIDTH, TEMPLATE, fit_template
from preim3d.photo import PhotoError, load_photo


LANDMARKS = Path(__file__).parents[1] / "weights" / "faces" / "landmarks"
CASES = Path(__file__).parents[2] / "shared" / "cases"
REAL = Path(__file__).parents[2] / "shared" / "real" / "photos"
# Where a frontal face lands in the crop.
EXPECTED_PX = np.array([[187.7, 192.3], [324.0, 192.4], [256.7, 266.1], [200.7, 339.7], [310.5, 339.7]])


def frontal_points(scale_px: float, centre_px: tuple[float, float], roll: float) -> np.ndarray:
    """The template as a frontal face in a photo, leaning clockwise by `roll` radians."""
    x, y = TEMPLATE[:, 0], -TEMPLATE[:, 1]
    turned = np.stack([x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)], 1)
    return turned * scale_px + centre_px


@pytest.mark.parametrize("roll_deg", [0, 10, -30, 90, 179])
@pytest.mark.parametrize("scale_px", [30.0, 300.0])
def test_frontal_face_lands_where_the_spec_says(scale_px, roll_deg):
    points = frontal_points(scale_px, (410.0, 275.0), math.radians(roll_deg))
    fit = fit_template(points)
    to_crop = np.linalg.inv(fit.crop_to_photo(CROP_SIDE, CROP_PX))
    landed = points @ to_crop[:2, :2].T + to_crop[:2, 2]
    # The template's own eye line leans by .06 degrees, which levelling takes out: .1 px.
    assert np.abs(landed - EXPECTED_PX).max() < 0.25
    assert fit.scale_px == pytest.approx(scale_px, rel=1e-3)
    assert math.degrees(fit.roll) == pytest.approx(roll_deg, abs=0.1)


def test_fit_moves_with_the_points():
    """On any five points: shifting, scaling and turning the photo shifts, scales and turns the fit."""
    points = frontal_points(80, (200, 150), 0.1) + np.random.default_rng(0).normal(0, 4, (5, 2))
    fit = fit_template(points)
    turn, factor, shift = 0.7, 2.5, np.array([31.0, -12.0])
    matrix = factor * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved = fit_template(points @ matrix.T + shift)
    assert moved.scale_px == pytest.approx(factor * fit.scale_px)
    assert moved.roll == pytest.approx(fit.roll + turn)
    assert np.allclose(moved.centre_px, matrix @ fit.centre_px + shift)


def dotted_photo(points_px: np.ndarray, size: tuple[int, int], radius_px: float) -> Image.Image:
    """White discs at the points on dark grey, drawn at their sub-pixel places."""
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    nearest = np.min([np.hypot(x - px, y - py) for px, py in points_px], 0)
    grey = 40 + 200 * np.clip(radius_px - nearest + 0.5, 0, 1)
    return Image.fromarray(np.repeat(grey[..., None], 3, 2).round().astype(np.uint8))


@pytest.mark.parametrize("scale_px, roll", [(60.0, 0.0), (150.0, -0.4), (400.0, 0.25)])
def test_pixels_land_where_the_points_do(scale_px, roll):
    """Enlarging and shrinking: the centroid of each disc in the crop is within half a pixel of the spec."""
    size = int(scale_px * 4)
    points = frontal_points(scale_px, (size * 0.5, size * 0.52), roll)
    photo = dotted_photo(points, (size, size), 0.05 * scale_px)
    crop = crop_face(photo, Face(points, 1.0, (0.0, 0.0)))
    assert (crop.mode, crop.size) == ("RGB", (CROP_PX, CROP_PX))
    bright = np.asarray(crop)[..., 0].astype(float) - 40
    centres = np.arange(CROP_PX) + 0.5
    for x, y in EXPECTED_PX:
        window = bright * (np.abs(centres - x) < 20) * (np.abs(centres - y)[:, None] < 20)
        found = [(window * centres).sum() / window.sum(), (window * centres[:, None]).sum() / window.sum()]
        assert np.hypot(found[0] - x, found[1] - y) < 0.5, (found, x, y)


def test_crop_of_a_crop_is_itself():
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = coarse.resize((CROP_PX, CROP_PX), Image.Resampling.BICUBIC)
    again = crop_face(smooth, Face(frontal_points(CROP_PX / CROP_SIDE, (256, 256), 0), 1.0, (0.0, 0.0)))
    assert np.abs(np.asarray(again).astype(int) - np.asarray(smooth)).max() <= 6


def test_beyond_the_border_it_is_mirrored_and_blurred_not_black():
    stripes = np.full((300, 300, 3), 90, np.uint8)
    stripes[:, ::8] = 200
    points = frontal_points(120, (20, 150), 0)  # the left part of the crop lies outside
    crop = np.asarray(crop_face(Image.fromarray(stripes), Face(points, 1.0, (0.0, 0.0)))).astype(float)
    assert crop.min() > 60
    assert crop[200:300, :100].std() < 0.25 * crop[200:300, 300:].std()


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_points_of_a_turned_photo_turn_back(quarters):
    pixels = np.zeros((30, 50), np.uint8)
    pixels[7, 41] = 1
    (y,), (x,) = np.nonzero(np.rot90(pixels, quarters))
    back = turn_back(np.array([[x + 0.5, y + 0.5]]), quarters, (30, 50))
    assert back.tolist() == [[41.5, 7.5]]


@pytest.mark.parametrize("roll_deg", [0, 30, -75, 90, 180])
def test_a_turned_copy_says_where_its_pixels_are_from(roll_deg):
    """A bright spot of a photo, found in the copy."""
    photo = np.zeros((300, 400), np.uint8)
    photo[140:151, 230:241] = 255
    copy, to_photo = turned_copy(photo, 200, math.radians(roll_deg), 64)
    y, x = np.array(np.nonzero(copy == copy.max())).mean(1) + 0.5
    assert np.abs(to_photo @ [x, y, 1] - [235.5, 145.5, 1]).max() < 2
    assert min(copy.shape) >= 64


def test_copies_lie_on_a_sheet_without_touching():
    sizes = [(70, 100), (64, 64), (130, 90), (64, 200)]
    copies = [np.random.default_rng(i).integers(0, 255, size, np.uint8) for i, size in enumerate(sizes)]
    sheet, corners = sheet_of(copies, 64, 16)
    owner = np.zeros(sheet.shape, int)
    for (height, width), (top, left) in zip(sizes, corners):
        assert top % 16 == left % 16 == 0
        owner[top : top + height, left : left + width] += 1
    assert owner.max() == 1 and np.abs(sheet[owner == 0]).max() == 0
    top, left = corners[2]
    inside = sheet[top + 32 : top + 98, left + 32 : left + 58]
    assert abs(inside.mean()) < 0.2 and 0.7 < inside.std() < 1.3  # brightness and contrast are made even


@pytest.mark.parametrize("photo_px", [64, 512, 4000, 12000])
def test_faces_of_every_size_of_use_are_looked_for(photo_px):
    """Some upright copy shows each at .85 to 1.6 of the size that the network was trained with."""
    sides = sorted({side for _, copies in search_plan(photo_px) for side, roll_deg in copies if roll_deg == 0})
    for face_px in np.geomspace(64, photo_px, 20):
        box_px = face_px * NETWORK_SIDE / FACE_WIDTH  # of its box in the photo, to be 64 px
        assert any(0.8 <= box_px * side / photo_px / 64 <= 1.7 for side in sides), face_px


# ---------------------------------------------------------------------------------------------------------------------
# With our own landmark network: real photos that come with the requirements.


@pytest.fixture(scope="module")
def aligner():
    if not (LANDMARKS / "config.json").is_file():
        pytest.skip(f"{LANDMARKS} is not there: python -m train.landmarks makes it")
    return FaceAligner(LANDMARKS, insightface_folder=None)  # ours, even where insightface has models


@pytest.fixture(scope="module")
def astronaut():
    import skimage.data

    return Image.fromarray(skimage.data.astronaut())


def test_portrait(aligner, astronaut):
    (face,) = aligner.faces(astronaut)
    eye_distance = 43
    by_hand = np.array([[203.5, 101.5], [246.7, 103.8], [223.5, 126.5], [203.3, 140.0], [245.5, 141.0]])
    assert np.linalg.norm(face.points_px - by_hand, axis=1).max() < 0.15 * eye_distance
    left, top, right, bottom = face.box_px
    assert left < by_hand[:, 0].min() < by_hand[:, 0].max() < right and top < 101 and bottom > 141
    assert np.array_equal(np.asarray(aligner.align_photo(astronaut)), np.asarray(crop_face(astronaut, face)))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_portrait_on_its_side(aligner, astronaut, quarters):
    (upright,) = aligner.faces(astronaut)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(astronaut), quarters)))
    (face,) = aligner.faces(turned)
    difference = np.asarray(crop_face(turned, face)).astype(float) - np.asarray(crop_face(astronaut, upright))
    assert np.abs(difference).mean() < 2


def test_group_photo_has_six_faces_the_largest_first(aligner):
    # Between the eyes and the mouth, by eye.
    people = np.array([[117, 339], [317, 216], [515, 343], [789, 412], [942, 141], [1177, 341]])
    import insightface.data

    photo = Image.fromarray(insightface.data.get_image("t1")[..., ::-1].copy())
    faces = aligner.faces(photo)
    centres = np.array([face.fit.centre_px for face in faces])
    assert all(np.linalg.norm(centres - person, axis=1).min() < 25 for person in people)
    assert len(faces) == 6
    widths = [face.width_px for face in faces]
    assert widths == sorted(widths, reverse=True)
    assert aligner.choose(photo, faces=faces) is faces[0] and aligner.choose(photo, 6, faces) is faces[5]
    with pytest.raises(PhotoError, match="no face 9 in the photo: [67] found") as caught:
        aligner.choose(photo, 9, faces)
    with pytest.raises(PhotoError, match="no face 0 .* numbered from 1"):
        aligner.choose(photo, 0, faces)
    assert caught.value.reason == "no_such_face"


def test_photo_without_a_face(aligner):
    import skimage.data

    with pytest.raises(PhotoError, match="No face found") as caught:
        aligner.align_photo(Image.fromarray(skimage.data.rocket()))
    assert caught.value.reason == "no_face"
    with pytest.raises(PhotoError, match="No face found"):
        aligner.align_photo(Image.new("RGB", (200, 200), "white"))


@pytest.mark.parametrize("turn_deg", [0, 20, 90, 180])
def test_the_camera_is_that_of_the_upright_photo(aligner, astronaut, turn_deg):
    turned = astronaut.rotate(turn_deg, Image.Resampling.BICUBIC, expand=True, fillcolor=(128, 128, 128))
    yaw, pitch = aligner.choose(turned).angles_deg
    assert abs(yaw - 2) < 6 and abs(pitch + 6) < 8


@pytest.mark.parametrize("turn_deg", [45, 135, 180, 270])
@pytest.mark.parametrize("light", ["even", "half in shadow", "blue", "dim"])
def test_the_camera_in_any_light_and_at_any_roll(aligner, astronaut, turn_deg, light):
    pixels = np.asarray(astronaut).astype(float)
    if light == "half in shadow":
        pixels *= np.clip((np.arange(512) - 190) / 60, 0.12, 1)[None, :, None]
    pixels *= {"blue": (0.25, 0.25, 1), "dim": (0.15,) * 3}.get(light, (1,) * 3)
    turned = Image.fromarray(pixels.round().astype(np.uint8)).rotate(turn_deg, expand=True, fillcolor=(60, 60, 60))
    yaw, pitch = aligner.choose(turned).angles_deg
    assert abs(yaw - 1) < 6 and abs(pitch + 9) < 6


def test_a_small_face_in_a_panorama(aligner):
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there")
    told = []
    (face,) = aligner.faces(load_photo(CASES / "pano12000.jpg"), lambda: told.append("looking"))
    assert face.width_px == pytest.approx(127, rel=0.1) and told == ["looking"]


def test_nine_of_ten_tight_crops_are_found(aligner):
    """Photos that end at the hairline, of people of all ages and ancestries."""
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there")
    from train.photos.real_photos import RealPhotos

    photos = RealPhotos(REAL)
    rows = np.nonzero(photos.held)[0][::4]
    found = 0
    for pixels, corners in zip(photos.pixels(rows)[..., :3], photos.corners[rows]):
        (left, top), (right, bottom) = (corners.min(0).clip(0, 256), corners.max(0).clip(0, 256))
        tight = Image.fromarray(pixels[round(top) : round(bottom), round(left) : round(right)])
        found += bool(aligner.faces(tight))
    assert found >= 0.9 * len(rows)


@pytest.mark.parametrize("name", ["rot90.jpg", "lowcontrast.png", "mask.jpg", "icc_prophoto.jpg"])
def test_faces_that_were_missed_or_misread(aligner, name):
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there")
    yaw, pitch = aligner.choose(load_photo(CASES / name)).angles_deg
    assert abs(yaw - 2) < 8 and abs(pitch + 6) < 10


def test_what_is_read_lies_in_the_crop(aligner, astronaut):
    face = aligner.choose(astronaut)
    (points,), (angles,), _, reading = aligner.read(np.asarray(astronaut), [face.fit])
    assert np.linalg.norm(points - face.points_px, axis=1).max() < 3
    assert np.abs(np.subtract(angles, face.angles_deg)).max() < 3
    assert reading.points.shape == (1, 120, 3) and reading.points[..., :2].abs().max() < 1
    person = reading.person[0, 0] > 0
    assert person[32, 32] and person[-1, 32] and not person[0, 0]


def test_face_too_small(aligner, astronaut):
    with pytest.raises(PhotoError, match=r"The face is \d\d px wide; 64 px is the least\.") as caught:
        aligner.align_photo(astronaut.resize((256, 256)))
    assert caught.value.reason == "face_too_small"


# ---------------------------------------------------------------------------------------------------------------------
# insightface instead of ours.


def test_insightface_is_looked_for_on_disk_only(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_insightface() is None
    pack = tmp_path / ".insightface" / "models" / "buffalo_l"
    pack.mkdir(parents=True)
    assert find_insightface() is None  # an empty folder would make insightface fail
    (pack / "det_10g.onnx").touch()
    assert find_insightface() == pack


def write_detector(path: Path, column: int, row: int, stride: int, offsets: np.ndarray) -> None:
    """An ONNX file with SCRFD's nine outputs (score, box, points at strides 8, 16, 32; two anchors a cell).

    It finds one face in any picture: at a cell of `stride`, its points at `offsets` [5, 2] strides from there."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    nodes, outputs, constants = [], [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    for kind, values in (("score", [0.0]), ("box", [2.0] * 4), ("points", offsets.ravel().tolist())):
        for s in (8, 16, 32):
            count, name = 2 * (640 // s) ** 2, f"{kind}{s}"
            shape = constant(f"{name}_shape", np.array([count, len(values)], np.int64))
            row_name = constant(f"{name}_row", np.array([values], np.float32))
            spread = f"{name}_spread" if kind == "score" and s == stride else name
            nodes.append(helper.make_node("Expand", [row_name, shape], [spread]))
            if spread != name:
                cell = constant("cell", np.array([[2 * (row * 640 // s + column)]], np.int64))
                sure = constant("sure", np.array([[0.9]], np.float32))
                nodes.append(helper.make_node("ScatterND", [spread, cell, sure], [name]))
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [count, len(values)]))
    picture = helper.make_tensor_value_info("input.1", onnx.TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "detector", [picture], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def test_insightface_is_used_where_its_model_is(tmp_path):
    pytest.importorskip("onnxruntime")
    offsets = TEMPLATE[:, :2] * [1, -1] * 3
    write_detector(tmp_path / "det_test.onnx", column=10, row=8, stride=32, offsets=offsets)
    (found,) = next(InsightFaceFinder(tmp_path).searches(np.zeros((640, 640, 3), np.uint8)))
    assert np.allclose(found.points_px, np.array([320, 256]) + 0.5 + 32 * offsets, atol=0.01)
    assert found.confidence == pytest.approx(0.9)
    assert fit_template(found.points_px).scale_px == pytest.approx(96, rel=1e-3)

    # The crop is still found by our mesh network, which reads the face more finely.
    FaceMesh(input_size=32, widths=(4, 8, 8, 8)).save_pretrained(tmp_path / "landmarks" / "mesh")
    aligner = FaceAligner(tmp_path / "landmarks", insightface_folder=tmp_path)
    assert "insightface" in aligner.source and "non-commercial" in aligner.source
    points, angles, _, _ = aligner.read(np.zeros((640, 640, 3), np.uint8), [fit_template(found.points_px)])
    assert np.isfinite(points).all() and np.isfinite(angles).all()


def test_a_coloured_light_is_taken_out_and_ordinary_light_is_left():
    ordinary = np.full((1, 4, 4, 3), (0.6, 0.5, 0.42), np.float32)
    assert np.allclose(without_cast(ordinary), ordinary)
    blue = np.full((1, 4, 4, 3), (0.1, 0.1, 0.8), np.float32)
    red, green, rest = without_cast(blue)[0, 0, 0]
    assert red == green > 0.2 and rest < 0.45


def test_the_photos_corners_lie_where_the_crop_shows_them():
    width, height = 240, 200  # colours tell where in the photo a pixel is from
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    photo = Image.fromarray(np.stack([x, y, 0 * x], -1))
    face = Face(frontal_points(90, (100, 120), 0.35), 1.0, (0.0, 0.0))
    crop, corners = np.asarray(crop_face(photo, face)).astype(float), photo_corners(photo.size, face) * CROP_PX
    inside = inside_photo(torch.from_numpy(corners)[None], CROP_PX, 20)[0, 0].numpy() > 0
    assert 0.2 < inside.mean() < 0.9
    rows, columns = np.nonzero(inside)
    # From colours to the crop: the first corner, and so much of the two sides that leave it.
    across, down = (crop[rows, columns, channel, None] + 0.5 for channel in (0, 1))
    expected = corners[0] + across / width * (corners[1] - corners[0]) + down / height * (corners[3] - corners[0])
    apart = np.abs(expected - np.stack([columns + 0.5, rows + 0.5], 1))
    assert apart.max() < 3, apart.max()
