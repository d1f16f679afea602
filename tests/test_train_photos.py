"""train/photos/packing.py: any folder of photos becomes packed crops, masks, landmarks and poses."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import LANDMARKS, ROOT
from PIL import Image

from preim3d.align import FaceAligner
from preim3d.photo import load_photo
from train.photos import packing
from train.photos.real_photos import CROP_PX, Packed, RealPhotos, encode, pack


@pytest.fixture
def folder(portrait, tmp_path):
    """Two portraits, one of them in a folder of its own, and two files that cannot be used."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    with Image.open(portrait) as photo:
        photo.save(folder / "deeper" / "Åse.JPG", format="JPEG")
        photo.crop((110, 20, 340, 250)).save(folder / "close.png")
        photo.resize((200, 200)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def test_photos_are_packed_and_failures_listed(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(folder), "--weights", str(LANDMARKS.parent), "--out", str(out), "--processes", "1"]
    assert packing.main(words) == 0
    assert "2 photos are in" in capsys.readouterr().out
    failures = json.loads((out / "failures.json").read_text())
    assert failures.keys() == {"broken.png", "small.png"} and "wide" in failures["small.png"]

    packed = RealPhotos(out)
    assert packed.names.tolist() == ["close.png", "deeper/Åse.JPG"]
    whole = load_photo(folder / "deeper" / "Åse.JPG")
    aligner = FaceAligner(LANDMARKS)
    face = aligner.choose(whole)
    assert np.degrees(packed.pose[1]) == pytest.approx(face.angles_deg, abs=0.01)
    pixels = packed.pixels(np.array([0, 1]))
    crop = np.asarray(aligner.align_photo(whole).resize((CROP_PX, CROP_PX)))
    assert np.abs(pixels[1, ..., :3].astype(int) - crop).mean() < 5
    assert pixels[1, 128, 128, 3] > 200 and pixels[1, 4, 4, 3] < 60
    # The nose's tip lies in the middle of the face, nearer than the temples.
    nose = packed.landmarks[1, 1]
    assert abs(nose[0] - 128) < 20 and nose[2] < packed.landmarks[1, :, 2].mean()
    # Nothing beyond the photo is taken for a part of it.
    corners = packed.corners[1]
    assert np.linalg.norm(corners[1] - corners[0]) == pytest.approx(
        whole.width * CROP_PX / (700 / 300 * face.fit.scale_px), rel=1e-3
    )

    # Again with one more: only that is done, in a file of its own.
    first = (out / "00000.npz").read_bytes()
    (out / ".half.npz").write_bytes(b"of a run that was killed")
    (folder / "more.png").write_bytes((folder / "close.png").read_bytes())
    assert packing.main(words) == 0
    assert (out / "00000.npz").read_bytes() == first and not (out / ".half.npz").exists()
    assert RealPhotos(out).names.tolist() == ["close.png", "deeper/Åse.JPG", "more.png"]


def test_a_killed_run_leaves_whole_files(folder, tmp_path):
    out = tmp_path / "out"
    for i in range(6):
        (folder / f"copy{i}.png").write_bytes((folder / "close.png").read_bytes())
    code = "import sys; from train.photos import packing; packing.PER_FILE = 2; sys.exit(packing.main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, str(folder), "--weights", str(LANDMARKS.parent), "--out", str(out)]
    run = subprocess.Popen([*words, "--processes", "1"], cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list(out.glob("0*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    some = len(RealPhotos(out))
    assert some % 2 == 0
    count, failures = packing.pack_photos(folder, out, LANDMARKS.parent)
    assert count == len(RealPhotos(out)) == len(set(RealPhotos(out).names)) == 8 and len(failures) == 2


def test_the_same_photos_are_held_out_whatever_else_is_there():
    names = [f"people/{i}.jpg" for i in range(3000)]
    held = {name for name in names if packing.is_held(name, 30)}
    assert 60 < len(held) < 150
    assert held == {name for name in reversed(names) if packing.is_held(name, 30)}


def test_a_file_of_packed_photos_reads_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    rgba = np.full((CROP_PX, CROP_PX, 4), 120, np.uint8)
    rgba[:100, :, 3] = 0
    entry = Packed(
        encode(rgba), rng.random((4, 2)), rng.random((120, 3)), (0.1, 0.2), full=True, held=False, name="a b/ö.jpg"
    )
    pack(tmp_path / "00000.npz", [entry, entry._replace(held=True, name="other")])
    read = RealPhotos(tmp_path)
    assert read.names.tolist() == ["a b/ö.jpg", "other"] and read.held.tolist() == [False, True]
    assert np.allclose(read.landmarks[0], entry.lm) and np.allclose(read.pose[0], entry.pose)
    assert np.abs(read.pixels(np.array([0]))[0].astype(int) - rgba).max() < 8


def test_a_folder_without_pictures_is_a_sentence(tmp_path, capsys):
    assert packing.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "has no pictures" in capsys.readouterr().err
