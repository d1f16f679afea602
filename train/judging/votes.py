"""Pictures of several methods -> the order in which one person compares them; votes -> a file; the file -> how often
one method is preferred (paper, 4.4, Table 6)."""

import csv
import fcntl
import hashlib
import json
import os
import threading
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from preim3d.files import cannot_be_written, whole_file
from preim3d.photo import PhotoError, load_photo
from preim3d.sources import list_photos


ANSWERS = ("left", "right", "cannot tell")
CONFIDENCE = 0.95


class Trial(NamedTuple):
    """What one person is asked at once."""

    photo: str
    left: str  # a method
    right: str


class Vote(NamedTuple):
    time: str  # UTC, ISO 8601
    voter: str
    number: int  # which of the voter's trials
    photo: str
    left: str
    right: str
    answer: str  # one of ANSWERS


@dataclass(frozen=True)
class Study:
    """A question about pictures that methods made of photos. A photo goes by its file's name, less the ending."""

    question: str
    photos: dict[str, Path]
    results: dict[str, dict[str, Path]]  # method -> photo -> picture
    seed: int

    def about(self) -> dict:
        """What votes must share to be counted together."""
        digest = hashlib.sha256()
        for pictures in (self.photos, *self.results.values()):
            for name in self.photos:
                digest.update(hashlib.sha256(pictures[name].read_bytes()).digest())
        methods = list(self.results)
        return {"question": self.question, "methods": methods, "seed": self.seed, "pictures": digest.hexdigest()[:16]}

    def trials(self, voter: str) -> list[Trial]:
        """All that one voter can be asked, in an order that seed and voter decide.

        Wherever the voter stops, pairs of methods were shown equally often, give or take one. Over all trials either
        method of a pair stands on the left equally often, give or take one."""
        rng = np.random.default_rng([self.seed, *voter.encode()])
        names, pairs = list(self.photos), list(combinations(self.results, 2))
        orders = [rng.permutation(len(names)) for _ in pairs]
        swaps = [(rng.permutation(len(names)) + rng.integers(2)) % 2 for _ in pairs]
        trials = []
        for turn in range(len(names)):
            for pair in rng.permutation(len(pairs)):
                left, right = pairs[pair][:: -1 if swaps[pair][turn] else 1]
                trials.append(Trial(names[orders[pair][turn]], left, right))
        return trials


def open_study(question: str, photos: Path, folders: dict[str, Path], seed: int) -> Study:
    """Finds the pictures and reads each once, so that a voter meets no damaged one.

    Raises ValueError where a folder or a picture is missing, or a picture cannot be read."""
    found = pictures_by_name(photos)
    results = {}
    for method, folder in folders.items():
        pictures = pictures_by_name(folder)
        missing = [name for name in found if name not in pictures]
        if missing:
            raise ValueError(
                f"{folder} has no picture for {len(missing)} of the {len(found)} photos, such as {missing[0]}: add"
                f" them, named as their photos are, or take these photos out of {photos}."
            )
        results[method] = {name: pictures[name] for name in found}
    for path in (*found.values(), *(path for pictures in results.values() for path in pictures.values())):
        try:
            load_photo(path)
        except PhotoError as error:
            raise ValueError(f"{path} cannot be shown: {error}") from error
    return Study(question, found, results, seed)


