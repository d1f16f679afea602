"""app.py, or another page, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 300  # of two cores that are busy with other things


class Server(NamedTuple):
    address: str
    process: subprocess.Popen
    log: Path  # what it writes to stdout and stderr
    files: Path  # its folder of uploads and results


@contextmanager
def running_page(folder: Path, *flags, program: tuple[str, ...] = ("app.py",), **environment) -> Iterator[Server]:
    """The page with these flags, its log and files in `folder`, until the `with` ends; it must then still be there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log, files = f"http://127.0.0.1:{port}", folder / "log.txt", folder / "files"
    words = [sys.executable, *program, "--port", str(port), *map(str, flags)]
    surroundings = os.environ | {"GRADIO_TEMP_DIR": str(files)} | environment
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, env=surroundings)
    try:
        for _ in range(4 * PATIENCE_S):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=PATIENCE_S).read()
                break
            except OSError:  # not up yet
                time.sleep(0.25)
        yield Server(address, process, log, files)
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait()
