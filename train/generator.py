"""Rendered heads -> our small EG3D-shaped generator, by regression: the z of every render is known.

Each step shows the network some heads and asks, of their planes, four things:

* rays      some hundred pixels per head at the renders' own resolution, with samples guided by the true depth;
* surface   the colour at surface points, and density just behind them;
* space     no density between the camera and the surface, nor where the camera sees past the head;
* patches   square pieces of the final picture, through the very path that inference takes (importance sampling,
            super-resolution), by pixels and by edges. They come in after the field has its shape.

The run begins with small planes; twice a block is added with a zero output, so that the picture does not jump
(progressive growing, Karras et al. 2018). Synthesis learns by Muon, the rest by Adam. The weights kept are an
exponential moving average.

    python -m train.generator --data dataset/heads --run runs/generator --out weights/faces/generator --minutes 120

Run again to resume; `--start` goes on from a component. On a CPU, memory that is kept instead of given back saves page
faults: `MALLOC_MMAP_THRESHOLD_=17179869184 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456`.

Of the weights in weights/faces/generator: two runs of one thread on one core of two, beside other work, seed 0.

* 128 px pictures: `--minutes 163 --batch 8 --rays 320 --points 512 --patches 2 --patch-rays 28`, 12402 steps. Up to
  step 8785 the budget was 88 minutes; then it was raised, which raised the rate again. Super-resolution became the
  same for all heads at step 7101, patches reached the picture's border at step 7590, and from step 10254 on it was
  8748 heads of seed 3 whose proportions are the crop template's (before: 10000 of seed 1, whose noses were too
  long). Held-out heads, before super-resolution: 18.5 dB after 11 minutes (Adam in place of Muon took 20 for 18.1),
  20.0 after 24, 22.0 after 119; with the new heads 20.3 at first, 21.9 at the end.
* 256 px pictures: `--start` from there, `--patch-data` of 1981 heads of seed 4, `--minutes 70 --batch 8 --rays 288
  --points 448 --patches 3 --patch-rays 32`, 3289 steps. Held-out heads, at 256 px: 20.5 dB after 7 minutes (the rate
  begins anew), 21.6 after 29, 22.4 at the end.
* Narrower heads, other curls: the same again from there with 4344 heads of seed 3 and 988 of seed 4, rendered anew,
  for 48 minutes, 2145 steps; then the budget was raised with `--keep-mapping`, to 86 minutes (3704 steps in all), and
  to 136 (5470). Held-out heads, as narrow: 20.5 dB after 7 minutes, 21.65 after 48, 21.87 after 86, 21.94 at the end.
  In these heads the inside of the mouth still pierced the cheeks of some broad smiles.
"""

import argparse
import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from preim3d.generator import TriPlaneGenerator
from train import checkpoint
from train.field_batches import FieldBatch, draw_batch
from train.field_losses import LOSS_WEIGHTS, losses
from train.heads.dataset import BACKGROUND, HeadsDataset, over_background
from train.muon import Muon
from train.options import check_budget, run_stage, training_parser
from train.picture_metric import frontal_pictures, visibility
from train.precision import autocast
from train.progress import Progress, cosine_rate


SIZES = {
    "w_dim": 192, "mapping_layers": 2, "c_dim": 0,
    "plane_channels": 32, "channel_base": 6144, "channel_max": 192, "mean_planes": True, "decoder_hidden": 64,
    "image_resolution": 256, "ray_resolution": 128, "superresolution_input": 128,
    "superresolution_blocks": [{"in": 32, "out": 48, "up": False}, {"in": 48, "out": 32, "up": True}],
    "superresolution_clamp": None,
    "box_warp": 0.8, "ray_start": 2.28, "ray_end": 3.08, "coarse_samples": 12, "fine_samples": 12,
    "plane_axes": "fixed", "background": BACKGROUND,
}  # fmt: skip
FIRST_PLANE_RESOLUTION = 32
GROW_AT = {64: 0.25, 128: 0.65}  # planes -> share of the run from which they are that large
PATCHES_AT = 0.5  # share of the run

RATE = 2e-3
MUON_FACTOR = 6.0
# Adam's step relative to RATE. The mapping network stores its weights over .01; the mean planes start from nothing.
RATE_FACTORS = {"backbone.mapping": 200.0, "average_planes": 4.0}
DENSITY_GAIN = 20.0  # on the density's first weights: opaque means densities of some hundreds
STYLE_GAIN = 0.3  # on the styles' first weights: near-linear in w to begin with, which generalises to unseen heads
IMPORTANCE_HEADS = 3000  # heads whose pictures tell how much each feature shows
AVERAGE_DECAY = 0.998


