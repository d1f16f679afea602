"""A file is written whole or not at all: whoever reads `path` finds the old contents or the new, never a half."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with the same ending, to write to; on success it becomes `path`.

    Missing folders are made. When the body fails, the temporary file goes and an earlier `path` stays as it was.

    Raises:
        OSError: one sentence, when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}): choose another folder.") from error
    finally:
        # Still there only if something went wrong; then the first error is the one to report.
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
