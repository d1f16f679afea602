"""How fast on this machine, as a table: photo to grid, edit, GLB, the page's first answer; and the peak memory."""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from preim3d.mesh import mesh_bytes
from preim3d.photo import load_photo
from preim3d.pipeline import Preim3DPipeline, grid_sheet
from preim3d.turntable import cameras, turn_angles


APP = Path(__file__).resolve().parent.parent / "app.py"
ROUNDS = 5  # of which the median counts, after one that warms up
PAGE_LIMIT_S = 300  # a busy machine is slow, but not stuck


def measure(pipeline: Preim3DPipeline, load_s: float, weights: Path, photo: Path | None) -> dict:
    """Every figure by name, times in seconds and memory in megabytes, and a line about the machine."""
    picture = load_photo(photo) if photo else astronaut()
    strengths = {pipeline.directions.names[0]: 2.0}
    synchronise = torch.cuda.synchronize if pipeline.device.type == "cuda" else lambda: None

    def photo_to_grid():
        return grid_sheet(pipeline.views(pipeline.head(pipeline.encode(pipeline.align(picture)))))

    def edit():
        return grid_sheet(pipeline.views(pipeline.head(pipeline.edit(w, strengths))))

    def glb():
        return mesh_bytes(pipeline.mesh(head), "glb")

    def one_view():
        return pipeline.views(pipeline.head(w), front)

    w = pipeline.encode(pipeline.align(picture))
    head = pipeline.head(w)
    front = pipeline.generator.frontal_camera()
    turn = cameras(turn_angles(), pipeline.generator.config.pivot)
    seconds = {
        "photo to 3x3 grid": median_seconds(photo_to_grid, synchronise),
        "  of it: find and crop the face": median_seconds(lambda: pipeline.align(picture), synchronise),
        "edit to 3x3 grid": median_seconds(edit, synchronise),
        "one view of a latent": median_seconds(one_view, synchronise),
        "all views that the page turns": median_seconds(lambda: pipeline.views_and_depths(head, turn), synchronise),
        "GLB": median_seconds(glb, synchronise),
        "loading the weights": three_digits(load_s),
    }
    page_s, page_mb = start_page(weights)
    seconds["page: start to first answer"] = page_s
    memory = {"this process": peak_mb(resource.RUSAGE_SELF), "the page, before a photo": page_mb}
    return {"machine": machine(pipeline.device), "seconds": seconds, "peak_memory_mb": memory}


def median_seconds(step: Callable, synchronise: Callable[[], None]) -> float:
    step()
    times = []
    for _ in range(ROUNDS):
        synchronise()
        start = time.perf_counter()
        step()
        synchronise()
        times.append(time.perf_counter() - start)
    return three_digits(statistics.median(times))


def three_digits(value: float) -> float:
    """Rounded to three significant digits: what is fast does not become nothing."""
    return float(f"{value:.3g}")


def start_page(weights: Path) -> tuple[float, int]:
    """Seconds from starting app.py to its first answer, and its peak memory in MB by then."""
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, str(APP), "--weights", str(weights), "--port", str(port)]
        page = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PAGE_LIMIT_S).read()
                    break
                except OSError:
                    if page.poll() is not None or time.perf_counter() - start > PAGE_LIMIT_S:
                        log.seek(0)
                        raise ValueError(f"The page did not start: {log.read().decode()[-300:]}") from None
                    time.sleep(0.05)
            seconds = time.perf_counter() - start
            status = Path(f"/proc/{page.pid}/status")
            lines = status.read_text().splitlines() if status.exists() else []
        finally:
            page.terminate()
            page.wait()
    # What the system adds up for children would count this process too, which the page was forked from.
    peaks = [round(int(line.split()[1]) * 1024 / 1e6) for line in lines if line.startswith("VmHWM:")]
    return three_digits(seconds), peaks[0] if peaks else peak_mb(resource.RUSAGE_CHILDREN)


def peak_mb(who: int) -> int:
    """Largest resident memory so far: of this process, or of the largest child that has ended."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in kilobytes, macOS in bytes
    return round(resource.getrusage(who).ru_maxrss * unit / 1e6)


def machine(device: torch.device) -> str:
    """One line: the processor, the cores that may be used, the GPU if it is used, the versions."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    threads = torch.get_num_threads()
    return f"{processor}, {cores} cores, {threads} threads{gpu}, torch {torch.__version__}, {platform.platform()}"


def table(figures: dict) -> str:
    """The figures as a Markdown table, the machine below."""
    lines = ["| step | median |", "|---|---|"]
    lines += [f"| {step} | {seconds:.2f} s |" for step, seconds in figures["seconds"].items()]
    lines += [f"| peak memory, {process} | {mb} MB |" for process, mb in figures["peak_memory_mb"].items()]
    return "\n".join([*lines, "", figures["machine"]])


def astronaut():
    """A portrait that comes with scikit-image: the same photo on every machine."""
    import skimage.data
    from PIL import Image

    return Image.fromarray(skimage.data.astronaut())