def pictures_by_name(folder: Path) -> dict[str, Path]:
    """The pictures of a folder in order, by their names less the ending: ann.jpg's result may be an ann.png."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one with pictures in it.")
    found = {}
    for path in list_photos(folder)[0]:
        if path.stem in found:
            raise ValueError(f"{found[path.stem]} and {path.name} have one name; keep one of them.")
        found[path.stem] = path
    return found


class Votes:
    """The votes of one study, in a file that only grows: a line of JSON about the study, then one for each vote.

    A vote is on the disk when `add` returns. A process that was killed can leave half a line of a vote that nobody was
    told is cast; the next start takes it away.

    Raises ValueError where the file is another study's, no file of votes, or in use; OSError where it cannot be
    written."""

    def __init__(self, path: Path, about: dict):
        self.path, self.lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_be_written(path, error) from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another page takes votes into {path}: stop it, or give another --out.") from None
        told, votes, whole = read_lines(path)
        for key, value in told.items():
            if about[key] != value:
                differs = f"{key}: {shown(value)}; now: {shown(about[key])}"
                raise ValueError(f"{path} has votes of another study ({differs}): give another --out.")
        self.file.truncate(whole)
        if not told:
            self._append(about)
        self.cast = defaultdict(set)  # voter -> numbers of trials
        for vote in votes:
            self.cast[vote.voter].add(vote.number)

    def add(self, vote: Vote) -> None:
        """A trial counts once, whatever a voter clicks. Raises OSError where the disk takes no more; the file is then
        as it was."""
        with self.lock:
            if vote.number not in self.cast[vote.voter]:
                self._append(vote._asdict())
                self.cast[vote.voter].add(vote.number)

    def _append(self, line: dict) -> None:
        end = os.fstat(self.file.fileno()).st_size
        words = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        try:
            left = words
            while left:  # a disk that fills up takes a part first, and then says so
                left = left[self.file.write(left) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            self.file.truncate(end)
            raise cannot_be_written(self.path, error) from error


def shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def read_votes(path: Path) -> tuple[dict, list[Vote]]:
    """What the study is about, and its votes so far; the page may be taking more meanwhile.

    Raises ValueError where there is no such file, or it is no file of votes."""
    if not path.is_file():
        raise ValueError(f"There are no votes in {path}: give the --out of a page that took some.")
    told, votes, _ = read_lines(path)
    if not told:
        raise ValueError(f"{path} is empty: give the --out of a page that took votes.")
    return told, votes


def read_lines(path: Path) -> tuple[dict, list[Vote], int]:
    """About the study ({} in a new file), its votes, and how many bytes they take up: beyond that is half a line."""
    words = path.read_bytes()
    whole = words.rfind(b"\n") + 1
    try:
        told, *lines = (json.loads(line) for line in words[:whole].splitlines()) if whole else ({},)
        votes = [Vote(**line) for line in lines]
        if whole and set(told) != {"question", "methods", "seed", "pictures"}:
            raise ValueError
    except (ValueError, TypeError):
        whole = None
    # Half a line that is the whole file: only of one that a killed start left.
    if whole is None or (not whole and words and not words.startswith(b'{"question"'[: len(words)])):
        raise ValueError(f"{path} is no file of votes: give another --out.")
    return told, votes, whole


class Tally(NamedTuple):
    """Votes on two methods."""

    first: str
    second: str
    wins: int  # the first was preferred
    losses: int
    undecided: int

    def rate(self) -> tuple[float, float, float] | None:
        """How often the first is preferred, of votes that decide, and Wilson's interval at 95 %; None without any.

        The interval takes votes for independent; where few people gave many each, the truth is less certain."""
        decided = self.wins + self.losses
        if not decided:
            return None
        interval = binomtest(self.wins, decided).proportion_ci(CONFIDENCE, method="wilson")
        return self.wins / decided, float(interval.low), float(interval.high)


def tally(methods: list[str], votes: list[Vote]) -> list[Tally]:
    """One for each pair of methods, in their order."""
    counts = defaultdict(int)
    for vote in votes:
        preferred = {"left": vote.left, "right": vote.right}.get(vote.answer)
        counts[frozenset((vote.left, vote.right)), preferred] += 1
    return [
        Tally(*pair, *(counts[frozenset(pair), preferred] for preferred in (*pair, None)))
        for pair in combinations(methods, 2)
    ]


def table(told: dict, votes: list[Vote]) -> str:
    """Markdown: the question, and a row for each pair of methods."""
    voters = len({vote.voter for vote in votes})
    lines = [
        f"{told['question']} Votes: {len(votes)}, voters: {voters}.",
        "",
        "| first > second | first | second | cannot tell | rate of first | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for pair in tally(told["methods"], votes):
        rate = pair.rate()
        share, interval = (f"{rate[0]:.2f}", f"{rate[1]:.2f} to {rate[2]:.2f}") if rate else ("-", "-")
        lines.append(
            f"| {pair.first} > {pair.second} | {pair.wins} | {pair.losses} | {pair.undecided} | {share} | {interval} |"
        )
    return "\n".join(lines)


def write_csv(path: Path, votes: list[Vote]) -> None:
    """A row for each vote. Raises OSError with an earlier file whole."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Vote._fields)
        writer.writerows(votes)
