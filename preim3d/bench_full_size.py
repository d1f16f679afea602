"""How fast the published configuration is (512 px): our way beside the original's, each in a process of its own.

The original computes the planes anew for every view and for every million points of a grid, in float32. Both ways run
on the same networks of random weights; a network's speed does not depend on what its weights say.
"""

import contextlib
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch

from preim3d.bench import machine, median_seconds, peak_mb
from preim3d.camera import grid_cameras
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import QUALITIES


ORIGINAL = "original's way, float32"
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of views; planes are float32
FAST = "bfloat16, fast"  # with as many samples as the quality of that name takes
GRID, CHUNK = 256, 10**6  # points along the grid's side; points that the original asks for at a time


def measure_full_size(device: str) -> dict:
    """Every row's seconds and peak memory, the PSNR of its views to those in float32, and a line about the machine."""
    ways = [ORIGINAL, *(name for name in PRECISIONS if name != "float16" or device != "cpu"), FAST]
    rows = {}
    for way in ways:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            rows[way] = process.apply(_measure, (way, device))
    exact = rows["float32"]["views"]
    for row in rows.values():
        error = (row.pop("views").clamp(-1, 1) - exact.clamp(-1, 1)).square().mean() / 4
        row["PSNR to float32, dB"] = round(float(-10 * torch.log10(error)), 1) if error else None
    return {"rows": rows, "machine": machine(torch.device(device))}


@torch.inference_mode()
def _measure(way: str, device: str) -> dict:
    """The figures of one way, and the nine views [9, 3, 512, 512] that it gave."""
    torch.manual_seed(0)
    generator = TriPlaneGenerator().eval().to(device)
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    ws = generator.mapping(torch.randn(1, 512).to(device), generator.frontal_camera())
    cameras = grid_cameras().to(device)
    points = 0.5 - torch.rand(1, CHUNK, 3, device=device)
    chunks = -(-(GRID**3) // CHUNK)

    if way == ORIGINAL:
        views, nine = _seconds(
            lambda: [generator.render(generator.planes(ws), camera, ws).image for camera in cameras.split(1)],
            synchronise,
        )
        # Every chunk costs the same; one is measured and counted as often as the grid needs it.
        chunk = median_seconds(lambda: generator.decode(generator.planes(ws), points), synchronise)
        figures = {"nine views, s": nine, "256^3 densities, s": round(chunk * chunks, 2)}
    else:
        dtype = PRECISIONS[way.removesuffix(", fast")]
        share = QUALITIES["fast" if way == FAST else "normal"].samples
        samples = [round(share * count) for count in (generator.config.coarse_samples, generator.config.fine_samples)]
        precision = torch.autocast(torch.device(device).type, dtype) if dtype else contextlib.nullcontext()
        with precision:

            def nine_views():
                with torch.autocast(ws.device.type, enabled=False):
                    planes = generator.planes(ws)
                return [render(planes, camera).image for camera in cameras.split(1)]

            def render(planes, camera):
                return generator.render(planes, camera, ws, coarse_samples=samples[0], fine_samples=samples[1])

            def density_grid():
                planes = generator.planes(ws)
                for _ in range(chunks):
                    generator.density(planes, points)

            views, nine = _seconds(nine_views, synchronise)
            planes = generator.planes(ws)
            one = median_seconds(lambda: render(planes, cameras[:1]), synchronise)
            grid = _seconds(density_grid, synchronise)[1]
            peak = peak_mb(resource.RUSAGE_SELF)  # of the generator: the encoder comes after
            encoder = PortraitEncoder().eval().to(device)
            crop = torch.zeros(1, 3, 256, 256, device=device)
            encode = median_seconds(lambda: encoder(crop), synchronise)
        figures = {
            "nine views, s": nine,
            "256^3 densities, s": grid,
            "view of kept planes, s": one,
            "encoding, s": encode,
        }
        return figures | {"peak memory, MB": peak, "views": torch.cat(views).float().cpu()}
    return figures | {"peak memory, MB": peak_mb(resource.RUSAGE_SELF), "views": torch.cat(views).float().cpu()}


def _seconds(step: Callable, synchronise: Callable[[], None]) -> tuple:
    """What a long step gives, and how long it takes, once."""
    synchronise()
    start = time.perf_counter()
    result = step()
    synchronise()
    return result, round(time.perf_counter() - start, 2)


def full_size_table(figures: dict) -> str:
    """The rows as a Markdown table, the machine below."""
    columns = list(dict.fromkeys(name for row in figures["rows"].values() for name in row))
    lines = ["| 512 px | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for way, row in figures["rows"].items():
        cells = ["" if row.get(name) is None else f"{row[name]:g}" for name in columns]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", figures["machine"]])
