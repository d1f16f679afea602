"""A photo -> the six files of its head; into a folder they come whole or not at all.

photo ── pipeline.portrait ──> crops, some at a time ── pipeline.reconstruct ──> heads ── pipeline ──> views, mesh
                                                                                              all of it ──> files

Torch is imported when there is work to do: what a person mistyped is told before."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from preim3d.files import cannot_be_written, staging_folder, sweep
from preim3d.sources import Photo


RESULTS = ("crop.png", "grid.png", "edited_grid.png", "head.glb", "head.recipe.json", "result.json")


@dataclass(frozen=True)
class Request:
    """What is asked for of every photo; each as in `Preim3DPipeline.__call__`."""

    strengths: dict[str, float]
    face: int = 1
    texture: bool = False
    quality: str = "normal"
    inversion: str = "encoder"
    steps: int | None = None
    seconds: float | None = None


class Made(NamedTuple):
    """What became of a photo."""

    files: dict[str, bytes]  # by the names of `RESULTS`, in that order
    found: list[str]  # what a person wants to know of the photo, a sentence each


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


def edit_photos(pipeline, identity, photos: list[Photo], request: Request) -> Iterator[Made | Exception]:
    """What becomes of each photo, in order, or why nothing does. Their crops are encoded at once.

    Whatever is wrong with one photo, a fault of this program's included, leaves the others as they are."""
    portraits = [attempt(lambda photo=photo: pipeline.portrait(photo.content(), request.face)) for photo in photos]
    crops = [portrait.crop for portrait in portraits if not isinstance(portrait, Exception)]
    heads = attempt(lambda: pipeline.reconstruct(*crops)) if crops else iter(())
    for photo, portrait in zip(photos, portraits):
        if isinstance(portrait, Exception):
            yield portrait
        elif isinstance(heads, Exception):
            yield heads
        elif isinstance(head := attempt(lambda: next(heads)), Exception):
            yield head
        else:
            yield attempt(
                lambda portrait=portrait, head=head, photo=photo: edit_portrait(
                    pipeline, identity, portrait, head, Path(photo.name).name, request
                )
            )


def attempt(work):
    """What `work` gives, or the exception that it raised."""
    try:
        return work()
    except Exception as error:  # of ten million photos one will find what nobody has thought of
        return error


def edit_portrait(pipeline, identity, portrait, start, name: str, request: Request) -> Made:
    """The six files of one head: `portrait` as `pipeline.portrait` gives it, `start` as `reconstruct` does."""
    from preim3d.camera import PITCHES_DEG, YAWS_DEG
    from preim3d.edits import Edit, Plan
    from preim3d.mesh import mesh_bytes
    from preim3d.pipeline import grid_sheet
    from preim3d.recipe import Recipe
    from preim3d.turntable import cameras

    strengths = request.strengths
    head = pipeline(
        portrait,
        strengths,
        head=start,
        face=request.face,
        mesh=True,
        texture=request.texture,
        quality=request.quality,
        inversion=request.inversion,
        steps=request.steps,
        seconds=request.seconds,
    )
    yaw_deg, pitch_deg = head.camera_deg or (0.0, 0.0)
    found = [what_was_found(head, request.face)]
    likeness = None
    if identity is not None and head.camera_deg:
        seat = cameras([head.camera_deg], pipeline.generator.config.pivot)
        shown = start if request.inversion == "encoder" else pipeline.head(head.w, head.tuning)
        (view,) = pipeline.views(shown, seat, request.quality)
        likeness = identity.likeness(head.crop, view)
        found.append(f"Reconstruction and photo: {likeness.words} (distance {likeness.distance:.2f}).")
    result = {
        "photo": name,
        "faces_found": head.faces_found,
        "face": request.face,
        "camera": head.camera_deg and {"yaw_deg": round(yaw_deg, 2), "pitch_deg": round(pitch_deg, 2)},
        "likeness": likeness and {"distance": round(likeness.distance, 4), "words": likeness.words},
        "inversion": request.inversion,
        "strengths": strengths,
        "grid": {"pitch_deg": PITCHES_DEG, "yaw_deg": YAWS_DEG},
        "mesh": {"vertices": len(head.mesh.vertices), "faces": len(head.mesh.faces), "unit": "metre"},
        "files": RESULTS[:-1],
        "weights": pipeline.directions.config.fingerprint,
        "w": [[float(str(number)) for number in row] for row in head.w],  # float32 has fewer digits than float64
    }
    plan = Plan(tuple(Edit(name, strength) for name, strength in strengths.items() if strength))
    recipe = Recipe(head.w, plan, yaw_deg, pitch_deg, head.tuning)
    files = {
        "crop.png": png(head.crop),
        "grid.png": png(grid_sheet(head.views)),
        "edited_grid.png": png(grid_sheet(head.edited_views)),
        "head.glb": mesh_bytes(head.mesh, "glb", {"strengths": strengths}),
        "head.recipe.json": recipe.dumps(pipeline.directions.config.fingerprint).encode(),
        "result.json": (readable(result) + "\n").encode(),
    }
    return Made(files, found)


def what_was_found(head, face: int) -> str:
    """A sentence about the photo."""
    if head.faces_found is None:
        from preim3d.align import TAKEN_WHOLE

        return TAKEN_WHOLE
    number = "1 face" if head.faces_found == 1 else f"{head.faces_found} faces"
    this = "this one" if head.faces_found == 1 else f"face {face}{' (the largest)' * (face == 1)}"
    return f"{number} found; {this} is seen from yaw {{:.0f}}, pitch {{:.0f}} degrees.".format(*head.camera_deg)


def png(picture) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        return file.getvalue()


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
# Their place.


def check_place(folder: Path) -> None:
    """Raises ValueError where a result could not take the place of what is there."""
    for target in [folder / name for name in RESULTS]:
        if target.is_dir():
            raise ValueError(f"{target} is a folder, so no result can be written there; choose another --out.")


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


def publish(files: dict[str, bytes], staging: Path, folder: Path) -> None:
    """Writes the results to `staging`, then moves them to their folder, on the same disk, `result.json` last; other
    files there stay.

    Raises:
        OSError: one sentence about the file that could not be written.
    """
    name = RESULTS[0]
    try:
        for name, content in files.items():
            (staging / name).write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        for name in files:
            os.replace(staging / name, folder / name)
    except OSError as error:
        raise cannot_be_written(folder / name, error) from error
