"""The command line: edit a photo or a folder of them, say what the weights are, measure this machine, import weights.

    python -m preim3d edit portrait.jpg --set smile=2 --set age=-1 --out out
    python -m preim3d edit portrait.jpg --inversion hybrid --out out
    python -m preim3d edit photos/ --set eyeglasses=2 --out out
    python -m preim3d edit photos.txt --shard 1/2 --tar --out out
    python -m preim3d info
    python -m preim3d bench
    python -m preim3d convert --eg3d ffhq512-128.pkl --encoder preim3d_ffhq.pt --directions DIR --out weights/ffhq512

Torch is imported after everything that a person may have mistyped has been checked.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from preim3d.batch import edit_many
from preim3d.methods import METHODS, check_method
from preim3d.options import given_path, whole_number
from preim3d.results import RESULTS, Request, check_place, edit_photos, load_pipeline, publish, staging_near
from preim3d.sources import Photo, Shard, find_shard, is_many, list_photos
from preim3d.strengths import check_face, check_strengths, parse_strengths
from preim3d.weights import check_weights, find_weights, read_json
from preim3d.workers import Editor, Setup


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after one sentence about what went wrong."""
    options = make_parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:  # ours are one sentence each: WeightsError, PhotoError and the like
        print(f"preim3d: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("preim3d: stopped.", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("preim3d", description="From one portrait photo to an editable 3D head.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    edit = commands.add_parser(
        "edit",
        help="reconstruct and edit one photo, or all of a folder, a list or tars",
        epilog="example: python -m preim3d edit portrait.jpg --set smile=2 --set age=-1 --out out",
    )
    edit.add_argument(
        "photo",
        metavar="PHOTO|FOLDER|LIST|TAR",
        type=given_path,
        help="a portrait photo, a folder of them (or of tars), a list of their paths (.txt, one a line), or a tar",
    )
    edit.add_argument(
        "--set",
        metavar="NAME=STRENGTH",
        action="append",
        default=[],
        help="an attribute and how far to move it, in standard deviations; may be repeated; `info` lists the names",
    )
    edit.add_argument("--out", metavar="DIR", type=given_path, required=True, help="where the results go")
    edit.add_argument("--face", metavar="N", type=int, default=1, help="which face of several; 1 is the largest")
    edit.add_argument(
        "--texture",
        action="store_true",
        help="head.glb has 10,000 triangles and a picture of the colours, not 50,000 and a colour at each corner",
    )
    edit.add_argument(
        "--quality", choices=("fast", "normal", "best"), default="normal", help="how finely views are sampled"
    )
    edit.add_argument(
        "--inversion",
        choices=METHODS,
        default="encoder",
        help="how the head is found: encoder at once; hybrid looks far more like the person, a minute on a processor",
    )
    edit.add_argument("--steps", metavar="N", type=int, help="of the slower inversions; default: as many as they need")
    edit.add_argument("--seconds", metavar="S", type=float, help="after which they end, with the best so far")
    many = edit.add_argument_group(
        "many photos", "Run again, it goes on where it stopped: what is done is passed over."
    )
    many.add_argument(
        "--workers", metavar="N", type=whole_number(1), help="processes; default: one per GPU or two cores"
    )
    many.add_argument(
        "--shard", metavar="I/N", help="do the I-th of N parts, I from 1 to N; default: what a launcher says, or all"
    )
    many.add_argument("--tar", action="store_true", help="put results into webdataset tars, not into folders")
    add_machine_options(edit)
    edit.set_defaults(run=run_edit)

    info = commands.add_parser("info", help="which weights are used, which attributes they know, how good they are")
    info.add_argument(
        "--weights",
        metavar="DIR|ID",
        help="a folder, or user/name[@revision] of the Hugging Face Hub; default: the bundled ones",
    )
    info.set_defaults(run=run_info)

    bench = commands.add_parser("bench", help="measure how fast and how large everything is on this machine")
    bench.add_argument(
        "photo", metavar="PHOTO", type=given_path, nargs="?", help="default: the astronaut of scikit-image"
    )
    bench.add_argument(
        "--full-size",
        action="store_true",
        help="the published 512 px configuration instead, beside the original's way",
    )
    bench.add_argument("--json", action="store_true", help="print JSON rather than a table")
    add_machine_options(bench)
    bench.set_defaults(run=run_bench)

    convert = commands.add_parser(
        "convert",
        help="make a weights folder of the published files of EG3D and PREIM3D; nothing in them is executed",
        epilog="Each file is recognised by its content; any of them alone is converted too.",
    )
    convert.add_argument(
        "--eg3d", metavar="FILE", type=given_path, help="network pickle, or the generator that torch.save wrote"
    )
    convert.add_argument("--encoder", metavar="FILE", type=given_path, help="checkpoint of the encoder")
    convert.add_argument("--identity", metavar="FILE", type=given_path, help="identity network, model_ir_se50.pth")
    convert.add_argument("--directions", metavar="DIR|FILE", type=given_path, help="a direction, or a folder of them")
    convert.add_argument("--out", metavar="DIR", type=given_path, required=True, help="the weights folder")
    convert.set_defaults(run=run_convert)
    return parser


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        metavar="DIR|ID",
        help="a folder, or user/name[@revision] of the Hugging Face Hub; default: the bundled ones",
    )
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")


