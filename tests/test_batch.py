"""Many photos: which shard does what, what is done, what a killed run leaves; folders, lists and tars."""

import io
import json
import os
import re
import signal
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import nearly_full_disk
from killing import killed_runs
from PIL import Image

from preim3d.__main__ import main
from preim3d.photo import PhotoError
from preim3d.results import RESULTS, Made, Request, edit_photos
from preim3d.sources import Shard, find_shard, keys_of, open_source
from preim3d.workers import KILLED, Setup, edit_by_processes, share_devices


WHOLE = Shard()
SAMPLE = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # how webdataset splits a member's name into key and ending


@pytest.fixture(scope="module")
def face(portrait) -> bytes:
    """A small photo, which is quickly done."""
    with Image.open(portrait) as photo, io.BytesIO() as file:
        photo.crop((120, 0, 330, 210)).save(file, "JPEG", quality=95)
        return file.getvalue()


@pytest.fixture
def edit(tiny_weights, monkeypatch, capsys):
    """`edit` in this process with the tiny weights -> exit status, what it printed, its complaints."""
    monkeypatch.setenv("PREIM3D_WEIGHTS", str(tiny_weights))

    def run(*words) -> tuple[int, str, str]:
        status = main(["edit", *map(str, words)])
        return (status, *capsys.readouterr())

    return run


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def in_folders(out: Path) -> dict[str, dict[str, bytes]]:
    """Results by photo and name."""
    folders = {path.parent for path in out.rglob(RESULTS[0])}
    return {str(f.relative_to(out)): {name: (f / name).read_bytes() for name in RESULTS} for f in folders}


