"""train/photos/prepare.py and posed_photos.py: raw photos become posed crops, and these become batches."""

import json
import zipfile

import numpy as np
import pytest
import torch
from conftest import LANDMARKS
from PIL import Image

from preim3d.camera import angles_from_camera, camera_from_angles
from train.photos import prepare
from train.photos.posed_photos import PosedPhotos, Shuffled, load_batches, mirror_camera


def test_photos_become_posed_crops_and_failures_are_listed(portrait, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "deeper").mkdir(parents=True)
    with Image.open(portrait) as photo:
        photo.save(photos / "deeper" / "Åse.JPG", format="JPEG")
        photo.convert("RGB").resize((100, 100)).rotate(180).crop((0, 0, 80, 40)).save(photos / "no_face.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (photos / "notes.txt").write_text("not a picture")
    words = [str(photos), "--out", str(out), "--processes", "1"]
    assert prepare.main(words) == 0
    assert "1 photos are in" in capsys.readouterr().out
    failures = json.loads((out / "failures.json").read_text())
    assert failures.keys() == {"broken.png", "no_face.png"} and all(failures.values())
    ((name, camera),) = json.loads((out / "dataset.json").read_text())["labels"]
    assert Image.open(out / name).size == (512, 512)
    assert (torch.stack(angles_from_camera(torch.tensor(camera))).abs() < 1).all()
    assert camera[16] == pytest.approx(4.2647)

    # Killed within a line, and a photo came in: only that and the lost one are done anew.
    journal = out / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]) + lines[2][:9])
    (out / name).touch()
    (photos / "also_broken.jpg").write_bytes(b"")
    assert prepare.main(words) == 0
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [entry["photo"] for entry in entries[:2]] == [json.loads(line)["photo"] for line in lines[:2]]
    assert sorted(entry["photo"] for entry in entries) == sorted(
        ["also_broken.jpg", "broken.png", "deeper/Åse.JPG", "no_face.png"]
    )
    images, cameras = PosedPhotos(out, 64)[0]
    assert images.shape == (3, 64, 64) and cameras.tolist() == pytest.approx(camera, abs=1e-5)


def test_a_folder_without_pictures_is_a_sentence(tmp_path, capsys):
    assert prepare.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "has no pictures" in capsys.readouterr().err


def test_photos_are_aligned_by_the_bundled_networks():
    assert prepare.WEIGHTS / "landmarks" == LANDMARKS


@pytest.fixture
def posed(tmp_path):
    """Five photos, left half brighter than the right, as folder and zip."""
    folder, labels = tmp_path / "posed", []
    (folder / "00000").mkdir(parents=True)
    for i in range(5):
        pixels = np.full((8, 8, 3), 10 * i, np.uint8)
        pixels[:, :4] += 100
        Image.fromarray(pixels).save(folder / "00000" / f"{i}.png")
        labels.append([f"00000/{i}.png", camera_from_angles(0.1 * i, 0.05 * i).tolist()])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    with zipfile.ZipFile(tmp_path / "posed.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    return folder


def test_folder_and_zip_hold_the_same(posed):
    folder, archive = PosedPhotos(posed, 4), PosedPhotos(posed.with_suffix(".zip"), 4)
    assert len(folder) == len(archive) == 5
    for one, other in zip(folder, archive):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert folder[3][0].dtype == torch.uint8 and folder[3][0][0, 0, 0] == 130


def test_a_mirrored_photo_is_seen_from_the_other_side(posed):
    photos = PosedPhotos(posed, 8, mirror=True)
    assert len(photos) == 10
    image, camera = photos[8]
    assert torch.equal(image, photos[3][0].flip(2))
    torch.testing.assert_close(camera, camera_from_angles(-0.3, 0.15), atol=1e-6, rtol=0)
    assert torch.equal(mirror_camera(camera), photos[3][1])


def test_labels_must_be_cameras(posed):
    (posed / "dataset.json").write_text(json.dumps({"labels": [["00000/0.png", [1.0, 2.0]]]}))
    with pytest.raises(ValueError, match="25 numbers"):
        PosedPhotos(posed, 4)
    (posed / "dataset.json").write_text(json.dumps({"labels": None}))
    with pytest.raises(ValueError, match="camera label"):
        PosedPhotos(posed, 4)


def test_an_order_covers_every_photo_and_can_be_entered_anywhere():
    def batches(count, **more):
        return [batch for _, batch in zip(range(count), Shuffled(7, 2, 0, **more))]

    flat = [i for batch in batches(14) for i in batch]
    assert all(sorted(flat[7 * k : 7 * k + 7]) == list(range(7)) for k in range(4)) and flat[:7] != flat[7:14]
    assert batches(4, first=10) == batches(14)[10:]
    # Two processes take turns.
    assert [b for pair in zip(*(batches(7, process=p, processes=2) for p in (0, 1))) for b in pair] == batches(14)


def test_batches_are_read_ahead_by_other_processes(posed):
    images, cameras = next(load_batches(PosedPhotos(posed.with_suffix(".zip"), 4), Shuffled(5, 3, 0), workers=1))
    assert images.shape == (3, 3, 4, 4) and cameras.shape == (3, 25) and -1 <= images.min() < images.max() <= 1