# ----------------------------------------------------------------------------
# edit


def run_edit(options: argparse.Namespace) -> int:
    strengths = parse_strengths(options.set)
    check_face(options.face)
    check_method(options.inversion, options.steps, options.seconds)
    many = is_many(options.photo)
    shard = find_shard(options.shard) if many else Shard()
    if not many:
        list_photos(options.photo)  # says that it is missing
        check_place(options.out)
        if options.shard or options.workers or options.tar:
            raise ValueError("--shard, --workers and --tar are for many photos: give a folder, a list or a tar.")
    weights = find_weights(options.weights)
    check_weights(weights.folder)
    strengths = check_strengths(strengths, read_json(weights.folder / "directions" / "config.json", "names")["names"])
    request = Request(
        strengths,
        options.face,
        options.texture,
        options.quality,
        options.inversion,
        options.steps,
        options.seconds,
    )
    print(weights.source, file=sys.stderr)
    if many:
        return edit_many(
            options.photo, options.out, request, weights.folder, shard, options.device, options.workers, options.tar
        )
    with staging_near(options.out) as staging:
        editor = Editor(Setup(weights.folder, request), options.device)
        start = time.perf_counter()
        photo = Photo(options.photo.name, "", options.photo, "")
        (made,) = edit_photos(editor.pipeline, editor.identity, [photo], request)
        if isinstance(made, Exception):
            raise made
        publish(made.files, Path(staging), options.out)
        seconds = time.perf_counter() - start
    print(*made.found, sep="\n")
    print(f"Wrote {', '.join(RESULTS[:-1])} and {RESULTS[-1]} to {options.out} in {seconds:.1f} s.")
    return 0


# ----------------------------------------------------------------------------
# info, bench


def run_info(options: argparse.Namespace) -> int:
    weights = find_weights(options.weights)
    check_weights(weights.folder)
    columns = ("names", "labels", "groups", "accuracies", "safe_range")
    directions = read_json(weights.folder / "directions" / "config.json", *columns, "space")
    generator = read_json(weights.folder / "generator" / "config.json", "image_resolution")
    print(weights.source)
    print(f"Pictures of {generator['image_resolution']} px; directions in {directions['space']} space:")
    print(f"  {'name':<20}{'shown as':<22}{'group':<16}{'accuracy':>8}  safe strengths")
    for name, label, group, accuracy, (low, high) in zip(*(directions[column] for column in columns)):
        known = "?" if accuracy is None else f"{accuracy:.0%}"
        print(f"  {name:<20}{label:<22}{group:<16}{known:>8}  {low:+g} to {high:+g}")
    if (weights.folder / "evaluation.json").is_file():
        measured = read_json(weights.folder / "evaluation.json")
        print(f"Measured ({weights.folder / 'evaluation.json'} has the protocol, and more):")
        for key, value in measured.items():
            if isinstance(value, int | float | str) and len(str(value)) < 80:
                print(f"  {key}: {value}")
    return 0


def run_bench(options: argparse.Namespace) -> int:
    if options.full_size:
        from preim3d.bench_full_size import full_size_table, measure_full_size
        from preim3d.device import find_device

        figures = measure_full_size(str(find_device(options.device)))
        print(json.dumps(figures, indent=2) if options.json else full_size_table(figures))
        return 0
    weights = find_weights(options.weights)
    check_weights(weights.folder)
    start = time.perf_counter()
    pipeline = load_pipeline(weights.folder, options.device)
    load_s = time.perf_counter() - start

    from preim3d.bench import measure, table

    figures = measure(pipeline, load_s, weights.folder, options.photo)
    print(json.dumps(figures, indent=2) if options.json else table(figures))
    return 0


# ----------------------------------------------------------------------------
# convert


def run_convert(options: argparse.Namespace) -> int:
    files = [path for path in (options.eg3d, options.encoder, options.identity) if path]
    if options.directions and options.directions.is_dir():
        found = sorted(path for path in options.directions.iterdir() if path.suffix in (".pt", ".pth", ".npy"))
        if not found:
            raise ValueError(f"There is no .pt, .pth or .npy file in {options.directions}.")
        files += found
    elif options.directions:
        files.append(options.directions)
    if not files:
        raise ValueError("Give at least one of --eg3d, --encoder, --identity and --directions.")

    from preim3d.convert import convert

    print(*convert(files, options.out), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
