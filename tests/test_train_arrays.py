"""Files that one stage makes and another reads: the right ones are read, each wrong one is told in one sentence."""

import numpy as np
import pytest

from train.heads.source import HeadSource
from train.loop.arrays import open_arrays


def test_arrays_are_read_by_name(tmp_path):
    np.savez(tmp_path / "made.npz", a=np.arange(3), b=np.ones(2))
    assert open_arrays(tmp_path / "made.npz", ["a"], "make")["b"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["text", "nothing", "half", "one array", "without b"])
def test_another_file_is_told(tmp_path, kind):
    path = tmp_path / "given.npz"
    np.savez(path, a=np.zeros(1000))
    if kind == "text":
        path.write_text("no arrays at all")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"given\.npz is not what this version's `python -m train\.thing` makes"):
        open_arrays(path, ["a", "b"], "python -m train.thing")


def test_a_source_of_heads_is_told_from_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; make it with `python -m train.heads build`"):
        HeadSource(tmp_path / "none.npz")
    np.savez(tmp_path / "latents.npz", w=np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="latents.npz is not what this version's"):
        HeadSource(tmp_path / "latents.npz")
