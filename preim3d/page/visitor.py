"""What the page keeps of one session: a latent, edits, a few pictures in memory; files in a folder of its own."""

import base64
import io
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from preim3d.edits import History, Plan
from preim3d.judge import Judgement
from preim3d.tuning import Tuning
from preim3d.turntable import Angles


class OutOfDate(Exception):
    """Something else is shown by now: whatever was being made is neither kept nor shown."""


@dataclass
class Stage:
    """What one browser is about: one head at a time. All work for another one is out of date and ends."""

    shown: str = ""  # key of the visitor whose head is shown, or being made
    former: list[str] = field(default_factory=list)  # of those before: the browser may still show one of them
    awaited: str = ""  # where the photo lies that was dropped in last, until it is taken up
    taken: str = ""  # where the one lay that was taken up last
    given_up: set[str] = field(default_factory=set)  # photos that waited when the visitor chose something else

    def await_photo(self, file: str) -> None:
        """A photo was dropped in, and waits in the queue: what is being made before it is out of date."""
        if file != self.taken:  # else this note was overtaken by the photo itself
            self.awaited = file

    def give_up_photo(self) -> None:
        """Whatever photo waits is no longer wanted."""
        self.given_up |= {self.awaited} - {""}
        self.awaited = ""

    def take_up(self, file: str) -> bool:
        """Whether the photo, whose turn has come, is still wanted."""
        if file in self.given_up or self.awaited not in ("", file):
            self.given_up.discard(file)
            return False
        self.awaited, self.taken = "", file
        return True


def new_turn() -> str:
    return secrets.token_hex(4)


@dataclass
class Sliders:
    """Where the sliders stand: as the browser tells, or as the server moved them. Work for other values is out of
    date."""

    turn: str = field(default_factory=new_turn)  # anew whenever the server moves them
    told: tuple[float, ...] | None = None  # by the browser, last in this turn,
    told_at_ms: float = 0.0  # by its clock
    followed: tuple[float, ...] | None = None  # what was told when the head was last brought in line

    def note(self, at_ms: float, turn: str, values: tuple[float, ...]) -> None:
        """What the browser tells. Notes overtake each other; and what it read before it was told that the sliders were
        moved, as an undo does, is void."""
        if turn == self.turn and at_ms > self.told_at_ms:
            self.told, self.told_at_ms = values, at_ms

    @property
    def moved_on(self) -> bool:
        """Whether the browser has told other values than those that are followed."""
        return self.told != self.followed

    def move(self) -> None:
        """The server moves them: what the browser told before is void."""
        self.turn, self.told, self.followed = new_turn(), None, None


KEPT_PER_KIND = 2  # files of one kind: the newest, and the one that a browser may still be loading