def in_tars(out: Path) -> dict[str, dict[str, bytes]]:
    """Likewise, read as webdataset does; no photo may be there twice."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            here: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, name = SAMPLE.match(member.name).groups()
                assert name not in here.setdefault(key, {})
                here[key][name] = tar.extractfile(member).read()
        assert not here.keys() & samples.keys()
        samples |= here
    return samples


# ----------------------------------------------------------------------------
# Who does what.


@pytest.mark.parametrize("shard", ["3/2", "0/2", "-1/2", "1/0", "2", "1/2/3", "one/two", "1.5/2", ""])
def test_an_impossible_shard_is_one_sentence(edit, tmp_path, shard):
    status, said, complained = edit(tmp_path, "--out", tmp_path / "out", f"--shard={shard}")
    assert (status, said) == (1, "") and complained.count("\n") == 1
    assert f"A shard must be one of 1/N to N/N, such as 1/2 and 2/2 for two machines, not {shard!r}." in complained


def test_launchers_say_which_shard_and_count_from_0():
    assert find_shard(None, {}) == WHOLE and find_shard("2/3", {"RANK": "0", "WORLD_SIZE": "8"})[:2] == (2, 3)
    assert find_shard(None, {"RANK": "7", "WORLD_SIZE": "8"}) == (8, 8, "RANK and WORLD_SIZE")
    assert find_shard(None, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"})[:2] == (1, 4)
    # A batch script is one process, however many tasks its srun will have.
    assert find_shard(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == WHOLE
    with pytest.raises(ValueError, match="not RANK and WORLD_SIZE of '8' and '8'"):
        find_shard(None, {"RANK": "8", "WORLD_SIZE": "8"})


def test_shards_share_everything_and_nothing_twice(tmp_path):
    for number in range(11):
        (tmp_path / f"{number}.jpg").touch()
    for count in (1, 2, 3, 11, 20):
        shards = [open_source(tmp_path, Shard(number, count)).photos for number in range(1, count + 1)]
        assert sorted(sum(shards, [])) == open_source(tmp_path, WHOLE).photos
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    "asked, environment, places",
    [
        ((None, None, 0, 8), {}, 4 * [None]),
        ((None, None, 0, 1), {}, [None]),
        ((None, None, 0, 8), {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2 * [None]),
        (("cpu", 3, 2, 2), {}, 3 * ["cpu"]),
        ((None, None, 2, 8), {}, ["cuda:0", "cuda:1"]),
        (("cuda", 3, 2, 8), {}, ["cuda:0", "cuda:1", "cuda:0"]),
        ((None, None, 8, 8), {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}, ["cuda:5"]),
        ((None, 2, 1, 8), {"SLURM_LOCALID": "3"}, 2 * ["cuda:0"]),
        (("cuda:1", None, 2, 8), {}, 4 * ["cuda:1"]),
    ],
)
def test_processes_share_the_devices(asked, environment, places):
    assert share_devices(*asked, environment) == places


# ----------------------------------------------------------------------------
# What is taken for a photo.


def test_a_list_names_photos_from_its_own_folder_on(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "a b.jpg").touch()
    lines = b"\xef\xbb\xbf../a b.jpg\r\n\r\n./one/c.png\none/c.png\n/data/d.jpg\none/c.jpg\nbad\xff.jpg\n"
    (tmp_path / "lists" / "all.txt").write_bytes(lines)
    photos = open_source(tmp_path / "lists" / "all.txt", WHOLE).photos
    assert [photo.key for photo in photos] == ["a b", "one/c.png", "data/d", "one/c.jpg", "bad\udcff"]
    assert photos[0].path.samefile(tmp_path / "a b.jpg") and photos[2].path == Path("/data/d.jpg")
    assert photos[0].stamp.startswith("0-") and photos[1].stamp == ""
    with pytest.raises(ValueError, match="'/x.jpg' and another photo of the list would both have 'x.jpg'"):
        keys_of(["x.jpg", "/x.jpg"])


def test_a_tar_is_read_as_webdataset_does(tmp_path):
    members = {
        "p/0.jpg": b"first", "p/0.mask.png": b"mask", "p/0.json": b"{}", "p/1.face.JPG": b"second", "p/.2.jpg": b"",
        "../../3.jpg": b"third", "notes": b"",
    }  # fmt: skip
    tar_of(tmp_path / "photos.v2.tar", members)
    photos, skipped, failures = open_source(tmp_path, WHOLE)
    assert [photo.name for photo in photos] == [
        f"photos.v2.tar/{n}" for n in ("p/0.jpg", "p/1.face.JPG", "../../3.jpg")
    ]
    assert [photo.key for photo in photos] == ["photos.v2/p/0", "photos.v2/p/1", "photos.v2/3"]
    assert [photo.content() for photo in photos] == [b"first", b"second", b"third"]
    assert skipped == ["photos.v2.tar/p/0.mask.png"] and failures == []


@pytest.mark.parametrize("cut", [1024, 1500, 2048])
def test_a_damaged_tar_gives_what_comes_before_the_damage(tmp_path, cut):
    whole = tar_of(tmp_path / "photos.tar", {"0.jpg": b"first", "1.jpg": b"second", "2.jpg": b"third"}).read_bytes()
    before = [photo.name for photo in open_source(tmp_path, WHOLE).photos[: cut // 1024]]
    for damaged in (whole[:cut], whole[: cut // 1024 * 1024] + b"garbage" * 200):
        (tmp_path / "photos.tar").write_bytes(damaged)
        photos, _, ((name, why),) = open_source(tmp_path, WHOLE)
        assert [photo.name for photo in photos] == before
        assert name == "photos.tar" and why.startswith("The tar is damaged or no plain tar (")


# ----------------------------------------------------------------------------
# Whole runs.


def test_one_run_takes_good_and_bad_photos_and_tars(edit, face, tmp_path):
    (tmp_path / "ann.smith.jpg").write_bytes(face)
    (tmp_path / "cut.jpg").write_bytes(face[:3000])
    tar_of(tmp_path / "good.tar", {"0.jpg": face, "1.jpg": b"no picture", "1.txt": b"but a text"})
    (tmp_path / "bad.tar").write_bytes(b"no tar at all" * 100)
    photos, out = tmp_path / "photos.txt", tmp_path / "out"
    photos.write_text("ann.smith.jpg\ncut.jpg\nmissing.jpg\ngood.tar\nbad.tar\nmissing.tar\n")
    status, said, complained = edit(photos, "--out", out, "--tar")
    assert status == 1 and "2 of 5 photos done; the tars are in" in said
    failed = dict(line.strip().split(": ", 1) for line in complained.rpartition("Failed:\n")[2].splitlines())
    assert failed.keys() == {"cut.jpg", "missing.jpg", "good.tar/1.jpg", "bad.tar", "missing.tar"}
    assert "No such file" in failed["missing.tar"] and "no plain tar" in failed["bad.tar"]
    samples = in_tars(out)
    assert samples.keys() == {"ann%2Esmith", "good/0"}
    assert all(tuple(sample) == RESULTS for sample in samples.values())
    assert json.loads(samples["good/0"]["result.json"])["photo"] == "0.jpg"

    # Once more: what is done is passed over, what failed is tried again, what has changed is told.
    (tmp_path / "cut.jpg").write_bytes(face)
    status, said, _ = edit(photos, "--out", out, "--tar")
    assert status == 1 and "3 of 5 photos done, 2 of them by earlier runs" in said
    assert in_tars(out) == samples | {"cut": in_tars(out)["cut"]}
    os.utime(tmp_path / "cut.jpg", (1, 1))
    photos.write_text("cut.jpg\n")
    status, said, complained = edit(photos, "--out", out, "--tar")
    assert status == 1 and "0 of 1 photos done" in said and "It has changed since its results were put" in complained
    status, said, complained = edit(photos, "--out", out, "--tar", "--set", "smile=1")
    assert (status, said) == (1, "") and "holds results of another edit (heads-" in complained


def test_a_photo_is_done_anew_where_anything_about_it_changed(edit, face, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (photos / "ann.jpg").write_bytes(face)

    def done(*words) -> bool:
        status, said, _ = edit(photos, "--out", out, *words)
        assert status == 0 and "1 of 1 photos done" in said
        return "earlier" not in said

    assert done() and not done()
    assert done("--set", "smile=1") and not done("--set", "smile=1") and done()
    os.utime(photos / "ann.jpg", (1, 1))
    assert done() and not done()
    (out / "ann" / "result.json").unlink()
    assert done()


def test_photos_that_are_encoded_at_once_stay_their_own(pipeline, face, tmp_path):
    """As on a GPU; a bad one among them is passed over."""
    with Image.open(io.BytesIO(face)) as photo:
        photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "c.png")
    (tmp_path / "a.jpg").write_bytes(face)
    (tmp_path / "b.jpg").write_bytes(face[:3000])
    photos = open_source(tmp_path, WHOLE).photos
    first, bad, last = edit_photos(pipeline, None, photos, Request({}))
    assert isinstance(bad, PhotoError) and bad.reason == "damaged"
    for photo, made in ((photos[0], first), (photos[2], last)):
        result = json.loads(made.files["result.json"])
        w = pipeline.encode(pipeline.align(photo.path))[0].numpy()
        assert result["photo"] == photo.name and np.allclose(result["w"], w, atol=1e-5)
    assert first.files["crop.png"] != last.files["crop.png"]


def test_a_full_disk_ends_the_run_and_leaves_nothing_half(edit, face, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        (photos / f"{name}.jpg").write_bytes(face)
    for words in ([], ["--tar"]):
        out = tmp_path / f"out{len(words)}"
        with nearly_full_disk():
            status, said, complained = edit(photos, "--out", out, *words)
        assert status == 1 and "photos done" not in said and list(tmp_path.rglob("*.png")) == []
        assert complained.count("cannot be written (File too large): make room on its disk, or") == 1
        assert {path.suffix for path in tmp_path.iterdir()} == {""} and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("words", [["--shard", "1/2"], ["--workers", "2"], ["--tar"]])
def test_one_photo_is_not_many(edit, face, tmp_path, words):
    (tmp_path / "ann.jpg").write_bytes(face)
    status, _, complained = edit(tmp_path / "ann.jpg", "--out", tmp_path / "out", *words)
    assert status == 1 and "are for many photos: give a folder, a list or a tar." in complained


@pytest.mark.parametrize("source", ["nowhere", "nowhere.txt", "nowhere.tar", "empty.txt", "folder.txt"])
def test_what_is_no_source_is_one_sentence(edit, tmp_path, source):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "folder.txt").mkdir()
    status, said, complained = edit(tmp_path / source, "--out", tmp_path / "out")
    assert (status, said) == (1, "") and source in complained
    assert complained.splitlines()[-1].startswith("preim3d: The")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------
# Killed.


def test_runs_killed_at_any_moment_leave_nothing_undone_twice_or_half(edit, face, tiny_weights, tmp_path):
    """As two shards, then as three; in the end all is there, bit for bit as of a run that nobody killed."""
    photos, straight = tmp_path / "photos", tmp_path / "straight"
    photos.mkdir()
    for name in "abcde":
        with Image.open(io.BytesIO(face)) as photo:
            photo.rotate(3 * ord(name) % 7).save(photos / f"{name}.jpg")
    assert edit(photos, "--out", straight)[0] == 0
    right = in_folders(straight)
    assert right.keys() == set("abcde")

    runs = []
    for out, words, moments in (("folders", [], (19, 5, 8, 24, 12)), ("tars", ["--tar"], (4, 2, 3, 7, 5))):
        for turn, moment in enumerate(moments + (0, 0, 0)):
            shard = f"{turn % 2 + 1}/2" if moment else f"{turn - len(moments) + 1}/3"
            runs.append((moment, tmp_path / out, [photos, "--out", tmp_path / out, "--shard", shard, *words]))
    statuses = killed_runs([(moment, out, ["edit", *words]) for moment, out, words in runs])
    assert [status for status, run in zip(statuses, runs) if run[0] == 0] == 6 * [0]
    assert statuses.count(-signal.SIGKILL) >= 4  # some end before the moment, or before its delay is over
    assert in_folders(tmp_path / "folders") == right and in_tars(tmp_path / "tars") == right
    lines = [json.loads(line) for path in (tmp_path / "folders").glob("*.jsonl") for line in path.open()]
    assert Counter(line["photo"] for line in lines) == {f"{name}.jpg": 1 for name in "abcde"}
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.slow
def test_a_killed_process_costs_the_photo_that_it_had(face, tiny_weights, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(face)
    photos = open_source(tmp_path, WHOLE).photos
    results = edit_by_processes(photos, Setup(tiny_weights, Request({}), 1), ["cpu"])
    first = next(results)
    (worker,) = (child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline()))
    worker.kill()
    (second, why), third = results
    assert [photo for photo, _ in (first, third)] == [photos[0], photos[2]] and second == photos[1] and why == KILLED
    assert isinstance(first[1], Made) and first[1].files["crop.png"] == third[1].files["crop.png"]
    with pytest.raises(ValueError, match="no device 'abacus'"):
        next(edit_by_processes(photos, Setup(tiny_weights, Request({}), 1), ["abacus"]))
