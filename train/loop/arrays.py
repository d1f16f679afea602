"""Files of named arrays (.npz) that one stage makes and another reads."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile


def open_arrays(path: Path | str, names: Iterable[str], maker: str) -> NpzFile:
    """The arrays of a file by name, each read when it is asked for; `maker` is the command that makes such a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, or lacks one of `names`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; make it with `{maker}`.")
    try:
        stored = np.load(path)
        if isinstance(stored, NpzFile) and set(names) <= set(stored.files):
            return stored
    except (ValueError, EOFError, zipfile.BadZipFile):  # text, nothing at all, a damaged archive
        pass
    raise ValueError(f"{path} is not what this version's `{maker}` makes; give such a file, or make it again.")
