"""Many photos, on many machines: `python -m preim3d edit FOLDER|LIST|TAR --shard 1/8`.

sources.py ──> photos of this shard ── those not done ──> workers.py ──> six files each ──> folders or tars
                                             └──────────────── journal <─────────────────────┘

Every process writes a journal of its own, OUT/heads-RUN.jsonl, a line for each photo that is done or failed, and reads
all others' when it starts. So a run may be killed at any moment, and go on as any number of shards. A photo is done if
its newest line says so, of the same request and the same photo, and what the line names is there."""

import dataclasses
import hashlib
import io
import json
import os
import posixpath
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from preim3d.files import FullDisk, cannot_be_written
from preim3d.results import RESULTS, Made, Request, check_place, publish, staging_near
from preim3d.sources import Photo, Shard, Source, open_source
from preim3d.weights import checksum
from preim3d.workers import Setup, count_cores, count_gpus, edit_all, share_devices


PER_TAR = 100  # photos, of 2.5 MB each: what a killed run loses at most
MOST_NAMED = 20  # of the files that are passed over


class Line(NamedTuple):
    """A line of a journal: of one photo."""

    photo: str  # its name
    stamp: str
    request: str  # see `fingerprint_of`
    time: float  # seconds since 1970
    result: str = ""  # what must be there, below OUT
    failure: str = ""


