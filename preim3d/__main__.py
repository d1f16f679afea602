"""The command line: edit a photo or a folder of them, say what the weights are, measure this machine, import weights.

    python -m preim3d edit portrait.jpg --set smile=2 --set age=-1 --out out
    python -m preim3d edit portrait.jpg --inversion hybrid --out out
    python -m preim3d edit photos/ --set eyeglasses=2 --out out
    python -m preim3d info
    python -m preim3d bench
    python -m preim3d convert --eg3d ffhq512-128.pkl --encoder preim3d_ffhq.pt --directions DIR --out weights/ffhq512

Torch is imported after everything that a person may have mistyped has been checked.
"""

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path

from preim3d.files import cannot_be_written, staging_folder, sweep
from preim3d.methods import METHODS, check_method
from preim3d.options import given_path
from preim3d.strengths import check_face, check_strengths, parse_strengths
from preim3d.weights import check_weights, find_weights, read_json


# What in a folder is taken for a photo.
PICTURES = set(".jpg .jpeg .jfif .png .webp .tif .tiff .bmp .gif .ppm .avif .heic .heif".split())
RESULTS = ("crop.png", "grid.png", "edited_grid.png", "head.glb", "head.recipe.json", "result.json")


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
        help="reconstruct and edit one photo, or every photo of a folder",
        epilog="example: python -m preim3d edit portrait.jpg --set smile=2 --set age=-1 --out out",
    )
    edit.add_argument("photo", metavar="PHOTO|FOLDER", type=given_path, help="a portrait photo, or a folder of them")
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
    photos, skipped = list_photos(options.photo)
    weights = find_weights(options.weights)
    check_weights(weights.folder)
    strengths = check_strengths(strengths, read_json(weights.folder / "directions" / "config.json", "names")["names"])
    folders = result_folders(options.photo, photos, options.out)

    with staging_near(options.out) as staging:
        print(weights.source, file=sys.stderr)
        pipeline, identity = load_networks(weights.folder, options.device)
        if not options.photo.is_dir():
            start = time.perf_counter()
            found = edit_photo(pipeline, identity, photos[0], strengths, options, staging, folders[0])
            seconds = time.perf_counter() - start
            print(*found, sep="\n")
            print(f"Wrote {', '.join(RESULTS[:-1])} and {RESULTS[-1]} to {folders[0]} in {seconds:.1f} s.")
            return 0

        from tqdm import tqdm

        failures = []
        for photo, folder in zip(tqdm(photos, unit="photo"), folders):
            try:
                found = edit_photo(pipeline, identity, photo, strengths, options, staging, folder)
                tqdm.write(f"{photo.name}: {' '.join(found)}", file=sys.stdout)
            except (ValueError, OSError) as error:
                failures.append(f"  {photo.name}: {error}")
    print(f"{len(photos) - len(failures)} of {len(photos)} photos done; a folder for each is in {options.out}.")
    if skipped:
        print(f"Passed over, as their names are not those of pictures: {', '.join(skipped)}.")
    if failures:
        print("Failed:", *failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


def list_photos(path: Path) -> tuple[list[Path], list[str]]:
    """The photos at a path in order, and the names of the other files in that folder."""
    if not path.exists():
        raise ValueError(f"There is no photo or folder {str(path)!r}.")
    if not path.is_dir():
        return [path], []
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    photos = [file for file in files if file.suffix.lower() in PICTURES]
    if not photos:
        raise ValueError(f"There is no picture in the folder {str(path)!r}; give one with JPEG or PNG files.")
    return photos, [file.name for file in files if file not in photos]


def result_folders(path: Path, photos: list[Path], out: Path) -> list[Path]:
    """Where each photo's results go: `out` itself for a single photo, else a subfolder with the photo's name.

    Raises:
        ValueError: a result could not take the place of what is there.
    """
    if path.is_dir():
        stems = [photo.stem.lower() for photo in photos]
        # ann.jpg and ann.png cannot both have the folder ann.
        folders = [out / (p.stem if stems.count(p.stem.lower()) == 1 else p.name) for p in photos]
    else:
        folders = [out]
    for folder in folders:
        for target in [folder / name for name in RESULTS]:
            if target.is_dir():
                raise ValueError(f"{target} is a folder, so no result can be written there; choose another --out.")
    return folders


def staging_near(out: Path):
    """A hidden folder on the same disk as `out`, where results are made before they are moved there whole.

    Raises:
        ValueError: nothing can be written there.
    """
    nearest, *above = (place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    for place in above:  # where a run that was killed had it, before `out` was there
        sweep(place)
    try:
        return staging_folder(nearest)
    except OSError as error:
        raise ValueError(f"Nothing can be written to {out} ({error.strerror}); choose another --out.") from None


def load_pipeline(folder: Path, device: str | None):
    """The pipeline on the device asked for, else on the best one."""
    from diffusers.utils import logging

    from preim3d.device import find_device
    from preim3d.pipeline import Preim3DPipeline

    logging.disable_progress_bar()  # one for each network, over in a moment
    place = find_device(device)
    return Preim3DPipeline.from_pretrained(folder).to(place)


def load_networks(folder: Path, device: str | None):
    """The pipeline, and what judges likeness, which is None where no such network is bundled."""
    pipeline = load_pipeline(folder, device)  # which says what is wrong before anything else is loaded

    from preim3d.judge import IdentityJudge

    return pipeline, IdentityJudge.of_weights(folder)


def edit_photo(
    pipeline,
    identity,
    photo: Path,
    strengths: dict[str, float],
    options: argparse.Namespace,
    staging: str,
    folder: Path,
) -> list[str]:
    """Makes the six results of one photo beside their place, then moves them there: all of them or none. Returns what
    a person wants to know of the photo, a sentence each."""
    from preim3d.camera import PITCHES_DEG, YAWS_DEG
    from preim3d.edits import Edit, Plan
    from preim3d.mesh import mesh_bytes
    from preim3d.pipeline import grid_sheet
    from preim3d.recipe import Recipe
    from preim3d.turntable import cameras

    head = pipeline(
        photo,
        strengths,
        face=options.face,
        mesh=True,
        texture=options.texture,
        quality=options.quality,
        inversion=options.inversion,
        steps=options.steps,
        seconds=options.seconds,
    )
    yaw_deg, pitch_deg = head.camera_deg
    number = "1 face" if head.faces_found == 1 else f"{head.faces_found} faces"
    this = "this one" if head.faces_found == 1 else f"face {options.face}{' (the largest)' * (options.face == 1)}"
    found = [f"{number} found; {this} is seen from yaw {yaw_deg:.0f}, pitch {pitch_deg:.0f} degrees."]
    likeness = None
    if identity is not None:
        seat = cameras([head.camera_deg], pipeline.generator.config.pivot)
        (view,) = pipeline.views(pipeline.head(head.w, head.tuning), seat, options.quality)
        likeness = identity.likeness(head.crop, view)
        found.append(f"Reconstruction and photo: {likeness.words} (distance {likeness.distance:.2f}).")
    result = {
        "photo": photo.name,
        "faces_found": head.faces_found,
        "face": options.face,
        "camera": {"yaw_deg": round(yaw_deg, 2), "pitch_deg": round(pitch_deg, 2)},
        "likeness": likeness and {"distance": round(likeness.distance, 4), "words": likeness.words},
        "inversion": options.inversion,
        "strengths": strengths,
        "grid": {"pitch_deg": PITCHES_DEG, "yaw_deg": YAWS_DEG},
        "mesh": {"vertices": len(head.mesh.vertices), "faces": len(head.mesh.faces), "unit": "metre"},
        "files": RESULTS[:-1],
        "weights": pipeline.directions.config.fingerprint,
        "w": [[float(str(number)) for number in row] for row in head.w],  # float32 has fewer digits than float64
    }
    plan = Plan(tuple(Edit(name, strength) for name, strength in strengths.items() if strength))
    recipe = Recipe(head.w, plan, yaw_deg, pitch_deg, head.tuning)
    contents = {
        "crop.png": png(head.crop),
        "grid.png": png(grid_sheet(head.views)),
        "edited_grid.png": png(grid_sheet(head.edited_views)),
        "head.glb": mesh_bytes(head.mesh, "glb", {"strengths": strengths}),
        "head.recipe.json": recipe.dumps(pipeline.directions.config.fingerprint).encode(),
        "result.json": (readable(result) + "\n").encode(),
    }
    publish(contents, Path(staging), folder)
    return found


def png(picture) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()


def publish(contents: dict[str, bytes], staging: Path, folder: Path) -> None:
    """Writes the results to `staging`, then moves them to their folder, on the same disk; other files there stay.

    Raises:
        OSError: one sentence about the file that could not be written.
    """
    name = RESULTS[0]
    try:
        for name, content in contents.items():
            (staging / name).write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        for name in contents:
            os.replace(staging / name, folder / name)
    except OSError as error:
        raise cannot_be_written(folder / name, error) from error


def readable(value, indent: str = "") -> str:
    """JSON with an object's entries, and a matrix' rows, on a line each, but arrays on one."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {readable(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(inner + json.dumps(row) for row in value) + f"\n{indent}]"
    return json.dumps(value)


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