def main() -> int:
    parser = training_parser(__doc__, "train.generator")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder of python -m train.heads render; heads still being rendered join in as they come",
    )
    parser.add_argument(
        "--patch-data",
        type=Path,
        help="another such folder, of larger renders, for the heads that get a patch (default: DATA)",
    )
    parser.add_argument("--held-out", type=Path, help="another such folder, for the printed PSNR")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run: checkpoint, sheets, log")
    parser.add_argument("--out", type=Path, help="where the finished component is written (default: RUN/generator)")
    parser.add_argument(
        "--start", type=Path, help="a component to go on from, with patches at once, e.g. weights/faces/generator"
    )
    parser.add_argument(
        "--keep-mapping", action="store_true", help="w keeps its meaning: an encoder may learn it at the same time"
    )
    parser.add_argument(
        "--planes",
        type=int,
        choices=(FIRST_PLANE_RESOLUTION, *GROW_AT),
        default=max(GROW_AT),
        help="side of the planes; smaller ones learn faster",
    )
    parser.add_argument("--batch", type=int, default=12, help="heads per step")
    parser.add_argument("--rays", type=int, default=192, help="rays per head")
    parser.add_argument("--points", type=int, default=384, help="surface points per head")
    parser.add_argument("--patches", type=int, default=4, help="heads per step that also get a patch")
    parser.add_argument("--patch-rays", type=int, default=24, help="rays along a patch's side")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    return run_stage("train.generator", train, check_budget(parser, parser.parse_args()))


def train(args: argparse.Namespace) -> None:
    data = HeadsDataset(args.data)
    patch_data = HeadsDataset(args.patch_data) if args.patch_data else data
    size, wanted = patch_data.images.shape[2], SIZES["image_resolution"]
    if size != wanted:
        raise ValueError(
            f"{args.patch_data or args.data} holds renders of {size} px, but patches are cut from {wanted} px ones:"
            f" render with --size {wanted}, and give that folder as --patch-data."
        )
    held_out = HeadsDataset(args.held_out) if args.held_out else None
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    path = args.run / "checkpoint.pt"
    progress = Progress(args.minutes, args.steps)
    if path.is_file():
        resolution = checkpoint.load(path, {})["notes"]["plane_resolution"]
        network, average, optimizers = start(torch.ones(data.features.shape[1]), resolution, args.device)
        parts = {"network": network, "average": average, **optimizers}
        state = checkpoint.load(path, parts, rng=rng, device=args.device)
        progress = Progress(args.minutes, args.steps, step=state["step"], seconds=state["seconds"])
        print(f"resumed at step {state['step']}", file=sys.stderr)
    elif args.start:
        network, average, optimizers = go_on(args.start, args.device)
    else:
        network, average, optimizers = start(feature_importance(data), FIRST_PLANE_RESOLUTION, args.device)

    def save() -> None:
        parts = {"network": network, "average": average, **optimizers}
        notes = {"plane_resolution": network.config.plane_resolution}
        checkpoint.save(path, parts, step=progress.step, seconds=progress.seconds, rng=rng, notes=notes)

    if args.keep_mapping:
        hold_mapping(network, average)
    saved_at = progress.seconds
    patches_at = 0.0 if args.start else PATCHES_AT
    with Prefetch(
        lambda: next_batch(data, patch_data, rng, args, args.patches if progress.share >= patches_at else 0)
    ) as batches:
        while not progress.done:
            larger = 2 * network.config.plane_resolution
            if larger <= args.planes and progress.share >= GROW_AT[larger]:
                network, average, optimizers = grow(network, average, larger, args.device)
                if args.keep_mapping:
                    hold_mapping(network, average)
                print(f"step {progress.step}  planes grow to {larger} x {larger}", file=sys.stderr, flush=True)
            rate = cosine_rate(progress.share, RATE)
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["factor"]
                optimizer.zero_grad()
            with autocast(args.device, args.precision):
                terms = losses(network, batches.take())
            loss = sum(LOSS_WEIGHTS[name] * value for name, value in terms.items())
            loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
            with torch.no_grad():
                decay = min(AVERAGE_DECAY, (1 + progress.step) / (10 + progress.step))
                torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
            progress.advance(args.batch, **{name: value.detach() for name, value in terms.items()})
            if progress.seconds - saved_at > args.save_seconds:
                saved_at = progress.seconds
                save()
                if held_out is not None:
                    report(average, held_out, args, progress.step)
    save()
    finish(average, data, args.out or args.run / "generator")
    if held_out is not None:
        report(average, held_out, args, progress.step)


