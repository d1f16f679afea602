"""Many photos -> what becomes of each, by one process or several, on one device or several.

Every process has a pipe of its own and hands its results back through that: there is no queue, nor a lock on one, that
a killed process could leave behind. Only this process writes files. One that is killed, by the system when memory runs
out, say, costs the photos that it had in hand; another takes its place."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from preim3d.results import Made, Request, edit_photos, load_networks
from preim3d.sources import Photo


CORES_EACH = 2  # more make one photo hardly faster
AT_A_TIME = 8  # photos that are encoded at once on a GPU; on a CPU that is no faster and takes more memory
KILLED = "The process that worked on it was killed; if memory ran out, give fewer --workers."


class Setup(NamedTuple):
    """What every process works with."""

    weights: Path
    request: Request
    threads: int | None = None  # None leaves them as they are


def share_devices(
    device: str | None,  # as asked for
    workers: int | None,  # likewise
    gpus: int,  # that this machine has
    cores: int,
    environment: Mapping[str, str] = os.environ,
) -> list[str | None]:
    """The device of each process: of all GPUs one after the other, but only one where a launcher starts a process for
    each. Without a number of workers, one for each of those GPUs, or for every two cores that fall to this process."""
    seat = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID")
    if device not in (None, "cuda") or not gpus:
        places = [device]
        workers = workers or max(1, cores // CORES_EACH // int(environment.get("LOCAL_WORLD_SIZE") or 1))
    else:
        places = [f"cuda:{number}" for number in range(gpus)]
        places = places if seat is None else [places[int(seat) % gpus]]
        workers = workers or len(places)
    return [places[number % len(places)] for number in range(workers)]


def count_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_gpus(device: str | None) -> int:
    """Those of this machine; 0 where another device is asked for, and torch is not."""
    if device not in (None, "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


class Editor:
    """The networks, on one device."""

    def __init__(self, setup: Setup, device: str | None):
        """Raises ValueError or OSError: weights or device are wrong, in one sentence."""
        import cv2
        import torch

        if setup.threads is not None:
            torch.set_num_threads(min(setup.threads, torch.get_num_threads()))
            cv2.setNumThreads(setup.threads)
        self.request = setup.request
        self.pipeline, self.identity = load_networks(setup.weights, device)
        request = setup.request
        self.pipeline.check_inputs("a photo", None, request.strengths, request.face, request.quality)
        self.at_a_time = 1 if self.pipeline.device.type == "cpu" else AT_A_TIME

    def edit(self, photos: list[Photo]) -> Iterator[Made | str]:
        """What becomes of each of some photos, or a sentence that says why nothing does."""
        for made in edit_photos(self.pipeline, self.identity, photos, self.request):
            if isinstance(made, ValueError | OSError):
                yield str(made)
            elif isinstance(made, Exception):
                yield f"A fault of this program: {type(made).__name__}: {' '.join(str(made).split())[:300]}"
            else:
                yield made


def edit_all(photos: list[Photo], setup: Setup, devices: list[str | None]) -> Iterator[tuple[Photo, Made | str]]:
    """Each photo with what became of it, as they are done; in order where there is one device only."""
    if len(devices) > 1 and len(photos) > 1:
        yield from edit_by_processes(photos, setup, devices[: len(photos)])
        return
    editor = Editor(setup, devices[0])
    for start in range(0, len(photos), editor.at_a_time):
        together = photos[start : start + editor.at_a_time]
        yield from zip(together, editor.edit(together))


# ----------------------------------------------------------------------------
# Several processes.


class Worker:
    """Another process, and the photos that it has in hand."""

    def __init__(self, setup: Setup, device: str | None):
        context = multiprocessing.get_context("spawn")  # a forked one could neither use CUDA nor trust its threads
        self.connection, theirs = context.Pipe()
        self.device, self.photos, self.at_a_time = device, deque(), 0
        self.process = context.Process(target=serve, args=(theirs, setup, device), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, waiting: deque[Photo]) -> bool:
        """Hands it some photos; whether there were any."""
        self.photos.extend(waiting.popleft() for _ in range(min(self.at_a_time, len(waiting))))
        if self.photos:
            with suppress(OSError):  # it was killed just now: its pipe, read next, will say so
                self.connection.send(list(self.photos))
        return bool(self.photos)

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def serve(connection: Connection, setup: Setup, device: str | None) -> None:
    """What a worker's process does until the pipe ends: with a killed run it ends, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard's reaches every process; the first one ends the others
    try:
        try:
            editor = Editor(setup, device)
        except (ValueError, OSError) as error:
            connection.send(str(error))
            return
        connection.send(editor.at_a_time)
        while True:
            for result in editor.edit(connection.recv()):
                connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def edit_by_processes(
    photos: list[Photo], setup: Setup, devices: list[str | None]
) -> Iterator[tuple[Photo, Made | str]]:
    """A process for each device that is named.

    Raises:
        ValueError: weights or device are wrong, or a process ended before it was ready.
    """
    waiting = deque(photos)
    workers = {worker.connection: worker for worker in [Worker(setup, device) for device in devices]}
    try:
        while workers:
            for connection in wait(list(workers)):
                worker, done = workers[connection], None
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    del workers[connection]
                    worker.end()
                    if not worker.at_a_time:
                        raise ValueError(
                            "A process ended before it was ready; if memory ran out, give fewer --workers."
                        ) from None
                    for photo in worker.photos:
                        yield photo, KILLED
                    if waiting:
                        worker = Worker(setup, worker.device)
                        workers[worker.connection] = worker
                    continue
                if worker.at_a_time:
                    done = worker.photos.popleft(), answer
                elif isinstance(answer, str):
                    raise ValueError(answer)
                else:
                    worker.at_a_time = answer
                if not worker.photos and not worker.give(waiting):
                    del workers[connection]
                    worker.end()
                if done:  # only now, so that the process goes on while its results are put away
                    yield done
    finally:
        for worker in workers.values():
            worker.end()
