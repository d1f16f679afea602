"""A file is written whole or not at all: whoever reads `path` finds the old contents or the new, never a half.

What is unfinished has a name that says whose it is. When a process was killed, the next one to write there deletes
what it left."""

import errno
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil


PREFIX = ".preim3d-"
HOST = re.sub(r"\W", "_", socket.gethostname())
ABANDONED_S = 24 * 3600  # whether a process of another machine still runs cannot be seen
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FullDisk(OSError):
    """A file cannot be written as there is no room for it, nor will there be for the next; the message is one sentence
    for the user."""


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with the same ending, to write to; on success it becomes `path`.

    Missing folders are made. When the body fails, the temporary file goes and an earlier `path` stays as it was.

    Raises:
        OSError: one sentence, when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f"{unfinished()}{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    finally:
        # Still there only if something went wrong; then the first error is the one to report.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def staging_folder(folder: Path) -> tempfile.TemporaryDirectory:
    """A hidden folder in `folder`, for files that are moved from there when all are done.

    Raises:
        OSError: nothing can be written there.
    """
    sweep(folder)
    return tempfile.TemporaryDirectory(prefix=unfinished(), dir=folder)


def cannot_be_written(path: Path, error: Exception) -> OSError:
    """One sentence for the user in place of what a failed write raised: which file, why, and what to do."""
    reason = getattr(error, "strerror", None) or str(error)
    # By its words: safetensors has them too, but no number.
    full = any(os.strerror(number) in reason for number in NO_ROOM)
    kind = FullDisk if full else OSError
    return kind(f"{path} cannot be written ({reason}): {'make room on its disk, or ' * full}choose another folder.")


def unfinished() -> str:
    """How names of this process's unfinished files begin."""
    return f"{PREFIX}{os.getpid()}-{HOST}-"


@cache  # once in each folder: it may hold many thousands of files
def sweep(folder: Path) -> None:
    """Deletes what processes that were killed left unfinished in a folder."""
    with suppress(OSError):
        for path in folder.glob(f"{PREFIX}*"):
            process, _, rest = path.name.removeprefix(PREFIX).partition("-")
            if process.isdecimal() and rest.startswith(f"{HOST}-"):
                abandoned = not psutil.pid_exists(int(process))
            else:
                abandoned = time.time() - path.lstat().st_mtime > ABANDONED_S
            if abandoned and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif abandoned:
                path.unlink(missing_ok=True)