# ----------------------------------------------------------------------------
# The run.


def feature_importance(data: HeadsDataset) -> Tensor:
    """How much each feature shows in a picture where it shows most, [F], of mean square 1."""
    heads, pictures = frontal_pictures(data, data.ready[:IMPORTANCE_HEADS])
    return visibility(torch.from_numpy(data.features[heads]), pictures)


def start(importance: Tensor, plane_resolution: int, device: str):
    """Network, its moving average and its optimizers, new. `importance` [F] scales what the first layer sees of z."""
    network = TriPlaneGenerator(z_dim=len(importance), plane_resolution=plane_resolution, **SIZES)
    with torch.no_grad():
        # All features alike, heads would look equally far apart to the network, and it would learn them by heart.
        network.backbone.mapping.fc0.weight *= importance
        network.decoder.net[2].weight[0] *= DENSITY_GAIN
        for name, parameter in network.named_parameters():
            if name.endswith("affine.weight"):
                # Super-resolution is the same for all heads: seeing w, it would give each its own cast of colour.
                parameter *= 0 if name.startswith("superresolution") else STYLE_GAIN
    return ready(network, device)


def go_on(component: Path, device: str):
    """A component's network, drawing pictures of the size of SIZES whatever its own was, as `start` gives it."""
    old = TriPlaneGenerator.from_pretrained(component, dtype=torch.float32)
    network = TriPlaneGenerator(z_dim=old.config.z_dim, plane_resolution=old.config.plane_resolution, **SIZES)
    network.load_state_dict(old.state_dict())
    return ready(network, device)


def ready(network: TriPlaneGenerator, device: str):
    """A network on its device, a copy for the moving average, its optimizers."""
    network.train().requires_grad_(True).to(device, memory_format=torch.channels_last)
    return network, copy.deepcopy(network).requires_grad_(False), make_optimizers(network)


def grow(network: TriPlaneGenerator, average: TriPlaneGenerator, resolution: int, device: str):
    """The same pictures from planes of full resolution: the new block adds nothing yet."""
    larger = [
        TriPlaneGenerator(z_dim=n.config.z_dim, plane_resolution=resolution, **SIZES) for n in (network, average)
    ]
    for small, large in zip((network, average), larger):
        state = small.state_dict()
        planes = F.interpolate(state["average_planes"][None], scale_factor=2, mode="bilinear", align_corners=False)
        missing, _ = large.load_state_dict(state | {"average_planes": planes[0]}, strict=False)
        assert all(f".b{resolution}." in name for name in missing), missing
        with torch.no_grad():
            large.get_submodule(f"backbone.synthesis.b{resolution}.torgb").weight.zero_()
        large.to(device, memory_format=torch.channels_last)
    average = larger[1].requires_grad_(False)
    average.load_state_dict(
        {name: value for name, value in larger[0].state_dict().items() if f".b{resolution}." in name},
        strict=False,
    )
    return larger[0], average, make_optimizers(larger[0])


def hold_mapping(network: TriPlaneGenerator, average: TriPlaneGenerator) -> None:
    """The average's mapping, which is what is kept in the end, for both, and learning no more."""
    network.backbone.mapping.load_state_dict(average.backbone.mapping.state_dict())
    network.backbone.mapping.requires_grad_(False)


