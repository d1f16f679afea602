"""What the page keeps of one session: a latent, edits, a few pictures in memory; files in a folder of its own."""

import base64
import io
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from preim3d.edits import History
from preim3d.turntable import Angles


KEPT_PER_KIND = 2  # files of one kind: the newest, and the one that a browser may still be loading


@dataclass
class Visitor:
    """The state of one session. Numbers and pictures, never planes or tensors: there may be hundreds."""

    origin: str = "nothing"  # where the head is from: "example", "photo", "recipe" or "nothing" while there is none
    w: np.ndarray | None = None  # float32 [num_ws, w_dim], before the edits
    refined: bool = False
    crop: Image.Image | None = None  # what the encoder saw; none in a recipe
    photo_angles: Angles = (0.0, 0.0)  # of the photo's camera, degrees
    history: History = field(default_factory=History)
    front: Image.Image | None = None  # the reconstruction from the photo's camera,
    frames: str = ""  # and from all around, as `data_uri` of `turntable.pack`
    slid: tuple[float, ...] | None = None  # the sliders as the browser last told,
    applied: tuple[float, ...] | None = None  # and as they were last followed; work for other values is out of date
    files: dict[str, list[Path]] = field(default_factory=dict)  # by kind, oldest first
    folder: Path | None = None

    def keep(self, name: str, content: bytes) -> str:
        """Writes a file that only someone who was told its address can ask for; older ones of that name go."""
        if self.folder is None:
            # Gradio serves what lies in its upload folder, and deletes it after `delete_cache`.
            self.folder = Path(gr.utils.get_upload_folder(), secrets.token_hex(16))
        place = self.folder / secrets.token_hex(8)
        place.mkdir(parents=True)
        path = place / name
        path.write_bytes(content)
        kept = self.files.setdefault(name, [])
        kept.append(path)
        while len(kept) > KEPT_PER_KIND:
            shutil.rmtree(kept.pop(0).parent, ignore_errors=True)
        return str(path)

    def keep_picture(self, name: str, picture: Image.Image) -> str:
        return self.keep(name, encoded(picture, "PNG"))

    def delete_files(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = None
        self.files = {}


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
            for path in sorted(Path(gr.utils.get_upload_folder()).glob("**/*"), reverse=True):
                try:
                    if time.time() - path.stat().st_mtime > older_than_s:
                        path.rmdir() if path.is_dir() else path.unlink()
                except OSError:  # a folder that is not empty yet, or gone meanwhile
                    continue
            time.sleep(min(60, older_than_s / 6))

    threading.Thread(target=sweep, daemon=True).start()
