"""How fast on this machine, as a table: photo to grid, edit, GLB, the page's first picture; and the peak memory."""

import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from preim3d.mesh import mesh_bytes
from preim3d.photo import load_photo
from preim3d.pipeline import Preim3DPipeline, grid_sheet
from preim3d.turntable import cameras, turn_angles


APP = Path(__file__).resolve().parent.parent / "app.py"
ROUNDS, ROUNDS_ON_GPU = 5, 20  # of which the median counts, after one that warms up
PAGE_LIMIT_S = 300  # a busy machine is slow, but not stuck
OF_IT = "  of it: "  # before the parts of the step above
# What two CPU cores are meant to reach with the bundled model.
GOALS_S = {
    "photo to 3x3 grid": 2.5,
    f"{OF_IT}nine views": 1.5,
    "edit to 3x3 grid": 1.2,
    "edit to the page's first view": 0.3,
    "GLB": 2.0,
    "all views that the page turns": 5.0,
    "first picture on the page": 1.0,
}
GOALS_MB = {"the page, with a photo": 2000}


def measure(pipeline: Preim3DPipeline, load_s: float, weights: Path, photo: Path | None) -> dict:
    """Every figure by name, times in seconds and memory in megabytes, and a line about the machine."""
    picture = load_photo(photo) if photo else astronaut()
    strengths = {name: 2.0 for name in pipeline.directions.names[:1]}
    synchronise = torch.cuda.synchronize if pipeline.device.type == "cuda" else lambda: None

    def photo_to_grid():
        return grid_sheet(pipeline.views(*pipeline.reconstruct(pipeline.align(picture))))

    def edited():
        return pipeline.head(head.w, head.tuning, strengths)

    def glb():
        return mesh_bytes(pipeline.mesh(head), "glb")

    crop = pipeline.align(picture)
    (head,) = pipeline.reconstruct(crop)
    front = pipeline.generator.frontal_camera()
    turn = cameras(turn_angles(), pipeline.generator.config.pivot)
    steps = {
        "photo to 3x3 grid": photo_to_grid,
        f"{OF_IT}find and crop the face": lambda: pipeline.align(picture),
        f"{OF_IT}the crop's head, encoded, with planes and detail": lambda: list(pipeline.reconstruct(crop)),
        f"{OF_IT}planes": lambda: pipeline.head(head.w),
        f"{OF_IT}nine views": lambda: pipeline.views(head),
        "edit to 3x3 grid": lambda: grid_sheet(pipeline.views(edited())),
        "edit to the page's first view": lambda: pipeline.views_and_depths(edited(), front),
        "GLB": glb,
        f"{OF_IT}the surface": lambda: pipeline.mesh(head),
        "one view of a head": lambda: pipeline.views(head, front),
        "all views that the page turns": lambda: pipeline.views_and_depths(head, turn),
    }
    seconds = {name: median_seconds(step, synchronise) for name, step in steps.items()}
    memory = {"this process": peak_mb(resource.RUSAGE_SELF)}
    page = use_page(weights, picture)
    seconds |= {"loading the weights": three_digits(load_s)} | page["seconds"]
    return {"machine": machine(pipeline.device), "seconds": seconds, "peak_memory_mb": memory | page["memory"]}


def median_seconds(step: Callable, synchronise: Callable[[], None]) -> float:
    step()
    times = []
    for _ in range(ROUNDS_ON_GPU if synchronise is torch.cuda.synchronize else ROUNDS):
        synchronise()
        start = time.perf_counter()
        step()
        synchronise()
        times.append(time.perf_counter() - start)
    return three_digits(statistics.median(times))


def three_digits(value: float) -> float:
    """Rounded to three significant digits: so that short times do not become 0."""
    return float(f"{value:.3g}")


def use_page(weights: Path, picture: Image.Image) -> dict:
    """Starts app.py and asks it for heads of a photo. Gives the seconds until its first answer and until each first
    picture, and its peak memory in MB before a photo and with one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w+b") as log:
        command = [sys.executable, str(APP), "--weights", str(weights), "--port", str(port)]
        page = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while True:
                try:
                    urllib.request.urlopen(address, timeout=PAGE_LIMIT_S).read()
                    break
                except OSError:
                    if page.poll() is not None or time.perf_counter() - start > PAGE_LIMIT_S:
                        log.seek(0)
                        raise ValueError(f"The page did not start: {log.read().decode()[-300:]}") from None
                    time.sleep(0.05)
            seconds = {"page: start to first answer": three_digits(time.perf_counter() - start)}
            memory = {"the page, before a photo": peak_mb_of(page.pid)}
            ask = visitor(address, picture, folder)
            seconds["first picture on the page"] = median_seconds(lambda: ask("/edit_portrait"), lambda: None)
            for endpoint in ("/pose_grid", "/mesh"):
                ask(endpoint)
            memory["the page, with a photo"] = peak_mb_of(page.pid)
        finally:
            page.terminate()
            page.wait()
    # Where there is no /proc, the system's sum over children that have ended is the nearest.
    return {
        "seconds": seconds,
        "memory": {name: mb or peak_mb(resource.RUSAGE_CHILDREN) for name, mb in memory.items()},
    }


def visitor(address: str, picture: Image.Image, folder: str) -> Callable[[str], str]:
    """A function that uploads the photo to the page and waits for what an endpoint makes of it, one view of the head
    for example."""
    from gradio_client import Client, handle_file

    path = Path(folder, "photo.png")
    picture.save(path)
    client = Client(address, download_files=folder, verbose=False)
    return lambda endpoint: client.predict(handle_file(str(path)), {}, api_name=endpoint)


def peak_mb_of(pid: int) -> int | None:
    """Largest resident memory of a running process; None where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((round(int(line.split()[1]) * 1024 / 1e6) for line in lines if line.startswith("VmHWM:")), None)


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
    """The figures as a Markdown table, what is aimed at beside them, the machine below."""
    lines = ["| step | median | goal |", "|---|---|---|"]
    for step, seconds in figures["seconds"].items():
        goal = f"{GOALS_S[step]:g} s" if step in GOALS_S else ""
        lines.append(f"| {step.replace('  ', '&nbsp; ', 1)} | {seconds:.2f} s | {goal} |")
    for process, mb in figures["peak_memory_mb"].items():
        goal = f"{GOALS_MB[process]} MB" if process in GOALS_MB else ""
        lines.append(f"| peak memory, {process} | {mb} MB | {goal} |")
    return "\n".join([*lines, "", figures["machine"]])


def astronaut() -> Image.Image:
    """A portrait that comes with scikit-image: the same photo on every machine."""
    import skimage.data

    return Image.fromarray(skimage.data.astronaut())
