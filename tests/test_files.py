"""Unfinished files: whose they are, and that those of a killed process go; `whole_file` itself is in test_film.py."""

import os
import time
from pathlib import Path

import pytest
from killing import left_by_a_killed_process

from preim3d.files import ABANDONED_S, PREFIX, cannot_be_written, staging_folder, sweep, unfinished, whole_file


def test_what_a_killed_process_left_goes_and_what_others_write_stays(tmp_path):
    left_by_a_killed_process(tmp_path)
    running, foreign, old = (tmp_path / f"{name}x" for name in (unfinished(), f"{PREFIX}1-elsewhere-", f"{PREFIX}old"))
    for path in (running, foreign, old):
        path.mkdir()
    long_ago = time.time() - ABANDONED_S - 10
    os.utime(old, (long_ago, long_ago))
    (tmp_path / "grid.png").write_text("earlier")
    with staging_folder(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} >= {running.name, foreign.name, "grid.png"}
        assert len(list(tmp_path.iterdir())) == 4
    sweep.cache_clear()
    left_by_a_killed_process(tmp_path)
    with whole_file(tmp_path / "grid.png") as file:
        file.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {running.name, foreign.name, "grid.png"}
    assert (tmp_path / "grid.png").read_text() == "new"


@pytest.mark.parametrize(
    "error, remedy",
    [
        (OSError(28, "No space left on device"), "make room on its disk, or choose another folder"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "make room on its disk, or choose another"),
        (OSError(13, "Permission denied"), "cannot be written (Permission denied): choose another folder."),
    ],
)
def test_the_sentence_names_the_file_and_what_to_do(error, remedy):
    told = str(cannot_be_written(Path("out/head.glb"), error))
    assert told.startswith("out/head.glb cannot be written (") and remedy in told