def make_optimizers(network: TriPlaneGenerator) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of synthesis, Adam for the rest; each group's `factor` is its rate relative to RATE."""
    matrices, groups = [], {}
    for name, parameter in network.named_parameters():
        if name.startswith("backbone.synthesis") and name.endswith("weight"):
            matrices.append(parameter)
            continue
        if name.startswith("superresolution") and name.endswith("affine.weight"):
            parameter.requires_grad_(False)  # stays zero, see `start`
            continue
        factor = next((factor for prefix, factor in RATE_FACTORS.items() if name.startswith(prefix)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    groups = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    return {
        "adam": torch.optim.Adam(groups, RATE, betas=(0.9, 0.99)),
        "muon": Muon([{"params": matrices, "factor": MUON_FACTOR}], RATE),
    }


def next_batch(
    data: HeadsDataset, patch_data: HeadsDataset, rng: np.random.Generator, args: argparse.Namespace, patches: int
) -> FieldBatch:
    """`patches` heads that get a patch too, the rest without."""
    heads = [(patch_data, head) for head in rng.choice(patch_data.ready, patches, replace=False)]
    heads += [(data, head) for head in rng.choice(data.ready, args.batch - patches, replace=False)]
    batch = draw_batch(heads, rng, args.rays, args.points, patches, args.patch_rays, SIZES["ray_resolution"])
    return batch.to(args.device)


class Prefetch:
    """Makes the next batch in a thread while the step runs."""

    def __init__(self, make):
        self.make, self.pool = make, ThreadPoolExecutor(1)

    def __enter__(self):
        self.pending = self.pool.submit(self.make)
        return self

    def __exit__(self, *_):
        self.pool.shutdown(cancel_futures=True)

    def take(self):
        batch = self.pending.result()
        self.pending = self.pool.submit(self.make)
        return batch


@torch.no_grad()
def report(
    average: TriPlaneGenerator, held_out: HeadsDataset, args: argparse.Namespace, step: int, heads: int = 24
) -> None:
    """Prints the PSNR of held-out heads' front views and saves a sheet: truth, generated."""
    chosen = held_out.ready[:heads]
    rows, errors, raw_errors = [], [], []
    for head in chosen:
        z = torch.from_numpy(held_out.features[head : head + 1]).to(args.device)
        camera = torch.from_numpy(held_out.cameras[head, :2].copy()).to(args.device)
        ws = average.mapping(z)
        view = average.render(average.planes(ws), camera, ws)
        image = view.image.clamp(-1, 1).cpu()
        truth = torch.from_numpy(over_background(held_out.images[head, :2])).permute(0, 3, 1, 2)
        raw = F.interpolate(view.raw.clamp(-1, 1).cpu(), truth.shape[-2:], mode="bilinear", align_corners=False)
        errors.append((image - truth).square().mean((1, 2, 3)) / 4)
        raw_errors.append((raw - truth).square().mean((1, 2, 3)) / 4)
        rows.append(torch.cat([*truth, *image], 2))
    psnr, raw_psnr = (float((-10 * torch.log10(torch.cat(e))).mean()) for e in (errors, raw_errors))
    count = 2 * len(chosen)
    print(
        f"step {step}  held-out PSNR {psnr:.2f} dB, before super-resolution {raw_psnr:.2f} dB, {count} views",
        file=sys.stderr,
        flush=True,
    )
    rows += [torch.ones_like(rows[0])] * (-len(rows) % 3)
    columns = torch.cat([torch.cat(rows[i::3], 1) for i in range(3)], 2)
    picture = ((columns.permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(args.run / "held_out.png")


@torch.no_grad()
def find_surface_density(network: TriPlaneGenerator, data: HeadsDataset, heads: int = 16) -> float:
    """The raw density whose first crossing along a ray lies nearest to the renders' depth, missing hardly any."""
    levels, reach = torch.tensor([5.0, 10, 20, 30, 40, 60, 80, 120, 160]), 0.06
    # Rims of glasses go first as the level rises: at 3 % missed they were broken in the mesh, at 1 % they were whole.
    missed_most = 0.01
    offsets = torch.linspace(-reach, reach, 97)
    rng, errors = np.random.default_rng(0), []
    for head in data.ready[:heads]:
        batch = draw_batch([(data, head)], rng, 1024, 1, 0, 1, SIZES["ray_resolution"])
        hit = batch.ray_depths[0] > 0
        depths = batch.ray_depths[0, hit, None] + offsets  # [R, 97]
        points = batch.ray_origins[0, hit, None] + depths[..., None] * batch.ray_directions[0, hit, None]
        planes = network.planes(network.mapping(batch.z.to(network.device)))
        density = network.density(planes, points.reshape(1, -1, 3).to(network.device)).view(depths.shape).cpu()
        dense = density[..., None] >= levels  # [R, 97, L]
        error = offsets[dense.int().argmax(1)].abs()
        errors.append(torch.where(dense.any(1), error, torch.nan))
    errors = torch.cat(errors)  # [R, L]
    missed = errors.isnan().float().mean(0)
    error = errors.nanmean(0).where(missed < missed_most, torch.inf)
    best = int(error.argmin()) if error.isfinite().any() else int(missed.argmin())
    found = f"surface at density {levels[best]:.0f}: {errors.nanmean(0)[best]:.4f} off, {missed[best]:.1%} missed"
    print(found, file=sys.stderr)
    return float(levels[best])


@torch.no_grad()
def finish(average: TriPlaneGenerator, data: HeadsDataset, out: Path) -> None:
    """Set the mean w and the density of surfaces, and write the component in half precision."""
    z = torch.from_numpy(data.features).to(average.device)
    average.backbone.mapping.w_avg.copy_(average.mapping(z)[:, 0].mean(0))
    average.register_to_config(surface_density=find_surface_density(average, data))
    copy.deepcopy(average).to("cpu", torch.float16).save_pretrained(out)
    print(f"wrote {out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
