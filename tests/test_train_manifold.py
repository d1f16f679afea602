"""The manifold stage: whatever processes share it, and wherever they are killed, the same latents come out."""

import zipfile

import numpy as np
import pytest
import torch
from command_line import run
from packing import pack_faces
from PIL import Image

from preim3d.directions import fingerprint
from train.editing import manifold
from train.judging.attributes import HeadReader
from train.photos.photo_labels import LABELS, photo_labels
from train.photos.real_photos import RealPhotos


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reader")
    HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 8, ("Smiling", "Young"), 5).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    (folder / "00000").mkdir()
    rng = np.random.default_rng(0)
    for number in range(7):
        pixels = np.repeat(rng.integers(0, 256, (8, 8, 3), np.uint8), 5, 0).repeat(5, 1)
        Image.fromarray(pixels).save(folder / "00000" / f"{number}.png")
    return folder


@pytest.fixture
def latents(tiny_weights, reader, tmp_path, monkeypatch):
    """Runs the stage in batches of two and gives what it wrote."""
    monkeypatch.setattr(manifold, "BATCH", 2)

    def make(*words, out="latents.npz", status=0):
        path = tmp_path / out
        assert run(manifold.main, "--weights", tiny_weights, "--reader", reader, "--out", path, *words) == status
        return dict(np.load(path)) if path.is_file() else None

    return make


def same(first, second):
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


def test_every_crop_is_inverted(latents, crops, pipeline):
    found = latents("--data", crops)
    assert list(found["names"]) == [f"00000/{i}.png" for i in range(7)] and found["logits"].shape == (7, 2)
    assert str(found["space"]) == "inversion" and str(found["network"]) == fingerprint(pipeline.encoder)
    picture = Image.open(crops / "00000" / "3.png").resize((32, 32), Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        assert np.abs(pipeline.encoder(image)[0].numpy() - found["w"][3]).max() < 1e-5


def test_parts_and_zips_give_the_same(latents, crops, tmp_path):
    whole = latents("--data", crops)
    for part in ("2/3", "1/3"):
        assert latents("--data", crops, "--part", part, out="shared.npz") is None
    assert same(latents("--data", crops, "--part", "3/3", out="shared.npz"), whole)
    assert not list(tmp_path.glob(".shared*"))
    with zipfile.ZipFile(tmp_path / "crops.zip", "w") as archive:
        for path in crops.rglob("*.png"):
            archive.write(path, path.relative_to(crops))
    assert same(latents("--data", tmp_path / "crops.zip", out="zipped.npz"), whole)


def test_a_killed_run_goes_on(latents, crops, monkeypatch, capsys):
    whole = latents("--data", crops)
    monkeypatch.setattr(manifold, "SAVE_SECONDS", 0)
    read, calls = manifold.read_crop, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(manifold, "read_crop", killed)
    with pytest.raises(KeyboardInterrupt):
        latents("--data", crops, out="killed.npz")
    calls.clear()
    calls += 5 * [None]
    assert same(latents("--data", crops, out="killed.npz"), whole)
    assert len(calls) - 5 == 3  # the first two batches of two were kept
    assert latents("--data", crops, "--seed", 1, "--part", "1/2", out="mixed.npz") is None
    assert latents("--data", crops, "--seed", 2, "--part", "1/2", out="mixed.npz", status=1) is None
    assert "was begun with another seed" in capsys.readouterr().err
    latents("--data", crops)
    assert "is there already" in capsys.readouterr().out


def test_an_unreadable_crop_is_named_and_left_out(latents, crops, tmp_path, capsys):
    folder = tmp_path / "crops"
    folder.mkdir()
    for path in (crops / "00000").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "4.png").write_bytes(b"no picture")
    found = latents("--data", folder)
    assert list(found["names"]) == [f"{i}.png" for i in (0, 1, 2, 3, 5, 6)]
    assert "4.png cannot be read" in capsys.readouterr().err


def test_packed_photos_bring_what_is_known_of_them(latents, pipeline, tmp_path):
    _, table = pack_faces(tmp_path / "packed", count=12)
    photos = RealPhotos(tmp_path / "packed")
    found = latents("--data", tmp_path / "packed", "--labels", table)
    assert len(found["w"]) == 9 and set(found["names"]) == set(photos.names[~photos.held])
    rows = [photos.names.tolist().index(name) for name in found["names"]]
    assert np.array_equal(found["angles"], photos.pose[rows])
    known = dict(zip(LABELS, photo_labels(photos, table)[rows].T))
    assert np.array_equal(found["labels"], np.stack([known["Smiling"], known["Young"]], 1))
    crops = torch.nn.functional.interpolate(photos.crops(np.array(rows)), (32, 32), mode="area")
    with torch.no_grad():
        assert np.abs(pipeline.encoder(crops).numpy() - found["w"]).max() < 1e-4
    assert len(latents("--data", tmp_path / "packed", "--heads", 4, out="few.npz")["w"]) == 4


def test_samples_lie_in_the_original_space(latents, pipeline):
    found = latents("--samples", 5)
    assert str(found["network"]) == fingerprint(pipeline.generator)
    assert str(found["space"]) == "origin" and found["w"].shape == (5, pipeline.generator.num_ws, 24)
    # All rows of a sampled w are equal; those of an inverted one are not.
    assert np.abs(found["w"] - found["w"][:, :1]).max() == 0


def test_mistakes_are_one_sentence(latents, tmp_path, capsys):
    for words, said in (
        ((), "Give --data"),
        (("--data", tmp_path), "holds no .png or .jpg crops"),
        (("--data", tmp_path / "none"), "none"),
    ):
        assert latents(*words, status=1) is None
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        latents("--samples", 2, "--part", "3/2")
