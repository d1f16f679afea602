"""How fast the published configuration is (512 px): our way beside the original's, each in a process of its own.

The original computes the planes anew for every view and for every million points of a grid, in float32. Both ways run
on the same networks of random weights; a network's speed does not depend on what its weights say.

How far each stage is from what the machine can do is told by its operations a second beside those of a large matrix
product, which is bound by nothing but them: a stage far below waits for memory, or for its many small steps to start.
"""

import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from preim3d.bench import machine, median_seconds, peak_mb
from preim3d.camera import grid_cameras
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import QUALITIES


@dataclass
class Way:
    """A way of computing. Planes are in float32 in all of them; `dtype` is that of views, None = float32."""

    keep_planes: bool = True  # The original computes them anew for every view, and for every CHUNK of points.
    dtype: torch.dtype | None = None
    tf32: bool = False  # Let CUDA round the factors of float32 products to ten bits.
    quality: str = "normal"


ORIGINAL = "original's way, float32"
WAYS = {
    ORIGINAL: Way(keep_planes=False),
    "float32": Way(),
    "TF32": Way(tf32=True),
    "bfloat16": Way(dtype=torch.bfloat16),
    "float16": Way(dtype=torch.float16),
    "bfloat16, fast": Way(dtype=torch.bfloat16, quality="fast"),
}
CUDA_ONLY = ("TF32", "float16")
GRID, CHUNK = 256, 10**6  # points along the grid's side; points that the original asks for at a time
ENCODED_TOGETHER = 8  # images
PRODUCT = 4096  # rows and columns of the factors of the product that shows the machine's limit


def measure_full_size(device: str) -> dict:
    """Every row's seconds and peak memory, the PSNR of its views to those in float32, its stages' seconds and
    operations, and a line about the machine."""
    rows = {}
    for way in WAYS:
        if device != "cpu" or way not in CUDA_ONLY:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                rows[way] = process.apply(_measure, (way, device))
    exact = rows["float32"]["views"]
    for row in rows.values():
        error = (row.pop("views").clamp(-1, 1) - exact.clamp(-1, 1)).square().mean() / 4
        row["PSNR to float32, dB"] = round(float(-10 * torch.log10(error)), 1) if error else None
    stages = {way: row.pop("stages") for way, row in rows.items() if way != ORIGINAL}
    return {"rows": rows, "stages": stages, "machine": machine(torch.device(device))}


@torch.inference_mode()
def _measure(name: str, device: str) -> dict:
    """The figures of one way, and the nine views [9, 3, 512, 512] that it gave."""
    way, device = WAYS[name], torch.device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = way.tf32
    torch.manual_seed(0)
    generator = TriPlaneGenerator().eval().to(device)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    ws = generator.mapping(torch.randn(1, 512).to(device), generator.frontal_camera())
    cameras = grid_cameras().to(device)
    points = 0.5 - torch.rand(1, CHUNK, 3, device=device)
    axis, everywhere = torch.linspace(-0.5, 0.5, GRID, device=device), torch.arange(GRID, device=device)
    chunks = -(-(GRID**3) // CHUNK)
    share = QUALITIES[way.quality].samples
    samples = [round(share * count) for count in (generator.config.coarse_samples, generator.config.fine_samples)]
    precision = torch.autocast(device.type, way.dtype) if way.dtype else contextlib.nullcontext()

    def planes():
        with torch.autocast(device.type, enabled=False):
            return generator.planes(ws)

    def view(planes, camera):
        return generator.render(planes, camera, ws, coarse_samples=samples[0], fine_samples=samples[1]).image

    def nine_views():
        kept = planes() if way.keep_planes else None
        return torch.cat([view(planes() if kept is None else kept, camera) for camera in cameras.split(1)])

    def densities():
        with torch.autocast(device.type, enabled=False):
            density = generator.density_on_grid(planes(), axis)
            for part in everywhere.split(4):
                density(torch.cartesian_prod(part, everywhere, everywhere))

    with precision:
        if device.type == "cuda":
            nine_views()  # CUDA's libraries choose their kernels in the first round
        if not way.keep_planes:
            views, nine = _seconds(nine_views, synchronise)
            # Every chunk costs the same; one is measured and counted as often as the grid needs it.
            grid = chunks * median_seconds(lambda: generator.decode(planes(), points), synchronise)
            return _row(views, nine, grid, device)
        views, nine = _seconds(nine_views, synchronise)
        row = _row(views, nine, _seconds(densities, synchronise)[1], device)  # before there is an encoder in memory
        kept = planes()
        encoder = PortraitEncoder().eval().to(device)
        crop = torch.zeros(1, 3, 256, 256, device=device)
        return row | {
            "view of kept planes, s": median_seconds(lambda: view(kept, cameras[:1]), synchronise),
            "encoding, s": median_seconds(lambda: encoder(crop), synchronise),
            "crop to first view, s": median_seconds(lambda: (encoder(crop), view(planes(), cameras[:1])), synchronise),
            "stages": _stages(generator, encoder, planes, lambda: view(kept, cameras[:1]), ws, way.dtype, synchronise),
        }


def _stages(generator, encoder, planes, view, ws, dtype, synchronise) -> dict[str, dict]:
    """Seconds and billions of operations (multiplications and additions, those of bilinear sampling not counted)."""
    device = ws.device
    features = torch.zeros(
        1, generator.config.plane_channels, generator.config.ray_resolution, generator.config.ray_resolution
    )
    features = features.to(device, memory_format=torch.channels_last)
    crops = torch.zeros(ENCODED_TOGETHER, 3, 256, 256, device=device)
    factor = torch.ones(PRODUCT, PRODUCT, device=device, dtype=dtype)
    steps = {
        "planes": planes,
        "view": view,
        "of it: super-resolution": lambda: generator.super_resolve(features, ws),
        f"encoding {ENCODED_TOGETHER} images": lambda: encoder(crops),
        "the limit: a large matrix product": lambda: factor @ factor,
    }
    stages = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        stages[name] = {"s": median_seconds(step, synchronise), "GFLOP": counter.get_total_flops() / 1e9}
    return stages


def _row(views: torch.Tensor, nine: float, grid: float, device: torch.device) -> dict:
    on_gpu = device.type == "cuda"
    peak = round(torch.cuda.max_memory_allocated() / 1e6) if on_gpu else peak_mb(resource.RUSAGE_SELF)
    figures = {"nine views, s": nine, "256^3 densities, s": round(grid, 3), "peak memory, MB": peak}
    return figures | {"views": views.float().cpu()}


def _seconds(step: Callable, synchronise: Callable[[], None]) -> tuple:
    """What a long step gives, and how long it takes, once."""
    synchronise()
    start = time.perf_counter()
    result = step()
    synchronise()
    return result, round(time.perf_counter() - start, 3)


def full_size_table(figures: dict) -> str:
    """The rows as a Markdown table, the stages as another, the machine below."""
    columns = list(dict.fromkeys(name for row in figures["rows"].values() for name in row))
    lines = ["| 512 px | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for way, row in figures["rows"].items():
        cells = ["" if row.get(name) is None else f"{row[name]:g}" for name in columns]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    ways = list(figures["stages"])
    lines += ["", "| ms (TFLOP/s) | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for stage in figures["stages"][ways[0]]:
        told = [figures["stages"][way][stage] for way in ways]
        cells = [f"{1e3 * one['s']:.3g} ({one['GFLOP'] / 1e3 / one['s']:.3g})" for one in told]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", figures["machine"]])