def edit_many(
    path: Path,
    out: Path,
    request: Request,
    weights: Path,
    shard: Shard,
    device: str | None = None,
    workers: int | None = None,
    tars: bool = False,
) -> int:
    """Edits every photo of a shard that is not done yet; returns the exit status, 1 if one failed.

    Args:
        path: a folder, a list or a tar, see `sources.open_source`.
        out: the folder for the results.
        weights: a folder in pipeline layout.
        device, workers: None takes what there is, see `workers.share_devices`.
        tars: results go into tars of `PER_TAR` photos in place of a folder for each photo.

    Raises:
        ValueError: there is no photo, or nothing can be written to `out`.
        OSError: the disk is full; what is done stays done.
    """
    source = open_source(path, shard)
    asked = fingerprint_of(request, weights, tars)
    with ExitStack() as stack:
        staging = Path(stack.enter_context(staging_near(out)))
        before = read_journals(out, {photo.name for photo in source.photos})
        todo = [photo for photo in source.photos if not is_done(photo, before.get(photo.name), asked, out)]
        done_before = len(source.photos) - len(todo)
        failures = list(source.failures)
        if tars:
            twins = dict(find_twins(todo, before, asked, out))
            failures += twins.items()
            todo = [photo for photo in todo if photo.name not in twins]
        journal = Journal(out, asked)
        place = Tars(out, staging, journal) if tars else Folders(out, staging, journal)
        stack.callback(place.close)  # also where the run is stopped
        if todo:
            devices = share_devices(device, workers, count_gpus(device), count_cores())
            threads = max(1, count_cores() // len(devices)) if len(devices) > 1 else None
            failures += edit_into(place, todo, Setup(weights, request, threads), devices)
    report(source, shard, done_before, journal.done, failures, out, tars)
    return 1 if failures else 0


def edit_into(
    place: "Folders | Tars", photos: list[Photo], setup: Setup, devices: list[str | None]
) -> list[tuple[str, str]]:
    """Edits the photos, puts away what they give, and says so as it goes; returns the names of those that failed, and
    why."""
    from tqdm import tqdm

    failures = []
    # Closed in any case: the other processes end when no one takes their results.
    with closing(edit_all(photos, setup, devices)) as results, tqdm(total=len(photos), unit="photo") as progress:
        for photo, made in results:
            if isinstance(made, Made):
                try:
                    place.add(photo, made.files)
                    tqdm.write(f"{printable(photo.name)}: {' '.join(made.found)}", file=sys.stdout)
                except FullDisk:
                    raise
                except (ValueError, OSError) as error:
                    made = str(error)
            if isinstance(made, str):
                place.journal.write(photo, failure=made)
                failures.append((photo.name, made))
            progress.update()
    return failures


def report(
    source: Source,
    shard: Shard,
    done_before: int,
    done_now: int,
    failures: list[tuple[str, str]],
    out: Path,
    tars: bool,
) -> None:
    """Says what was done, and what could not be."""
    part = f"Shard {shard.number} of {shard.count} (by {shard.told_by}): " if shard.count > 1 else ""
    before = f", {done_before} of them by earlier runs" if done_before else ""
    where = f"the tars are in {out}" if tars else f"a folder for each is in {out}"
    print(f"{part}{done_before + done_now} of {len(source.photos)} photos done{before}; {where}.")
    if source.skipped:
        names = ", ".join(printable(name) for name in source.skipped[:MOST_NAMED])
        more = len(source.skipped) - MOST_NAMED
        and_more = f" and {more} more" if more > 0 else ""
        print(f"Passed over, as their names are not those of pictures: {names}{and_more}.")
    if failures:
        print(
            "Failed:", *(f"  {printable(name)}: {printable(why)}" for name, why in failures), sep="\n", file=sys.stderr
        )


def printable(name: str) -> str:
    """A file's name, which may be no UTF-8, as text that every terminal takes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def fingerprint_of(request: Request, weights: Path, tars: bool) -> str:
    """The same for the same edit, by the same weights, put away in the same way."""
    networks = {str(file.relative_to(weights)): checksum(file) for file in sorted(weights.rglob("*.safetensors"))}
    everything = json.dumps([dataclasses.asdict(request), networks, tars], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------
# What is done.


class Journal:
    """The lines that this process writes, in a file that no other writes to; made with the first line."""

    def __init__(self, out: Path, request: str):
        self.name = f"heads-{uuid.uuid4().hex[:12]}"
        self.path, self.request = out / f"{self.name}.jsonl", request
        self.done = 0  # by this process

    def write(self, photo: Photo, result: str = "", failure: str = "") -> None:
        """Raises OSError: one sentence."""
        line = Line(photo.name, photo.stamp, self.request, time.time(), result, failure)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line._asdict()) + "\n")
        except OSError as error:
            raise cannot_be_written(self.path, error) from error
        self.done += bool(result)


def read_journals(out: Path, names: set[str]) -> dict[str, Line]:
    """The newest line of each of these photos, of all journals there are."""
    newest: dict[str, Line] = {}
    for path in out.glob("heads-*.jsonl"):
        with open(path, encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = Line(**json.loads(text))
                except (ValueError, TypeError):  # the half line of a killed process
                    continue
                if line.photo in names and (line.photo not in newest or newest[line.photo].time < line.time):
                    newest[line.photo] = line
    return newest


def is_done(photo: Photo, line: Line | None, request: str, out: Path) -> bool:
    return line is not None and (line.stamp, line.request) == (photo.stamp, request) and is_there(line, out)


def is_there(line: Line, out: Path) -> bool:
    """Whether what a line says is done is there still."""
    return bool(line.result) and (out / line.result).is_file()


def find_twins(photos: list[Photo], before: dict[str, Line], request: str, out: Path) -> Iterator[tuple[str, str]]:
    """The names of photos that have changed since they were put into a tar, and what to do.

    Raises:
        ValueError: there are results of another edit, which tars cannot take the place of.
    """
    for photo in photos:
        line = before.get(photo.name)
        if line is not None and is_there(line, out):
            if line.request != request:
                raise ValueError(f"{out} holds results of another edit ({line.result}); choose another --out.")
            yield photo.name, f"It has changed since its results were put into {line.result}: delete that tar first."


# ----------------------------------------------------------------------------
# Where results go.


class Folders:
    """A folder for each photo."""

    def __init__(self, out: Path, staging: Path, journal: Journal):
        self.out, self.staging, self.journal = out, staging, journal

    def add(self, photo: Photo, files: dict[str, bytes]) -> None:
        """Raises ValueError or OSError: one sentence, and the folder is as it was."""
        folder = self.out / photo.key
        check_place(folder)
        publish(files, self.staging, folder)
        self.journal.write(photo, f"{photo.key}/{RESULTS[-1]}")

    def close(self) -> None:
        pass


class Tars:
    """Tars in webdataset's convention, a sample for each photo: key.crop.png, key.result.json and so on."""

    def __init__(self, out: Path, staging: Path, journal: Journal):
        self.out, self.staging, self.journal = out, staging, journal
        self.number = 0  # of the tar
        self.tar: tarfile.TarFile | None = None
        self.photos: list[Photo] = []  # that are in it

    def add(self, photo: Photo, files: dict[str, bytes]) -> None:
        """Raises FullDisk or OSError: one sentence, and the unfinished tar is gone."""
        folder, name = posixpath.split(photo.key)
        # A sample's name ends at its first dot, so that there must be none in it.
        key = posixpath.join(folder, name.replace("%", "%25").replace(".", "%2E"))
        try:
            if self.tar is None:
                self.tar = tarfile.open(self.staging / "unfinished.tar", "w")
            for name, content in files.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size, member.mtime = len(content), int(time.time())
                self.tar.addfile(member, io.BytesIO(content))
        except OSError as error:
            self.tar, self.photos = None, []
            raise cannot_be_written(self.path, error) from error
        self.photos.append(photo)
        if len(self.photos) == PER_TAR:
            self.close()

    @property
    def path(self) -> Path:
        return self.out / f"{self.journal.name}-{self.number:05d}.tar"

    def close(self) -> None:
        """Puts the tar into its place. The journal is written first: it counts once the tar is there."""
        if self.tar is None:
            return
        tar, photos, self.tar, self.photos = self.tar, self.photos, None, []
        try:
            tar.close()
            self.out.mkdir(parents=True, exist_ok=True)
            for photo in photos:
                self.journal.write(photo, self.path.name)
            os.replace(self.staging / "unfinished.tar", self.path)
        except OSError as error:
            raise cannot_be_written(self.path, error) from error
        self.number += 1