@dataclass
class Visitor:
    """The state of one session. Numbers and pictures, never planes or tensors: there may be hundreds."""

    key: str = field(default_factory=lambda: secrets.token_hex(8))  # the browser has it too: see `Showing.has_head`
    stage: Stage = field(default_factory=Stage)  # the same one for all heads of a session
    unfinished: bool = False  # some of the pictures are not there yet
    origin: str = "nothing"  # where the head is from: "example", "photo", "recipe" or "nothing" while there is none
    w: np.ndarray | None = None  # float32 [num_ws, w_dim], before the edits
    tuning: Tuning | None = None  # what its planes are tuned by
    improved: bool = False  # whether descent has brought it nearer to the photo
    crop: Image.Image | None = None  # what the encoder saw; none in a recipe
    corners: np.ndarray | None = None  # of the photo in it: see `align.photo_corners`
    photo_name: str = ""  # as it was uploaded,
    face: int = 1  # and which of its faces, 1 being the largest
    photo_angles: Angles = (0.0, 0.0)  # of the photo's camera, degrees
    history: History = field(default_factory=History)
    front: Image.Image | None = None  # the reconstruction from the photo's camera,
    frames: str = ""  # and from all around, as `data_uri` of `turntable.pack`
    judged: dict[Plan, Judgement] = field(default_factory=dict)  # by `verdict`: the edits with either directions
    sliders: Sliders = field(default_factory=Sliders)
    files: dict[str, list[Path]] = field(default_factory=dict)  # by kind, oldest first
    folder: Path | None = None

    def __post_init__(self):
        self.stage.shown = self.key

    @property
    def gone(self) -> bool:
        """Whether another head has taken this one's place, or it was forgotten."""
        return self.stage.shown != self.key

    @property
    def current(self) -> bool:
        """Whether work for this head may go on."""
        return not self.gone and not self.stage.awaited

    def while_current(self, steps: Iterable) -> Iterator:
        """The steps of some work; raises `OutOfDate` at the first that comes too late."""
        for step in steps:
            if not self.current:
                raise OutOfDate
            yield step

    def after(self, earlier: "Visitor") -> "Visitor":
        """Itself, which takes the place of another one in its session; the other one's files go."""
        self.stage = earlier.stage
        self.stage.former.append(earlier.key)
        self.stage.shown = self.key
        earlier.delete_files()
        return self

    def leave(self) -> None:
        """The session is over."""
        if not self.gone:
            self.stage.shown = ""
        self.delete_files()

    def keep(self, name: str, content: bytes, kind: str | None = None) -> str:
        """Writes a file that only someone who was told its address can ask for; older ones of its kind, which is its
        name unless another is given, go.

        Raises:
            OutOfDate: the head is gone, and so nothing of it may come back.
        """
        if self.gone:
            raise OutOfDate
        if self.folder is None:
            # Gradio serves what lies in its upload folder, and deletes it after `delete_cache`.
            self.folder = Path(gr.utils.get_upload_folder(), secrets.token_hex(16))
        place = self.folder / secrets.token_hex(8)
        place.mkdir(parents=True)
        path = place / name
        path.write_bytes(content)
        kept = self.files.setdefault(kind or name, [])
        kept.append(path)
        while len(kept) > KEPT_PER_KIND:
            shutil.rmtree(kept.pop(0).parent, ignore_errors=True)
        if self.gone:  # forgotten while this was being written
            self.delete_files()
            raise OutOfDate
        return str(path)

    def keep_picture(self, name: str, picture: Image.Image) -> str:
        return self.keep(name, encoded(picture, "PNG"))

    def delete_files(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = None
        self.files = {}


def take_upload(file: str) -> bytes:
    """The content of an upload, whose file goes at once."""
    content = read_upload(file)
    delete_upload(file)
    return content


def read_upload(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        raise gr.Error(
            "The uploaded file was kept for its time and is gone: upload it again.", print_exception=False
        ) from None


def delete_upload(file: str) -> None:
    """Deletes nothing but uploads: Gradio also hands on an example's path to whoever names it."""
    if Path(file).resolve().is_relative_to(Path(gr.utils.get_upload_folder()).resolve()):
        Path(file).unlink(missing_ok=True)


def salt_uploads() -> None:
    """Gives each upload an address of its own. Gradio takes a digest of the content: two visitors with the same photo
    would share, and delete, one file, and a stranger who has a photo could find out that it was uploaded here."""
    unsalted = gr.route_utils.GradioUploadFile.__init__

    def salted(upload, *arguments, **named) -> None:
        unsalted(upload, *arguments, **named)
        upload.sha.update(secrets.token_bytes(16))

    gr.route_utils.GradioUploadFile.__init__ = salted


def encoded(picture: Image.Image, format: str, **options) -> bytes:
    with io.BytesIO() as buffer:
        picture.save(buffer, format, **options)
        return buffer.getvalue()


def data_uri(picture: Image.Image) -> str:
    """The picture as an address that holds it: it never lies on the disk, and nobody else can ask for it."""
    return "data:image/webp;base64," + base64.b64encode(encoded(picture, "WEBP", quality=90)).decode()


def sweep_forever(older_than_s: float) -> None:
    """Deletes what lies in the upload folder for longer than that, from another thread. Gradio's `delete_cache` passes
    over what programs were sent."""

    def sweep() -> None:
        while True:
            overdue = []  # listed before anything is deleted, which makes the folder around it young again
            for path in sorted(Path(gr.utils.get_upload_folder()).glob("**/*"), reverse=True):
                with suppress(OSError):  # gone meanwhile
                    if time.time() - path.stat().st_mtime > older_than_s:
                        overdue.append(path)
            for path in overdue:
                with suppress(OSError):  # a folder with something new in it
                    path.rmdir() if path.is_dir() else path.unlink()
            time.sleep(min(60, older_than_s / 6))

    threading.Thread(target=sweep, daemon=True).start()
