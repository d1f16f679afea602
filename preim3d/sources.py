"""A folder of photos, a list of them or tars of them -> the photos of a shard. No torch: mistakes are told soon.

Every shard goes by the whole list, in the same order, and takes every n-th entry of it: that alone says who does what,
so that nothing has to be locked. Tars are shared out whole, since only their headers tell what is in them."""

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from preim3d.photo import PhotoError


# What in a folder is taken for a photo.
PICTURES = set(".jpg .jpeg .jfif .png .webp .tif .tiff .bmp .gif .ppm .avif .heic .heif".split())
TAR, LIST = ".tar", ".txt"
# Who a process is among those that a launcher started: torchrun and `accelerate launch`; srun. (SLURM_NTASKS is set in
# a batch script, too, which is one process whatever that says; the number of the step's tasks is srun's alone.)
LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))


class Shard(NamedTuple):
    """Which part of a list is meant."""

    number: int = 1  # from 1
    count: int = 1
    told_by: str = "--shard"

    def of(self, entries: list) -> list:
        return entries[self.number - 1 :: self.count]


def find_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """`2/8`, the second of eight; without a text what a launcher says, whose processes count from 0; else all.

    Raises:
        ValueError: there is no such shard.
    """
    if text is not None:
        number, slash, count = text.partition("/")
        told_by, first = "--shard", 1
    else:
        for rank, world in LAUNCHERS:
            if environment.get(rank) and environment.get(world):
                number, slash, count = environment[rank], "/", environment[world]
                told_by, first = f"{rank} and {world}", 0
                break
        else:
            return Shard()
    try:
        shard = Shard(int(number) + 1 - first, int(count), told_by)
    except ValueError:
        shard = Shard(0, 0)
    if not slash or not 1 <= shard.number <= shard.count:
        given = f"not {text!r}" if text is not None else f"not {told_by} of {number!r} and {count!r}"
        raise ValueError(f"A shard must be one of 1/N to N/N, such as 1/2 and 2/2 for two machines, {given}.")
    return shard


class Photo(NamedTuple):
    """A photo of a list: a file, or some bytes of a tar."""

    name: str  # in the folder, the list or the tar; the same on every machine
    key: str  # the path of its results, below the folder for results
    path: Path  # of its file, or of the tar
    stamp: str  # another one if the photo has changed; empty where there is none
    start: int | None = None  # of its bytes in the tar
    size: int = 0

    def content(self) -> Path | bytes:
        """What `load_photo` reads. Raises PhotoError."""
        if self.start is None:
            return self.path
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise PhotoError("missing", f"The tar {str(self.path)!r} cannot be read: {error.strerror}.") from error


class Source(NamedTuple):
    """The photos of a shard, in order."""

    photos: list[Photo]
    skipped: list[str]  # names of what is no picture
    failures: list[tuple[str, str]]  # names of tars, and why they cannot be read, or not to their ends


def is_many(path: Path) -> bool:
    """Whether a path is of many photos: a folder, a list or a tar."""
    return path.is_dir() or path.suffix.lower() in (TAR, LIST)


def list_photos(path: Path) -> tuple[list[Path], list[str]]:
    """The photos at a path in order, and the names of the other files in that folder; tars, where it has no photo.

    Raises:
        ValueError: there is none.
    """
    if not path.exists():
        raise ValueError(f"There is no photo or folder {str(path)!r}.")
    if not path.is_dir():
        return [path], []
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
    taken = [name for name in names if ending(name) in PICTURES] or [name for name in names if ending(name) == TAR]
    if not taken:
        raise ValueError(f"There is no picture in the folder {str(path)!r}; give one with JPEG or PNG files.")
    others = set(taken)
    return [path / name for name in taken], [name for name in names if name not in others]


def open_source(path: Path, shard: Shard) -> Source:
    """The photos that a shard has of a folder, of a list (.txt: a path a line, from the list's own folder on) or of a
    tar; a list's paths may be of tars, too.

    Raises:
        ValueError: there is nothing of that name, or no photo in it.
    """
    if path.is_dir():
        files, skipped = list_photos(path)
        base, names = path, [file.name for file in files]
    elif path.suffix.lower() == LIST:
        base, names, skipped = path.parent, read_list(path), []
    else:
        list_photos(path)  # says that it is missing
        base, names, skipped = path.parent, [path.name], []
    photos, failures = [], []
    for name, key in shard.of(list(zip(names, keys_of(names)))):
        file = base / name
        if ending(name) != TAR:
            photos.append(Photo(name, key, file, stamp_of(file)))
            continue
        try:
            for photo in photos_of_tar(file, name, key, skipped):
                photos.append(photo)
        except tarfile.TarError as error:
            failures.append((name, f"The tar is damaged or no plain tar ({error}); what comes before that is done."))
        except OSError as error:
            failures.append((name, f"The tar cannot be read: {error.strerror}."))
    return Source(photos, skipped, failures)


def read_list(path: Path) -> list[str]:
    """The paths in a list, each once, in order."""
    try:
        # Names of files are bytes; those that are no UTF-8 come through, too.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            lines = (line.rstrip("\r\n") for line in file)
            names = list(dict.fromkeys(posixpath.normpath(line) for line in lines if line.strip()))
    except OSError as error:
        raise ValueError(f"The list {str(path)!r} cannot be read: {error.strerror}.") from None
    if not names:
        raise ValueError(f"The list {str(path)!r} names no photo; write one path a line.")
    return names


def keys_of(names: list[str]) -> list[str]:
    """Where the results of each photo go: its path without the ending, or with it where several would have one folder:
    ann.jpg and ann.png, and Ann.jpg on a disk that takes no notice of capitals.

    Raises:
        ValueError: two would have one place all the same.
    """
    inside = [below(name) for name in names]
    stems = Counter(posixpath.splitext(name)[0].lower() for name in inside)
    keys, taken = [], set()
    for name, path in zip(names, inside):
        stem = posixpath.splitext(path)[0]
        alone = stems[stem.lower()] == 1
        if not alone and path in taken:
            raise ValueError(f"{name!r} and another photo of the list would both have {path!r} for their results.")
        if not alone:
            taken.add(path)
        keys.append(stem if alone else path)
    return keys


def below(name: str) -> str:
    """A path that leads nowhere out of the folder it is put into."""
    path = posixpath.normpath(name).lstrip("/")
    while path.startswith("../"):
        path = path[3:]
    return path


def photos_of_tar(path: Path, name: str, key: str, skipped: list[str]) -> Iterator[Photo]:
    """The photos of a tar in webdataset's convention: what has the same name up to its first dot is one sample, whose
    first picture is the photo; further ones are put on `skipped`.

    Raises:
        tarfile.TarError: it is none, or ends too soon.
    """
    samples = set()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, base = posixpath.split(member.name)
            stem, _, _ = base.partition(".")
            if not member.isfile() or not stem or ending(base) not in PICTURES:
                continue
            sample = below(posixpath.join(folder, stem))
            if sample in samples:
                skipped.append(f"{name}/{member.name}")
                continue
            samples.add(sample)
            stamp = f"{member.size}-{int(member.mtime)}"
            yield Photo(f"{name}/{member.name}", f"{key}/{sample}", path, stamp, member.offset_data, member.size)
        # tarfile takes whatever is no header for the end.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")


def stamp_of(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return ""  # what is wrong will be told when it is read
    return f"{status.st_size}-{int(status.st_mtime)}"


def ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
