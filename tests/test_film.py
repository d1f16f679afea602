"""film and files: labels on the sheet, an mp4 that plays, and files that are whole or not there."""

import os

import av
import numpy as np
import pytest
import torch
from PIL import Image

from preim3d.files import whole_file
from preim3d.film import GAP_PX, angle_label, labelled, orbit_video, pictures, pose_sheet


def plain(size, color=(90, 140, 200)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_pictures_span_the_range_of_the_images():
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(2, 3, 4, 5)
    first, second = pictures(images)
    assert first.size == (5, 4) and first.mode == "RGB"
    assert np.asarray(first)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "yaw, pitch, expected",
    [(-30, 20, "yaw -30°  pitch +20°"), (0, -20, "yaw 0°  pitch -20°"), (30.2, -0.1, "yaw +30°  pitch 0°")],
)
def test_angle_label(yaw, pitch, expected):
    assert angle_label(yaw, pitch) == expected


@pytest.mark.parametrize("size", [64, 128, 512])
def test_label_is_inside_the_picture_and_legible(size):
    view = plain((size, size))
    cell = np.asarray(labelled(view, angle_label(-30, -20))).astype(int)
    changed = np.abs(cell - np.asarray(view)).sum(-1) > 0
    assert changed.any(axis=1).nonzero()[0].min() > 0.5 * size, "the label must leave the face alone"
    letters = (cell.min(-1) > 200).nonzero()
    assert len(letters[0]) > 20
    assert letters[1].min() > 0 and letters[1].max() < size - 1, "no letter may touch the edge"
    assert letters[0].max() - letters[0].min() >= 7, "letters of 7 px at least"
    assert np.array_equal(view, plain((size, size))), "the view itself stays as it was"


def test_pose_sheet_puts_the_views_row_by_row():
    views = [plain((40, 30), (20 * i, 0, 255 - 20 * i)) for i in range(9)]
    sheet = pose_sheet(views, ["", "middle"] + 7 * [""])
    assert sheet.size == (3 * 40 + 2 * GAP_PX, 3 * 30 + 2 * GAP_PX)
    for i in range(9):
        row, column = divmod(i, 3)
        corner = (column * (40 + GAP_PX), row * (30 + GAP_PX))
        assert sheet.getpixel(corner) == (20 * i, 0, 255 - 20 * i)
    assert not np.array_equal(sheet.crop((42, 0, 82, 30)), views[1]), "its label is written on it"


@pytest.mark.parametrize("size", [(64, 48), (65, 47)])
def test_orbit_video_comes_back_as_it_went_in(tmp_path, size):
    colors = [(220, 30, 30), (30, 220, 30), (30, 30, 220), (128, 128, 128)]
    path = tmp_path / "new" / "orbit.mp4"
    orbit_video((plain(size, color) for color in colors), path, fps=4)
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.width % 2 == 0 and stream.height % 2 == 0 and stream.average_rate == 4
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
    assert [frame.shape for frame in frames] == 4 * [(size[1] + size[1] % 2, size[0] + size[0] % 2, 3)]
    for frame, color in zip(frames, colors):
        assert np.abs(frame.reshape(-1, 3).mean(0) - color).max() < 6
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes first, so that it starts while loading"
    assert os.listdir(path.parent) == ["orbit.mp4"]


def test_orbit_video_needs_a_frame(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        orbit_video([], tmp_path / "orbit.mp4")
    assert os.listdir(tmp_path) == []


def test_a_film_that_fails_half_way_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "orbit.mp4"
    path.write_bytes(b"earlier")

    def frames():
        yield plain((32, 32))
        raise RuntimeError("the renderer failed")

    with pytest.raises(RuntimeError, match="the renderer failed"):
        orbit_video(frames(), path)
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["orbit.mp4"]


def test_whole_file_replaces_and_says_where_it_cannot_write(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for text in ("first", "second"):
        with whole_file(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
        assert path.read_text() == text
    with pytest.raises(OSError, match=r"b\.txt.c\.txt cannot be written \(.+\): choose another folder"):
        with whole_file(path / "c.txt") as temporary:
            temporary.write_text("a file is in the way of the folder")
    assert os.listdir(tmp_path / "a") == ["b.txt"]
