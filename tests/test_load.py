"""Many programs at once: each gets its own face, whoever finds the queue full is told so, and memory stays bounded."""

import colorsys
import io
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from conftest import ROOT
from PIL import Image, ImageOps
from running import PATIENCE_S, running_page

from preim3d.mesh import mesh_bytes
from preim3d.pipeline import Preim3DPipeline, grid_sheet
from preim3d.turntable import cameras


gradio_client = pytest.importorskip("gradio_client")
trimesh = pytest.importorskip("trimesh")

BUNDLED = ROOT / "weights" / "faces"
STRENGTHS = {"smile": 1}
ENDPOINTS = {"/edit_portrait": {}, "/pose_grid": {}, "/mesh": {"format": "ply"}}  # and what else is asked of them
TOLERANCE = 0.05  # grey levels of 255, on average, between the server's answer and our own: threads may sum otherwise


class Visit(NamedTuple):
    answers: list[tuple[str, str]]  # endpoint, path of what it gave
    refusals: list[str]


def photos(count: int) -> list[bytes]:
    """The bundled portraits, mirrored and not, each in a light of its own colour."""
    portraits = [Image.open(path).convert("RGB") for path in sorted(BUNDLED.glob("examples/*/crop.webp"))]
    if not portraits:
        pytest.skip("weights/faces has no examples, whose portraits are sent")
    portraits += [ImageOps.mirror(portrait) for portrait in portraits]
    made = []
    for number in range(count):
        light = colorsys.hsv_to_rgb(number / count, 0.25, 1)
        lit = np.asarray(portraits[number % len(portraits)]) * np.array(light)
        with io.BytesIO() as buffer:
            Image.fromarray(lit.astype(np.uint8)).save(buffer, "PNG")
            made.append(buffer.getvalue())
    return made


def visit(address: str, photo: Path, first: int, start: threading.Barrier, seconds: float) -> Visit:
    """Asks the three endpoints in turn for so long."""
    client = gradio_client.Client(address, verbose=False, download_files=photo.with_suffix(""))
    file, answers, refusals = gradio_client.handle_file(photo), [], []
    start.wait(PATIENCE_S)
    until = time.monotonic() + seconds
    for endpoint, more in itertools.islice(itertools.cycle(ENDPOINTS.items()), first, None):
        if time.monotonic() > until:
            return Visit(answers, refusals)
        try:
            job = client.submit(file, STRENGTHS, api_name=endpoint, **more)
            answers.append((endpoint, job.result(PATIENCE_S)))
        except gradio_client.utils.QueueError as refusal:
            refusals.append(str(refusal))
            time.sleep(1)


def watch(process: psutil.Process, seen_mb: list[float], done: threading.Event) -> None:
    while not done.wait(0.2):
        seen_mb.append(process.memory_info().rss / 1e6)


def values(file: str | Path | io.BytesIO, endpoint: str) -> np.ndarray:
    """What can be compared of an answer, in grey levels: a picture's pixels, the mean colours of a mesh's octants."""
    if endpoint == "/mesh":
        mesh = trimesh.load(file, file_type="ply")
        octants = (mesh.vertices > mesh.vertices.mean(0)) @ (1, 2, 4)
        return np.array([mesh.visual.vertex_colors[octants == octant, :3].mean(0) for octant in range(8)])
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"), np.float64)


def expected(pipeline: Preim3DPipeline, photo: bytes) -> dict[str, np.ndarray]:
    """By endpoint: what the pipeline makes of this very photo."""
    head = pipeline.head(pipeline.encode(pipeline.align(photo)), strengths=STRENGTHS)
    front = pipeline.views(head, cameras([(0, 0)], pipeline.generator.config.pivot))[0]
    made = {"/edit_portrait": front, "/pose_grid": grid_sheet(pipeline.views(head))}
    pixels = {endpoint: np.asarray(picture.convert("RGB"), np.float64) for endpoint, picture in made.items()}
    return {**pixels, "/mesh": values(io.BytesIO(mesh_bytes(pipeline.mesh(head), "ply", {})), "/mesh")}


def put_clock_back(folder: Path, seconds: float) -> None:
    """Makes everything in a folder older."""
    for parent, folders, files in os.walk(folder):  # which passes over folders that go meanwhile
        for name in (*folders, *files):
            path = Path(parent, name)
            try:
                then = path.stat().st_mtime - seconds
                os.utime(path, (then, then))
            except FileNotFoundError:  # just deleted
                continue


@pytest.mark.parametrize(
    "clients, seconds, queue_size, hour_s, bundled, growth_mb",  # the last: the networks' working memory as well
    [(8, 10, 4, 60, False, 300), pytest.param(50, 120, 30, 300, True, 1000, marks=pytest.mark.slow)],
)
def test_everybody_gets_their_own_face_or_is_told_to_wait(
    tiny_weights, tmp_path, clients, seconds, queue_size, hour_s, bundled, growth_mb
):
    weights = BUNDLED if bundled else tiny_weights
    faces = photos(clients)
    paths = [tmp_path / f"{number}.png" for number in range(clients)]
    for path, face in zip(paths, faces):
        path.write_bytes(face)

    flags = ("--weights", weights, "--queue-size", queue_size)
    with running_page(tmp_path, *flags, PREIM3D_FORGET_S=str(hour_s)) as server:
        start = threading.Barrier(clients + 1)
        with ThreadPoolExecutor(clients + 1) as crowd:
            visits = [
                crowd.submit(visit, server.address, path, number % 3, start, seconds)
                for number, path in enumerate(paths)
            ]
            start.wait(PATIENCE_S)
            began, seen_mb, done = time.monotonic(), [], threading.Event()
            watching = crowd.submit(watch, psutil.Process(server.process.pid), seen_mb, done)
            try:
                visits = [one.result() for one in visits]
            finally:
                done.set()  # or a visit that fails would leave the watch running, and the test waiting for it
            took_s = time.monotonic() - began
            watching.result()
        assert list(server.files.iterdir())
        for _ in range(PATIENCE_S):
            put_clock_back(server.files, hour_s)
            if not list(server.files.iterdir()):
                break
            time.sleep(1)
        else:
            raise AssertionError(f"an hour later there still is {list(server.files.rglob('*'))}")
    assert "Traceback" not in server.log.read_text(), server.log.read_text()

    refusals = [text for one in visits for text in one.refusals]
    served = sum(len(one.answers) for one in visits)
    print(
        f"{clients} clients, {took_s:.0f} s: {served} answers, {len(refusals)} told that the queue is full;"
        f" the server went from {seen_mb[0]:.0f} to at most {max(seen_mb):.0f} MB"
    )
    assert served >= clients / 2 and refusals and all("Queue is full" in text for text in refusals)
    assert max(seen_mb) - seen_mb[0] < growth_mb

    pipeline = Preim3DPipeline.from_pretrained(weights)
    own = [expected(pipeline, face) for face in faces]
    for endpoint in ENDPOINTS:
        apart = [np.abs(a[endpoint] - b[endpoint]).mean() for a, b in itertools.combinations(own, 2)]
        assert min(apart) > 3 * TOLERANCE, "the test could not tell its faces apart"
    for one, mine in zip(visits, own):
        for endpoint, path in one.answers:
            assert np.abs(values(path, endpoint) - mine[endpoint]).mean() < TOLERANCE
