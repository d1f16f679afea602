"""Posed photos in EG3D's layout, a folder or a zip with dataset.json: {"labels": [["00000/name.png", [25 floats]],
...]}. Read one by one by a data loader's processes, so memory does not grow with the dataset."""

import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


MAX_UNREADABLE = 100  # in a row: then the fault is not the photos'


class PosedPhotos(Dataset):
    """Item i: image uint8 [3, size, size], camera [25]. A photo that cannot be read is reported, and the next one
    taken.

    Args:
        path: a folder or zip of photos with a dataset.json in it.
        size: side of the images given back.
        mirror: every photo a second time, left and right exchanged.
    """

    def __init__(self, path: Path | str, size: int, mirror: bool = False):
        self.path, self.size, self.mirror = Path(path), size, mirror
        self.zipped = self.path.suffix.lower() == ".zip"
        self._archives: dict[int, zipfile.ZipFile] = {}  # per process: an open file must not be shared
        try:
            labels = json.loads(self._read("dataset.json"))["labels"] or []
        except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise FileNotFoundError(
                f"{path} has no dataset.json with camera labels; make one with `python -m train.prepare`."
            ) from error
        self.names = [name for name, _ in labels]
        if not labels or any(label is None or len(label) != 25 for _, label in labels):
            raise ValueError(f"{path}: every photo in dataset.json needs a camera label of 25 numbers.")
        self.cameras = np.array([label for _, label in labels], np.float32)

    def __len__(self) -> int:
        return len(self.names) * (2 if self.mirror else 1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= len(self):
            raise IndexError(index)
        for attempt in range(MAX_UNREADABLE):
            mirrored, i = divmod((index + attempt) % len(self), len(self.names))
            try:
                with Image.open(io.BytesIO(self._read(self.names[i]))) as photo:
                    photo = photo.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
            except (OSError, KeyError, SyntaxError, ValueError, zipfile.BadZipFile, UnidentifiedImageError) as error:
                print(f"{self.path}: {self.names[i]} cannot be read ({error}); left out.", file=sys.stderr, flush=True)
                continue
            pixels, camera = np.array(photo), torch.from_numpy(self.cameras[i])
            if mirrored:
                pixels, camera = pixels[:, ::-1].copy(), mirror_camera(camera)
            return torch.from_numpy(pixels).permute(2, 0, 1), camera
        raise ValueError(f"{self.path}: {MAX_UNREADABLE} photos in a row cannot be read.")

    def _read(self, name: str) -> bytes:
        if not self.zipped:
            return (self.path / name).read_bytes()
        archive = self._archives.get(os.getpid())
        if archive is None:
            archive = self._archives[os.getpid()] = zipfile.ZipFile(self.path)
        return archive.read(name)

    def __getstate__(self):
        return self.__dict__ | {"_archives": {}}


def mirror_camera(camera: Tensor) -> Tensor:
    """The label [..., 25] of the mirrored photo: entries [0, 1], [0, 2], [0, 3], [1, 0] and [2, 0] of cam2world
    negated."""
    signs = torch.ones(25)
    signs[[1, 2, 3, 4, 8]] = -1
    return camera * signs.to(camera)


class Shuffled:
    """Batches of indices for one of several processes, without end: each epoch in an order of its own, and batch k the
    same one whenever the run was resumed."""

    def __init__(self, count: int, batch: int, seed: int, *, process: int = 0, processes: int = 1, first: int = 0):
        self.count, self.batch, self.seed = count, batch, seed
        self.process, self.processes, self.first = process, processes, first

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, None
        start = (self.first * self.processes + self.process) * self.batch
        while True:
            indices = []
            for place in range(start, start + self.batch):
                if place // self.count != epoch:
                    epoch = place // self.count
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
                indices.append(int(order[place % self.count]))
            yield indices
            start += self.processes * self.batch


def load_batches(photos: PosedPhotos, order: Shuffled, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images [B, 3, S, S] in [-1, 1] and cameras [B, 25], read ahead by `workers` processes (0: this
    one)."""
    loader = DataLoader(
        photos,
        batch_sampler=order,
        num_workers=workers,
        # A process that was forked from one with threads may hang.
        multiprocessing_context="spawn" if workers else None,
    )
    for images, cameras in loader:
        yield images.float() / 127.5 - 1, cameras
