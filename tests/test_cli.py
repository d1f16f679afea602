"""`python -m preim3d`: what it writes, what it says, and that a mistake leaves everything as it was."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from conftest import nearly_full_disk
from killing import left_by_a_killed_process
from PIL import Image

from preim3d.__main__ import main
from preim3d.bench import GOALS_MB, GOALS_S, table
from preim3d.results import RESULTS
from preim3d.weights import BUNDLED


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def command(tiny_weights, monkeypatch, capsys):
    """Runs the command line in this process with the tiny weights -> exit status, what it printed, its complaints."""
    monkeypatch.setenv("PREIM3D_WEIGHTS", str(tiny_weights))

    def run(*words) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        return (status, *capsys.readouterr())

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_edit_writes_five_files(command, portrait, tmp_path):
    status, said, _ = command(
        "edit", portrait, "--set", "smile=2", "--set", "age=-1", "--out", tmp_path / "new" / "out"
    )
    assert status == 0 and "head.glb" in said
    assert "1 face found" in said and "Reconstruction and photo: " in said
    assert sorted(contents(tmp_path)) == sorted(f"new/out/{name}" for name in RESULTS)  # no temporary file is left
    out = tmp_path / "new" / "out"
    assert Image.open(out / "crop.png").size == (512, 512)
    assert Image.open(out / "grid.png").size == Image.open(out / "edited_grid.png").size
    assert (out / "grid.png").read_bytes() != (out / "edited_grid.png").read_bytes()
    assert (out / "head.glb").read_bytes()[:4] == b"glTF"
    result = json.loads((out / "result.json").read_text())
    assert result["strengths"] == {"smile": 2.0, "age": -1.0} and result["photo"] == "astronaut.jpg"
    assert result["faces_found"] == 1
    assert set(result["camera"]) == {"yaw_deg", "pitch_deg"} and abs(result["camera"]["yaw_deg"]) <= 45
    assert result["likeness"]["distance"] > 0 and result["likeness"]["words"] in said
    assert result["face"] == 1


def test_the_result_is_readable_and_exact(command, pipeline, portrait, tmp_path):
    assert command("edit", portrait, "--set", "smile=2", "--out", tmp_path)[0] == 0
    text = (tmp_path / "result.json").read_text()
    result, lines = json.loads(text), text.splitlines()
    assert '    "yaw_deg": [-30, 0, 30]' in lines and '    "smile": 2.0' in lines
    assert len(lines) < 40 + len(result["w"])
    w = pipeline.encode(pipeline.align(portrait))[0].numpy()
    assert np.array_equal(np.array(result["w"], np.float32), w)


def test_the_mesh_is_in_metres_and_textured_on_request(command, pipeline, portrait, tmp_path):
    size = 0.42 * np.ptp(pipeline(portrait, mesh=True).mesh.vertices, axis=0)
    for out, words in (("plain", []), ("textured", ["--texture"])):
        assert command("edit", portrait, "--out", tmp_path / out, *words)[0] == 0
        mesh = trimesh.load(tmp_path / out / "head.glb", force="mesh")
        assert np.allclose(mesh.extents, size, rtol=0.02)
        result = json.loads((tmp_path / out / "result.json").read_text())
        assert result["mesh"]["unit"] == "metre" and (mesh.visual.uv is not None) == (out == "textured")


def test_which_of_several_faces_is_told_and_counts_from_1(command, portrait, tmp_path):
    group = Image.new("RGB", (1024, 512))
    with Image.open(portrait) as one:
        group.paste(one.resize((440, 440)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (0, 30))
        group.paste(one.resize((512, 512)), (512, 0))
    group.save(tmp_path / "two.jpg", quality=95)
    status, said, _ = command("edit", tmp_path / "two.jpg", "--out", tmp_path / "1")
    assert status == 0 and "2 faces found; face 1 (the largest) is seen from" in said
    status, said, _ = command("edit", tmp_path / "two.jpg", "--face", "2", "--out", tmp_path / "2")
    assert status == 0 and "2 faces found; face 2 is seen from" in said
    first, second = (json.loads((tmp_path / n / "result.json").read_text()) for n in "12")
    assert (first["face"], second["face"], second["faces_found"]) == (1, 2, 2) and first["w"] != second["w"]
    status, _, complained = command("edit", tmp_path / "two.jpg", "--face", "3", "--out", tmp_path / "3")
    assert status == 1 and "There is no face 3 in the photo: 2 found, numbered from 1 (the largest)." in complained


def test_an_edit_of_nothing_writes_the_same_grid_twice(command, portrait, tmp_path):
    assert command("edit", portrait, "--set", "smile=0", "--out", tmp_path)[0] == 0
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "edited_grid.png").read_bytes()


def test_a_folder_does_them_all_and_lists_what_failed(command, portrait, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("ann.jpg", "bob.png", "Bob.jpg"):
        Image.open(portrait).save(photos / name)
    (photos / "cut.jpg").write_bytes(portrait.read_bytes()[:5000])
    Image.new("RGB", (300, 300), "green").save(photos / "grass.png")
    (photos / "notes.txt").write_text("not a photo")
    status, said, complained = command("edit", photos, "--out", out)
    assert status == 1
    (journal,) = out.glob("heads-*.jsonl")
    folders = sorted(path for path in out.iterdir() if path != journal)
    assert [path.name for path in folders] == ["Bob.jpg", "ann", "bob.png"]
    assert all(sorted(path.name for path in folder.iterdir()) == sorted(RESULTS) for folder in folders)
    assert "3 of 5 photos done" in said and "notes.txt" in said
    assert "cut.jpg: " in complained and "grass.png: No face found" in complained


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--set", "smiel=2"], "did you mean `smile`"),
        (["--set", "smile=much"], "must be a number"),
        (["--set", "smile=nan"], "strength of `smile`"),
        (["--set", "smile"], "NAME=STRENGTH"),
        (["--face", "0"], "counts from 1, the largest face, so it cannot be 0"),
        (["--face", "-1"], "counts from 1"),
        (["--weights", "nowhere"], "no folder of weights"),
        (["--out", "/dev/null/out"], "Nothing can be written to /dev/null/out"),
        (["--device", "abacus"], "no device 'abacus'"),
    ],
)
def test_a_mistake_is_one_sentence_and_touches_nothing(command, tmp_path, words, sentence):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.new("RGB", (100, 100)).save(photo)
    out.mkdir()
    (out / "grid.png").write_bytes(b"earlier")
    before = contents(tmp_path)
    status, said, complained = command("edit", photo, "--out", out, *words)
    assert status == 1 and said == "" and sentence in complained
    assert complained.strip().splitlines()[-1].startswith("preim3d: ") and "Traceback" not in complained
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "content, sentence",
    [(b"", "empty"), (b"hello", "not a picture"), (None, "There is no photo or folder")],
)
def test_a_bad_photo_leaves_earlier_results(command, portrait, tmp_path, content, sentence):
    photo, out = tmp_path / "bad.jpg", tmp_path / "out"
    if content is not None:
        photo.write_bytes(content)
    out.mkdir()
    (out / "grid.png").write_bytes(b"earlier")
    status, _, complained = command("edit", photo, "--out", out)
    assert status == 1 and sentence in complained and contents(out) == {"grid.png": b"earlier"}


@pytest.mark.parametrize(
    "words",
    [
        ["edit", "", "--out", "out"],
        ["edit", " ", "--out", "out"],
        ["edit", "photo.png", "--out", ""],
        ["bench", ""],
        ["convert", "--eg3d", "", "--out", "out"],
        ["convert", "--directions", "", "--out", "out"],
        ["convert", "--eg3d", "photo.png", "--out", ""],
    ],
)
def test_an_empty_name_is_not_the_current_folder(command, portrait, tmp_path, monkeypatch, capsys, words):
    (tmp_path / "photo.png").write_bytes(portrait.read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        command(*words)
    assert "no name is given; if you mean the current folder, write a dot" in capsys.readouterr().err
    assert list(contents(tmp_path)) == ["photo.png"]


def test_empty_weights_are_not_the_current_folder(command, portrait, tmp_path):
    status, _, complained = command("edit", portrait, "--out", tmp_path, "--weights", "")
    assert status == 1 and "The name of the weights is empty (as asked for)" in complained


def test_an_improved_head_and_its_recipe_are_written(command, portrait, tmp_path):
    out = tmp_path / "out"
    assert command("edit", portrait, "--inversion", "hybrid", "--steps", 1, "--out", out)[0] == 0
    assert json.loads((out / "result.json").read_text())["inversion"] == "hybrid"
    assert json.loads((out / "head.recipe.json").read_text())["tuning"]
    status, _, complained = command("edit", portrait, "--seconds", 3, "--out", out)
    assert status == 1 and "`seconds` are for slower inversions" in complained


def test_a_full_disk_names_the_file_and_leaves_earlier_results(command, portrait, tmp_path):
    (tmp_path / "grid.png").write_bytes(b"earlier")
    with nearly_full_disk():
        status, _, complained = command("edit", portrait, "--out", tmp_path)
    assert status == 1 and contents(tmp_path) == {"grid.png": b"earlier"}
    assert f"{tmp_path / 'crop.png'} cannot be written (File too large): make room on its disk, or" in complained


def test_what_a_killed_run_left_goes(command, portrait, tmp_path):
    out = tmp_path / "new" / "out"
    left_by_a_killed_process(tmp_path)  # before there was a folder for the results
    assert command("edit", portrait, "--out", out)[0] == 0
    assert sorted(contents(tmp_path)) == sorted(f"new/out/{name}" for name in RESULTS)


def test_a_folder_in_the_place_of_a_result_is_told_before_the_work(command, portrait, tmp_path):
    (tmp_path / "head.glb").mkdir()
    status, _, complained = command("edit", portrait, "--out", tmp_path)
    assert status == 1 and "head.glb is a folder" in complained and contents(tmp_path) == {}


def test_an_empty_folder_is_told(command, tmp_path):
    status, _, complained = command("edit", tmp_path, "--out", tmp_path / "out")
    assert status == 1 and "no picture in the folder" in complained


def test_info_lists_the_attributes(command):
    status, said, _ = command("info")
    assert status == 0 and "PREIM3D_WEIGHTS" in said and "eyeglasses" in said and "90%" in said


def test_info_has_no_overlong_line(command):
    if not (BUNDLED / "evaluation.json").is_file():
        pytest.skip("weights/faces holds no evaluation")
    status, said, _ = command("info", "--weights", BUNDLED)
    assert status == 0 and "identity_own: 0." in said
    assert max(len(line) for line in said.splitlines()) < 120 + len(str(BUNDLED))


def test_help_and_mistakes_are_answered_without_torch():
    """In a process of its own: torch and diffusers alone would take over three seconds."""
    script = (
        "import sys; from preim3d.__main__ import main; status = main(['edit', 'nowhere.jpg', '--out', 'out']);"
        "print(status, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["1", "False", "False"], run.stderr
    help_text = subprocess.run([sys.executable, "-m", "preim3d", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert help_text.returncode == 0 and "edit" in help_text.stdout


@pytest.mark.slow
def test_bench_measures_every_step(command, portrait):
    status, said, complained = command("bench", portrait, "--json")
    assert status == 0, complained
    figures = json.loads(said)
    assert set(GOALS_S) <= set(figures["seconds"]) and set(GOALS_MB) <= set(figures["peak_memory_mb"])
    assert all(seconds > 0 for seconds in figures["seconds"].values()) and "cores" in figures["machine"]
    assert table(figures).count("\n| ") == len(figures["seconds"]) + len(figures["peak_memory_mb"])
    assert " | 2000 MB |" in table(figures) and "| photo to 3x3 grid | " in table(figures)
