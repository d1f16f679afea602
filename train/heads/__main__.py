"""The command line of the synthetic portraits: build the source, render a data set, look at a sheet."""

import argparse
import math
import os
import sys
from pathlib import Path

import train.heads
from train.loop.command import command_parser, run_command


def main() -> int:
    parser = command_parser(train.heads.__doc__, "train.heads")
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="MPFB2 + MakeHuman files -> one compact npz")
    build.add_argument("--mpfb", type=Path, required=True, help="MPFB2's folder src/mpfb/data")
    build.add_argument("--assets", type=Path, required=True, help="makehuman-assets' folder base")
    build.add_argument("--out", type=Path, required=True)

    render = commands.add_parser("render", help="render a data set; run again to resume")
    render.add_argument("--source", type=Path, required=True)
    render.add_argument("--out", type=Path, required=True)
    render.add_argument("--heads", type=int, default=10000)
    render.add_argument("--seed", type=int, default=1, help="another seed, other people")
    render.add_argument("--size", type=int, default=128, help="pixels of a view")
    render.add_argument("--processes", type=int, default=os.cpu_count())

    sheet = commands.add_parser("sheet", help="a picture of eight people from six sides")
    sheet.add_argument("--source", type=Path, required=True)
    sheet.add_argument("--out", type=Path, required=True)
    sheet.add_argument("--seed", type=int, default=0)
    sheet.add_argument("--size", type=int, default=192)

    portrait = commands.add_parser("portrait", help="one person, lit and before a background as in a photo")
    portrait.add_argument("--source", type=Path, required=True)
    portrait.add_argument("--out", type=Path, required=True)
    portrait.add_argument("--seed", type=int, default=0, help="which person")
    portrait.add_argument("--yaw", type=float, default=0.0, help="degrees")
    portrait.add_argument("--pitch", type=float, default=0.0, help="degrees")
    portrait.add_argument("--size", type=int, default=640)

    return run_command("train.heads", run, parser.parse_args())


def run(args: argparse.Namespace) -> None:
    if args.command == "build":
        from train.heads.source import build_source

        build_source(args.mpfb, args.assets, args.out)
        print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")
    elif args.command == "render":
        from train.heads.dataset import render_dataset

        count = render_dataset(args.source, args.out, args.heads, args.seed, args.size, args.processes)
        print(f"rendered {count} heads into {args.out}")
    elif args.command == "portrait":
        draw_portrait(args.source, args.out, args.seed, args.yaw, args.pitch, args.size)
        print(f"wrote {args.out}")
    else:
        draw_sheet(args.source, args.out, args.seed, args.size)
        print(f"wrote {args.out}")


def draw_sheet(source: Path, out: Path, seed: int, size: int) -> None:
    """Eight people from six sides, each in their own light."""
    import numpy as np
    from PIL import Image

    from preim3d.camera import camera_from_angles
    from train.heads.dataset import over_background
    from train.heads.geometry import HeadBuilder
    from train.heads.renderer import RenderedHead
    from train.heads.sampler import Z_DIM, sample_person
    from train.heads.source import HeadSource

    builder, rng, rows = HeadBuilder(HeadSource(source)), np.random.default_rng(seed), []
    for _ in range(8):
        person = sample_person(rng.standard_normal(Z_DIM))
        rendered = RenderedHead(person, builder)
        angles = ((-35, 0), (0, 0), (30, -20), (30, 20), (90, 0), (180, 0))
        views = [
            rendered.view(camera_from_angles(math.radians(yaw), math.radians(pitch)).numpy(), size, person.light)[0]
            for yaw, pitch in angles
        ]
        rows.append(np.concatenate([over_background(view) for view in views], 1))
    Image.fromarray(((np.concatenate(rows) + 1) * 127.5).astype(np.uint8)).save(out)


def draw_portrait(source: Path, out: Path, seed: int, yaw_deg: float, pitch_deg: float, size: int) -> None:
    """One person in their own light before their own background, framed a little wider than the crop."""
    import numpy as np
    from PIL import Image

    from preim3d.camera import FOCAL, camera_from_angles
    from train.heads.dataset import WIDER
    from train.heads.geometry import HeadBuilder
    from train.heads.renderer import RenderedHead
    from train.heads.sampler import Z_DIM, sample_person
    from train.heads.source import HeadSource

    person = sample_person(np.random.default_rng(seed).standard_normal(Z_DIM))
    camera = camera_from_angles(math.radians(yaw_deg), math.radians(pitch_deg), focal=FOCAL / WIDER).numpy()
    rgba, _ = RenderedHead(person, HeadBuilder(HeadSource(source))).view(camera, size, person.light)
    down = np.linspace(0, 1, size)[:, None, None]
    background = person.background[0] * (1 - down) + person.background[1] * down
    alpha = rgba[..., 3:] / 255
    picture = rgba[..., :3] * alpha + 255 * background * (1 - alpha)
    Image.fromarray(picture.astype(np.uint8)).save(out)


if __name__ == "__main__":
    sys.exit(main())
