"""The page: a portrait photo in; its head from all sides, sliders that edit it, and a mesh to turn and to take out.

python app.py --port 7860
"""

import spaces  # first: on ZeroGPU it must see torch being imported  # isort: skip
import argparse
import functools
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the server would call home as gradio is imported
import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from preim3d.align import Face, crop_face
from preim3d.camera import orbit_cameras
from preim3d.directions import ATTRIBUTES, MAIN_ATTRIBUTES
from preim3d.edits import Plan, conditional
from preim3d.film import font, orbit_video
from preim3d.mesh import mesh_bytes
from preim3d.page.visitor import Visitor, data_uri, sweep_forever
from preim3d.page.widgets import CSS, HEAD, THEME, PhotoBox, edit_list, safe_marks, viewer
from preim3d.photo import PhotoError, load_photo
from preim3d.pipeline import Head, Preim3DPipeline, as_array, grid_sheet
from preim3d.pose import face_angles
from preim3d.recipe import Recipe, RecipeError, load_recipe
from preim3d.refine import STEPS, refine
from preim3d.strengths import STRENGTH_LIMIT, check_strengths
from preim3d.turntable import COLUMNS, GRID, Angles, cameras, pack, turn_angles
from preim3d.weights import WeightsError, find_weights, read_json


parser = argparse.ArgumentParser(
    description="The page of Preim3D.",
    epilog="On a Space, without flags: PREIM3D_WEIGHTS, PREIM3D_DEVICE and PREIM3D_QUEUE_SIZE in the environment.",
)
parser.add_argument("--weights", metavar="DIR", help="a folder in pipeline layout; default: the bundled one")
parser.add_argument("--host", help="default: 127.0.0.1, this machine only; 0.0.0.0 lets others in")
parser.add_argument("--port", type=int, help="default: the first free one from 7860")
parser.add_argument("--share", action="store_true", help="also open a public address at gradio.live")
parser.add_argument(
    "--device", metavar="cpu|cuda", default=os.environ.get("PREIM3D_DEVICE"), help="default: cuda where there is one"
)
parser.add_argument(
    "--queue-size",
    type=int,
    default=os.environ.get("PREIM3D_QUEUE_SIZE", "30"),
    help="visitors who may wait; the next one is told so at once",
)
options = parser.parse_args(None if __name__ == "__main__" else [])

FORGET_S = int(os.environ.get("PREIM3D_FORGET_S", "3600"))  # how long files and latents are kept
FILM_FRAMES = 90  # three seconds
READER = Path(__file__).parent / "weights" / "reader"

try:
    weights = find_weights(options.weights)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise WeightsError(f"There is no device {device!r} on this machine; leave --device out.") from None
    pipeline = Preim3DPipeline.from_pretrained(weights.folder).to(device)
except WeightsError as error:
    sys.exit(f"preim3d: {error}")
print(weights.source)
directions = pipeline.directions
pivot = pipeline.generator.config.pivot

judge, same_person, other_person = None, None, None
if (READER / "config.json").is_file():
    from preim3d.judge import Judge

    judge = Judge(READER)
    if (weights.folder / "evaluation.json").is_file():
        measured = read_json(weights.folder / "evaluation.json").get("identity", {})
        same_person, other_person = measured.get("yaw_20_30"), measured.get("other")


# ----------------------------------------------------------------------------
# What runs on the GPU, where there is one. Numbers and pictures go in and out, never tensors.


@spaces.GPU(duration=15)
def start_head(crop: Image.Image, angles: Angles) -> Iterator[tuple]:
    """crop -> ("w", w [num_ws, w_dim]), then what `look_at` gives."""
    w = as_array(pipeline.encode(crop))
    yield "w", w
    yield from look_at(w, {}, angles)


@spaces.GPU(duration=10)
def render_head(w: np.ndarray, strengths: dict[str, float], angles: Angles) -> Iterator[tuple]:
    """w [num_ws, w_dim], edited -> what `look_at` gives."""
    yield from look_at(w, strengths, angles)


@spaces.GPU(duration=15)
def render_both(w: np.ndarray, strengths: dict[str, float], angles: Angles) -> Iterator[tuple]:
    """The head without the edits, then with them, as `look_at` gives them, and ("edited", None) between them."""
    yield from look_at(w, {}, angles)
    if strengths:
        yield "edited", None
        yield from look_at(w, strengths, angles)


def look_at(w: np.ndarray, strengths: dict[str, float], angles: Angles) -> Iterator[tuple]:
    """("frames", frames, depths) so far, ever more of them, and ("mesh", the bytes of a GLB) as soon as the grid is
    there."""
    head = edited_head(w, strengths)
    seats = cameras(turn_angles(angles), pivot)
    frames, depths = [], []
    for first, last in ((0, 1), (1, GRID.stop), (GRID.stop, 20), (20, 30), (30, len(seats))):
        pictures, depth = pipeline.views_and_depths(head, seats[first:last])
        frames += pictures
        depths += depth
        yield "frames", frames, depths
        if last == GRID.stop:
            yield "mesh", mesh_bytes(pipeline.mesh(head), "glb", {"strengths": strengths})


def edited_head(source: np.ndarray | Image.Image, strengths: dict[str, float]) -> Head:
    """Of a latent, or of a crop that is encoded first."""
    w = pipeline.encode(source) if isinstance(source, Image.Image) else source
    return pipeline.head(pipeline.edit(w, strengths))


@spaces.GPU(duration=5)
def look_from(
    source: np.ndarray | Image.Image, strengths: dict[str, float], angles: Angles
) -> tuple[Image.Image, Image.Image]:
    """One picture of the edited head, and its depth."""
    pictures, depths = pipeline.views_and_depths(edited_head(source, strengths), cameras([angles], pivot))
    return pictures[0], depths[0]


@spaces.GPU(duration=10)
def nine_views(crop: Image.Image, strengths: dict[str, float]) -> list[Image.Image]:
    return pipeline.views(edited_head(crop, strengths))


@spaces.GPU(duration=10)
def make_mesh(source: np.ndarray | Image.Image, strengths: dict[str, float], format: str) -> bytes:
    return mesh_bytes(pipeline.mesh(edited_head(source, strengths)), format, {"strengths": strengths})


@spaces.GPU(duration=20)
def make_film(w: np.ndarray, strengths: dict[str, float]) -> Iterator[list[Image.Image]]:
    """The frames of one round, some at a time."""
    head = edited_head(w, strengths)
    for camera in orbit_cameras(FILM_FRAMES, pivot=pivot).split(10):
        yield pipeline.views(head, camera)


@spaces.GPU(duration=30)
def refine_latent(crop: Image.Image, w: np.ndarray, angles: Angles) -> Iterator[tuple[int, float, np.ndarray]]:
    yield from refine(pipeline.generator, crop, w, *angles)


# ----------------------------------------------------------------------------
# Heads to look at before any upload.


def find_examples(folder: Path) -> list[Path]:
    """What `python -m train.examples` made of synthetic portraits with just these weights."""
    found = []
    for result in sorted(folder.glob("examples/*/result.json")):
        if read_json(result, "weights", "photo_angles")["weights"] == directions.config.fingerprint:
            found.append(result.parent)
        else:
            print(f"The example {result.parent} was made with other weights and is not shown; make it again.")
    return found


def visit_example(folder: Path) -> Visitor:
    result = read_json(folder / "result.json", "w", "photo_angles")
    with Image.open(folder / "turn.webp") as frames, Image.open(folder / "crop.png") as crop:
        side = frames.width // COLUMNS
        return Visitor(
            origin="example",
            w=np.array(result["w"], dtype=np.float32),
            crop=crop.convert("RGB"),
            photo_angles=tuple(result["photo_angles"]),
            front=frames.convert("RGB").crop((0, 0, side, side)),
            frames=data_uri(frames.convert("RGB")),
        )


def show_example(folder: Path, visitor: Visitor) -> dict:
    """Everything about a fresh example, without any computation."""
    with Image.open(folder / "depth.webp") as depth:
        shown = view_value(visitor, visitor.frames, data_uri(depth.convert("L")), count=len(turn_angles()))
    return {
        session: visitor,
        crop: str(folder / "crop.png"),
        view: shown,
        grid: str(folder / "grid.png"),
        edited: str(folder / "grid.png"),
        model: str(folder / "head.glb"),
        **plan_updates(visitor),
        verdict: describe(visitor, visitor.front),
    }


examples = find_examples(weights.folder)
# Their files are served from where they lie, and are no visitor's to delete.
gr.set_static_paths([weights.folder / "examples"])


def choose_example(visitor: Visitor, event: gr.SelectData) -> dict:
    visitor.delete_files()
    folder = examples[event.index]
    return {**cleared(), **show_example(folder, visit_example(folder)), photo: None, status: PROMPT}


# ----------------------------------------------------------------------------
# What happens on the page.


def cleared() -> dict:
    """Every box empty and every slider at 0."""
    empty = {found: None, crop: None, view: {}, grid: None, edited: None, model: None, verdict: ""}
    empty |= {picker: gr.Radio(visible=False), download: gr.DownloadButton("Download GLB", interactive=False)}
    empty |= {format_choice: "GLB", film: None, looked: None, looked_depth: None, refined: ""}
    return {**empty, **{slider: 0 for slider in sliders.values()}}


def piling(handler):
    """The same handler, but each answer repeats the former ones: a busy browser takes only the newest. Sliders are
    told once, as people move them meanwhile."""

    @functools.wraps(handler)
    def piled(*arguments, **named):
        told = {}
        for answer in handler(*arguments, **named):
            told |= {box: value for box, value in answer.items() if box not in (*sliders.values(), protect)}
            yield {**told, **answer}

    return piled


def unchanged() -> dict:
    """To begin with: a handler that yields nothing at all would empty every box."""
    return {status: gr.skip()}


@piling
def show_photo(visitor: Visitor, file: str | None, face: int | None, progress=gr.Progress()) -> Iterator[dict]:
    """A new photo, or another face of the same one: finds the face, then shows the head bit by bit."""
    yield unchanged()
    if file is None:
        return
    progress(0.1, "Finding the face")
    face = face or 1
    content, name = Path(file).read_bytes(), Path(file).name
    visitor.delete_files()
    Path(file).unlink(missing_ok=True)  # its address follows from its content; that of our copy is anyone's guess
    visitor = Visitor()
    try:
        picture = load_photo(content)
        faces = pipeline.aligner.faces(picture)
        chosen = pipeline.aligner.choose(picture, face - 1, faces)
    except PhotoError as error:
        gr.Warning(str(error))
        yield {**cleared(), session: visitor, status: f"**{error}**", **plan_updates(visitor)}
        return
    visitor.origin, visitor.crop, visitor.photo_angles = (
        "photo",
        crop_face(picture, chosen),
        face_angles(chosen.points_px),
    )
    choices = [(f"Face {number}", number) for number in range(1, len(faces) + 1)]
    yield {
        **cleared(),
        session: visitor,
        photo: visitor.keep(name, content),
        found: visitor.keep_picture("found.png", draw_faces(picture, faces, face - 1)),
        crop: visitor.keep_picture("crop.png", visitor.crop),
        picker: gr.Radio(choices=choices, value=face, visible=len(faces) > 1),
        status: f"{len(faces)} faces were found; choose one below." if len(faces) > 1 else "",
        **plan_updates(visitor),
    }
    progress(0.3, "Reconstructing")
    steps = start_head(visitor.crop, visitor.photo_angles)
    _, visitor.w = next(steps)
    yield from show_head(visitor, steps, original=True)


def show_head(visitor: Visitor, steps: Iterator[tuple], original: bool = False) -> Iterator[dict]:
    """The pictures and the mesh of `look_at`, each as soon as it is there; `original` while nothing is edited. Ends
    early where the sliders have moved on."""
    total = len(turn_angles())
    before = None if original else visitor.front
    for kind, *things in steps:
        if visitor.w is None or (not original and visitor.slid != visitor.applied):
            return
        if kind == "edited":
            original, before = False, visitor.front
        elif kind == "mesh":
            visitor.keep("head.glb", things[0])  # for `show_mesh`
        else:
            frames, depths = things
            packed, depth = data_uri(pack(frames)), data_uri(pack(depths))
            if original:
                visitor.front, visitor.frames = frames[0], packed
            shown = view_value(visitor, packed, depth, len(frames), len(frames) if original else total)
            updates = {session: visitor, view: shown}
            if len(frames) == 1:
                updates |= {verdict: describe(visitor, frames[0], before), **plan_updates(visitor)}
            elif len(frames) == GRID.stop:
                sheet = visitor.keep_picture("grid.png" if original else "edited.png", grid_sheet(frames[GRID]))
                updates |= {grid: sheet, edited: sheet} if original else {edited: sheet}
            yield updates


def show_mesh(visitor: Visitor) -> dict:
    """The newest mesh. An event of its own, as the viewer stays blank if it is told the same file twice."""
    if "head.glb" not in visitor.files:
        return unchanged()
    path = str(visitor.files["head.glb"][-1])
    return {
        model: path,
        download: gr.DownloadButton("Download GLB", value=path, interactive=True),
        format_choice: "GLB",
        status: gr.skip(),
    }


def view_value(visitor: Visitor, frames: str, depth: str, count: int, base_count: int | None = None) -> dict:
    """What the viewer shows; see `widgets.viewer`."""
    value = {
        "angles": turn_angles(visitor.photo_angles),
        "columns": COLUMNS,
        "reconstruction": {"src": visitor.frames, "count": base_count or count},
        "edited": {"src": frames, "count": count},
        "depth": {"src": depth, "count": count},
    }
    if visitor.crop is not None:
        value["photo"] = {"src": data_uri(visitor.crop), "count": 1}
    return value


def describe(visitor: Visitor, after: Image.Image, before: Image.Image | None = None) -> str:
    """In words and figures: how much of the photo is kept, and what the edit did."""
    if judge is None:
        return ""
    lines = []
    if visitor.crop is not None:
        cosine = judge.identity(visitor.crop, visitor.front)
        lines.append(f"**Likeness of the reconstruction to the photo: {cosine:.2f}**{alike(cosine)}.")
    strengths = conditional_strengths(visitor)
    if before is not None and strengths:
        asked = visitor.history.plan.strengths()
        judgement = judge.judge(before, after, asked)
        lines.append(f"**Identity kept by the edit: {judgement.identity:.2f}**{alike(judgement.identity)}.")
        changed = ", ".join(f"{label_of(name).lower()} {value:+.1f}" for name, value in judgement.altering.items())
        drifts = ", ".join(f"{name} {value:+.1f}" for name, value in judgement.drifts.items())
        lines.append(
            (f"Altered (AA): {changed}. " if changed else "")
            + f"The rest drifts (AD) by {judgement.dependency:.2f} on average, most of all {drifts}."
        )
    if lines:
        scale = "Cosine of a small network's embeddings, 1 = the same; changes in its standard deviations."
        lines.append(f"<small>{scale} It learned on synthetic people.</small>")
    return "\n\n".join(lines)


def alike(cosine: float) -> str:
    """What a cosine means, by what was measured of these weights."""
    if same_person is None or other_person is None:
        return ""
    if cosine >= same_person:
        return " – like two views of one person"
    return " – the same type" if cosine > (same_person + other_person) / 2 else " – more like somebody else"


def conditional_strengths(visitor: Visitor) -> dict[str, float]:
    plan = visitor.history.plan
    return conditional(plan.strengths(), plan.protect, directions)


def plan_updates(visitor: Visitor) -> dict:
    """The list of edits, the recipe and the code to copy, as they are now."""
    history = visitor.history
    updates = {
        edits: [{**edit._asdict(), "label": label_of(edit.name)} for edit in history.plan.edits],
        undo: gr.Button(interactive=bool(history.past)),
        redo: gr.Button(interactive=bool(history.future)),
    }
    if visitor.w is None:
        return {**updates, recipe_download: gr.DownloadButton(interactive=False), as_python: "", as_command: ""}
    recipe = Recipe(visitor.w, history.plan, *visitor.photo_angles).dumps(directions.config.fingerprint)
    path = visitor.keep("head.recipe.json", recipe.encode())
    python, command = code_lines(visitor)
    return {
        **updates,
        recipe_download: gr.DownloadButton(value=path, interactive=True),
        as_python: python,
        as_command: command,
    }


def code_lines(visitor: Visitor) -> tuple[str, str]:
    """Python and a command that make the shown head again: from the photo, or from the recipe where that is needed."""
    strengths = {name: round(value, 4) for name, value in conditional_strengths(visitor).items()}
    folder = repr(str(options.weights)) if options.weights else ""
    flag = f" --weights {options.weights}" if options.weights else ""
    if visitor.origin == "photo" and not visitor.refined:
        python = f"""from preim3d import Preim3DPipeline

head = Preim3DPipeline.from_pretrained({folder})("portrait.jpg", {strengths})
head.edited_views[4].save("front.png")"""
        words = "".join(f" --set {name}={value:g}" for name, value in strengths.items())
        return python, f"python -m preim3d edit portrait.jpg{words}{flag} --out out"
    python = f"""from pathlib import Path

from preim3d import Preim3DPipeline
from preim3d.recipe import load_recipe

pipeline = Preim3DPipeline.from_pretrained({folder})
recipe = load_recipe(Path("head.recipe.json").read_bytes(), pipeline.directions)
head = pipeline.head(pipeline.edit(recipe.w, {strengths}))
pipeline.views(head)[4].save("front.png")"""
    return python, f"python -m preim3d.recipe head.recipe.json{flag} --out out"


def label_of(name: str) -> str:
    return rows[name][0]


def note_sliders(visitor: Visitor, *values: float) -> None:
    """Before anything waits in the queue: what is being rendered for other values may stop."""
    visitor.slid = values


def is_over(visitor: Visitor, file: str | None) -> bool:
    """Whether the session's time has run out: the state is then as at first, while the browser still shows a photo."""
    return file is not None and visitor.origin != "photo"


def has_head(visitor: Visitor, file: str | None = None) -> bool:
    if is_over(visitor, file):
        raise gr.Error("This session was an hour old and has ended; drop the photo in again.", print_exception=False)
    if visitor.w is None:
        gr.Warning("Drop in a photo first, or choose an example; then the sliders edit its head.")
    return visitor.w is not None


@piling
def slide(visitor: Visitor, file: str | None, *values: float) -> Iterator[dict]:
    """The sliders as they were let go of."""
    yield unchanged()
    if not has_head(visitor, file):
        return
    # What was noted since is newer than what this event brought; but the note of this very event may be late.
    if visitor.slid == visitor.applied:
        visitor.slid = values
    while visitor.slid != visitor.applied:
        visitor.applied = visitor.slid
        plan = visitor.history.plan
        standing = {edit.name: edit.strength for edit in plan.edits}
        moved = {name: x for name, x in zip(sliders, visitor.applied) if x != standing.get(name, 0.0)}
        if moved:
            yield from follow(visitor, plan.with_strengths(moved))


def follow(visitor: Visitor, plan: Plan) -> Iterator[dict]:
    """Shows a new plan, which can be undone."""
    visitor.history.do(plan)
    yield plan_updates(visitor)
    try:
        strengths = check_strengths(conditional_strengths(visitor), directions.names)
    except ValueError as error:
        raise gr.Error(f"{error} Protecting takes more than that; protect less.", print_exception=False) from None
    yield from show_head(visitor, render_head(visitor.w, strengths, visitor.photo_angles))


@piling
def act(visitor: Visitor, file: str | None, event: gr.EventData) -> Iterator[dict]:
    """A button or a switch in the list of edits."""
    yield unchanged()
    plan = visitor.history.plan
    if event.name not in {edit.name for edit in plan.edits} or not has_head(visitor, file):
        return
    after = {
        "switch": plan.switched,
        "up": lambda name: plan.moved(name, -1),
        "down": lambda name: plan.moved(name, 1),
        "remove": lambda name: plan.with_strengths({name: 0.0}),
    }[event.what](event.name)
    if event.what in ("up", "down"):  # edits add up: their order changes the list, not the head
        visitor.history.do(after)
        yield plan_updates(visitor)
        return
    yield slider_values(visitor, after)
    yield from follow(visitor, after)


@piling
def protect_these(visitor: Visitor, file: str | None, names: list[str]) -> Iterator[dict]:
    yield unchanged()
    if has_head(visitor, file):
        yield from follow(visitor, visitor.history.plan._replace(protect=tuple(names)))


@piling
def step_back(visitor: Visitor, file: str | None) -> Iterator[dict]:
    yield from step(visitor, file, visitor.history.undo)


@piling
def step_forth(visitor: Visitor, file: str | None) -> Iterator[dict]:
    yield from step(visitor, file, visitor.history.redo)


def step(visitor: Visitor, file: str | None, move) -> Iterator[dict]:
    yield unchanged()
    if has_head(visitor, file):
        move()
        yield slider_values(visitor, visitor.history.plan)
        yield from follow(visitor, visitor.history.plan)


def slider_values(visitor: Visitor, plan: Plan) -> dict:
    """Moves the sliders to a plan."""
    visitor.slid = visitor.applied = None
    standing = {edit.name: edit.strength for edit in plan.edits}
    return {**{slider: standing.get(name, 0.0) for name, slider in sliders.items()}, protect: list(plan.protect)}


@piling
def reset_all(visitor: Visitor, file: str | None) -> Iterator[dict]:
    yield unchanged()
    if has_head(visitor, file):
        yield slider_values(visitor, Plan())
        yield from follow(visitor, Plan())


def choose_format(visitor: Visitor, format: str) -> dict:
    """The mesh in another format, made when asked for."""
    if not has_head(visitor):
        return {download: gr.skip()}
    content = make_mesh(visitor.w, conditional_strengths(visitor), format.lower())
    path = visitor.keep(f"head.{format.lower()}", content)
    return {download: gr.DownloadButton(f"Download {format}", value=path, interactive=True)}


def film_head(visitor: Visitor, progress=gr.Progress()) -> dict:
    if not has_head(visitor):
        return {film: None}
    frames = []
    for part in make_film(visitor.w, conditional_strengths(visitor)):
        frames += part
        progress((len(frames), FILM_FRAMES), "Rendering the orbit", unit="frames")
    path = visitor.keep("orbit.mp4", b"")
    orbit_video(frames, path)
    return {film: path}


def look_at_angles(visitor: Visitor, yaw_deg: float, pitch_deg: float) -> dict:
    if not has_head(visitor):
        return {looked: None, looked_depth: None}
    picture, depth = look_from(visitor.w, conditional_strengths(visitor), (yaw_deg, pitch_deg))
    return {
        looked: visitor.keep_picture("view.png", picture),
        looked_depth: visitor.keep_picture("depth.png", depth),
    }


@piling
def refine_head(visitor: Visitor, file: str | None, progress=gr.Progress()) -> Iterator[dict]:
    """Optimises the latent; whatever is reached when it ends, or is stopped, stands."""
    yield unchanged()
    if not has_head(visitor, file):
        return
    if visitor.crop is None:
        gr.Warning("A recipe has no photo that its head could be refined towards; drop in the photo.")
        return
    first = None
    for done, error, w in refine_latent(visitor.crop, visitor.w, visitor.photo_angles):
        first = error if first is None else first
        visitor.w, visitor.refined = w, visitor.refined or done > 0
        progress((done, STEPS), "Refining", unit="steps")
        yield {refined: f"Step {done} of {STEPS}: colour error over the head {first:.3f} → {error:.3f}."}
    yield from show_both(visitor)


@piling
def show_both(visitor: Visitor) -> Iterator[dict]:
    yield unchanged()
    if visitor.w is not None:
        steps = render_both(visitor.w, conditional_strengths(visitor), visitor.photo_angles)
        yield from show_head(visitor, steps, original=True)


@piling
def use_recipe(visitor: Visitor, file: str) -> Iterator[dict]:
    """Everything as it was when the recipe was taken, but for the photo."""
    content = Path(file).read_bytes()
    Path(file).unlink(missing_ok=True)
    try:
        recipe = load_recipe(content, directions)
    except RecipeError as error:
        raise gr.Error(str(error), print_exception=False) from None
    visitor.delete_files()
    visitor = Visitor(origin="recipe", w=recipe.w, photo_angles=(recipe.yaw_deg, recipe.pitch_deg))
    visitor.history.plan = recipe.plan
    yield {
        **cleared(),
        session: visitor,
        photo: None,
        **slider_values(visitor, recipe.plan),
        status: "Restored from a recipe.",
    }
    yield from show_both(visitor)


def forget(visitor: Visitor, file: str | None) -> dict:
    """Nothing of the photo is left: no file, no latent."""
    visitor.delete_files()
    visitor.w = visitor.crop = visitor.front = None  # whatever still runs for it stops
    if file is not None:
        Path(file).unlink(missing_ok=True)
    done = {status: "Forgotten: the photo, everything made of it, and its files are deleted.", photo: None}
    if not examples:
        return {**cleared(), session: Visitor(), **plan_updates(Visitor()), protect: [], **done}
    return {**cleared(), **show_example(examples[0], visit_example(examples[0])), protect: [], **done}


def draw_faces(photo: Image.Image, faces: list[Face], chosen: int) -> Image.Image:
    """The photo, small, with a box around each face; the chosen one stands out, and they are numbered if several."""
    small = ImageOps.contain(photo, (480, 480))
    scale = small.width / photo.width
    draw = ImageDraw.Draw(small)
    for number, face in enumerate(faces):
        color = (255, 196, 0) if number == chosen else (230, 230, 230)
        box = [scale * side for side in face.box_px]
        draw.rectangle(box, outline=color, width=4 if number == chosen else 2)
        if len(faces) > 1:
            corner = (box[0] + 4, box[1])
            draw.text(corner, str(number + 1), fill=color, font=font(22), stroke_width=2, stroke_fill="black")
    return small


# ----------------------------------------------------------------------------
# For programs: stateless, nothing is kept but the result's file, which goes after an hour.


def edit_portrait(file: str, strengths: dict, face: int, yaw_deg: float, pitch_deg: float) -> str:
    """A portrait photo and strengths by attribute, such as {"smile": 2, "age": -1} -> a picture of the edited head,
    seen from yaw (-45 to 45 degrees, positive from the picture's right) and pitch (-20 to 20, positive from below)."""
    if not (abs(yaw_deg) <= 45 and abs(pitch_deg) <= 20):
        raise gr.Error(
            f"yaw {yaw_deg:g} and pitch {pitch_deg:g} are too far round: -45..45 and -20..20 degrees are allowed.",
            print_exception=False,
        )
    crop, strengths = prepare(file, strengths, face)
    picture, _ = look_from(crop, strengths, (yaw_deg, pitch_deg))
    return Visitor().keep_picture("portrait.png", picture)


def pose_grid(file: str, strengths: dict, face: int) -> str:
    """A portrait photo and strengths by attribute -> the edited head from nine sides, as one labelled picture."""
    crop, strengths = prepare(file, strengths, face)
    return Visitor().keep_picture("grid.png", grid_sheet(nine_views(crop, strengths)))


def mesh(file: str, strengths: dict, face: int, format: str) -> str:
    """A portrait photo and strengths by attribute -> the edited head's surface as a "glb", "obj" or "ply" file."""
    if format not in ("glb", "obj", "ply"):
        raise gr.Error(f"`format` is {format!r}; 'glb', 'obj' and 'ply' are allowed.", print_exception=False)
    crop, strengths = prepare(file, strengths, face)
    return Visitor().keep(f"head.{format}", make_mesh(crop, strengths, format))


def prepare(file: str | None, strengths: dict, face: int) -> tuple[Image.Image, dict[str, float]]:
    """The crop and the checked strengths; the uploaded file is deleted as soon as it is read."""
    if file is None:
        raise gr.Error("No photo was given: pass one as `photo=handle_file(...)`.", print_exception=False)
    content = Path(file).read_bytes()
    Path(file).unlink(missing_ok=True)
    try:
        if not isinstance(strengths, dict):
            raise ValueError('`strengths` must be an object such as {"smile": 2}.')
        strengths = check_strengths(strengths, directions.names)
        if not isinstance(face, int | float) or face != int(face) or face < 1:
            raise ValueError(f"`face` counts from 1, the largest face, so it cannot be {face}.")
        return pipeline.align(content, int(face) - 1), strengths
    except ValueError as error:  # PhotoError is one
        raise gr.Error(str(error), print_exception=False) from None


# ----------------------------------------------------------------------------
# The page itself.

PROMPT = "Drop in a portrait: any photo with a face will do." + (" Until then, an example head." if examples else "")
INTRO = """# One portrait photo → an editable 3D head
Drop in a photo, turn the head, move the sliders, take it along as mesh, film or picture."""
ABOUT = """The bundled model is small and has learned from synthetic people only: expect the likeness of an avatar.
Photos and results are kept for at most an hour, then the session ends; nothing is logged. Code: Apache-2.0; bundled
weights: CC0 1.0. After [PREIM3D](https://arxiv.org/abs/2304.10263) and [EG3D](https://arxiv.org/abs/2112.07945).
Programs: see *Use via API* below."""

ordered = [name for name in ATTRIBUTES if name in directions.names]
ordered += [name for name in directions.names if name not in ordered]
config = directions.config
rows = dict(zip(config.names, zip(config.labels, config.groups, config.safe_range)))
sliders: dict[str, gr.Slider] = {}
slider_ends: dict[str, tuple[float, float, float, float]] = {}
first = examples[0] if examples else None


def picture_box(name: str, value: Path | None, buttons: list[str] | None = None, **size) -> gr.Image:
    """A picture that is only shown. Its name stands above it: Gradio would write it over the picture."""
    return gr.Image(
        value,
        label=name,
        show_label=False,
        format="png",
        interactive=False,
        buttons=buttons or [],
        elem_id=name,
        **size,
    )


def add_slider(name: str) -> None:
    """Half as far again as is safe, where the reader sees the safe stretch marked."""
    label, _, (low, high) = rows[name]
    least, most = (float(np.clip(round(3 * end) / 2, -STRENGTH_LIMIT, STRENGTH_LIMIT)) for end in (low, high))
    slider_ends[name] = low, high, least, most
    sliders[name] = gr.Slider(
        least,
        most,
        value=0,
        step=0.1,
        label=label,
        elem_id=f"slider-{name}",
        elem_classes="attribute",
    )


with gr.Blocks(title="Preim3D", delete_cache=(max(1, min(600, FORGET_S // 6)), FORGET_S)) as demo:
    start = visit_example(first) if first else Visitor()
    session = gr.State(start, time_to_live=FORGET_S, delete_callback=lambda visitor: visitor.delete_files())
    gr.Markdown(INTRO)
    with gr.Row():
        with gr.Column(scale=3, min_width=260):
            photo = PhotoBox(label="Photo", sources=["upload", "clipboard", "webcam"], height=240, elem_id="photo")
            status = gr.Markdown(PROMPT, elem_id="status")
            picker = gr.Radio(label="Which face?", visible=False, elem_id="picker")
            if examples:
                gr.Markdown("**Or start with one of these** · synthetic people")
                gallery = gr.Gallery(
                    [str(folder / "crop.png") for folder in examples],
                    columns=len(examples),
                    object_fit="cover",
                    show_label=False,
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
            with gr.Row():
                with gr.Column(min_width=110):
                    gr.Markdown("**Face found**")
                    found = picture_box("found", None, height=130)
                with gr.Column(min_width=110):
                    gr.Markdown("**Model sees**")
                    crop = picture_box("crop", first and first / "crop.png", height=130)
            with gr.Row():
                refine_button = gr.Button("Refine likeness", elem_id="refine", size="sm", min_width=90)
                stop = gr.Button("Stop", elem_id="stop", size="sm", min_width=60)
            refined = gr.Markdown(
                f"Refining fits the latent to the photo in {STEPS} steps: about half a minute on a processor, some"
                " seconds on a GPU.",
                elem_id="refined",
            )
            forget_button = gr.Button("Forget my photo", variant="stop", size="sm", elem_id="forget")
        with gr.Column(scale=7, min_width=320, elem_id="pictures"):
            with gr.Row():
                with gr.Column(min_width=280):
                    gr.Markdown("**Compare** · drag to turn")
                    view = viewer({})
                with gr.Column(min_width=280, elem_id="shape"):
                    gr.Markdown("**Mesh** of the edited head")
                    # Never in a closed tab or accordion: the viewer would stay blank.
                    model = gr.Model3D(
                        first and first / "head.glb",
                        label="Edited head",
                        show_label=False,
                        interactive=False,
                        height=330,
                        elem_id="model",
                    )
                    with gr.Row():
                        format_choice = gr.Radio(
                            ["GLB", "OBJ", "PLY"], value="GLB", show_label=False, container=False, elem_id="format",
                            min_width=230,
                        )  # fmt: skip
                        download = gr.DownloadButton(
                            "Download GLB",
                            value=first and first / "head.glb",
                            interactive=bool(first),
                            elem_id="download",
                            size="sm",
                            min_width=110,
                        )
            verdict = gr.Markdown(elem_id="verdict")
            with gr.Row(elem_id="sheets"):
                with gr.Column(min_width=280):
                    gr.Markdown("**Reconstruction** · seen from nine sides")
                    grid = picture_box("grid", first and first / "grid.png", ["download", "fullscreen"])
                with gr.Column(min_width=280):
                    gr.Markdown("**Edited**")
                    edited = picture_box("edited", first and first / "grid.png", ["download", "fullscreen"])
            with gr.Column(elem_id="take"):
                with gr.Accordion("Picture from any side, depth, film", open=False):
                    with gr.Row():
                        yaw = gr.Slider(-45, 45, value=0, step=1, label="Yaw, degrees", elem_id="yaw", min_width=140)
                        pitch = gr.Slider(
                            -20,
                            20,
                            value=0,
                            step=1,
                            label="Pitch, degrees (+ from below)",
                            elem_id="pitch",
                            min_width=140,
                        )
                    with gr.Row():
                        look_button = gr.Button("Render this view", size="sm", elem_id="look")
                        film_button = gr.Button("Make the orbit film", size="sm", elem_id="make-film")
                    with gr.Row():
                        looked = gr.Image(
                            label="View",
                            format="png",
                            interactive=False,
                            buttons=["download"],
                            elem_id="looked",
                            min_width=140,
                        )
                        looked_depth = gr.Image(
                            label="Depth",
                            format="png",
                            interactive=False,
                            buttons=["download"],
                            elem_id="depth",
                            min_width=140,
                        )
                        film = gr.Video(
                            label="Orbit",
                            interactive=False,
                            loop=True,
                            buttons=["download"],
                            elem_id="film",
                            min_width=140,
                        )
                with gr.Accordion("Recipe: continue later, without the photo", open=False):
                    with gr.Row():
                        recipe_download = gr.DownloadButton(
                            "Download recipe", interactive=False, size="sm", elem_id="recipe"
                        )
                        recipe_upload = gr.UploadButton(
                            "Use a recipe", file_types=[".json"], size="sm", elem_id="use-recipe"
                        )
                    gr.Markdown("The same head again, with Python or from the command line:")
                    as_python = gr.Code(language="python", label="Python", interactive=False, elem_id="python")
                    as_command = gr.Code(language="shell", label="Command", interactive=False, elem_id="command")
        with gr.Column(scale=3, min_width=270, elem_id="sliders"):
            gr.Markdown("**Edit** · in standard deviations; underlined: where results stay good")
            for name in ordered[:MAIN_ATTRIBUTES]:
                add_slider(name)
            with gr.Accordion("More attributes", open=False, elem_id="more"):
                folded = sorted(ordered[MAIN_ATTRIBUTES:], key=lambda name: rows[name][1])
                for group, names in groupby(folded, key=lambda name: rows[name][1]):
                    gr.Markdown(f"**{group}**")
                    for name in names:
                        add_slider(name)
            protect = gr.Dropdown(
                [(rows[name][0], name) for name in ordered],
                multiselect=True,
                value=[],
                label="Protect: these must not change",
                elem_id="protect",
            )
            gr.Markdown("**Edits so far**")
            edits = edit_list()
            with gr.Row():
                undo = gr.Button("Undo", size="sm", interactive=False, elem_id="undo", min_width=60)
                redo = gr.Button("Redo", size="sm", interactive=False, elem_id="redo", min_width=60)
                reset = gr.Button("Reset all", size="sm", elem_id="reset", min_width=80)
    gr.Markdown(ABOUT, elem_id="about")

    shown = [session, photo, found, crop, view, grid, edited, model, download, format_choice, verdict, status, picker]
    shown += [film, looked, looked_depth, refined, edits, undo, redo, recipe_download, as_python, as_command, protect]
    shown += sliders.values()
    private = {"api_visibility": "private"}
    on_gpu = {"concurrency_id": "gpu", "concurrency_limit": 1, **private}
    newest = {"trigger_mode": "always_last", "show_progress": "hidden"}
    current = [session, photo]
    values = list(sliders.values())

    if examples:
        demo.load(lambda visitor: show_example(first, visitor), session, shown, show_progress="hidden", **private)
        gallery.select(choose_example, session, shown, show_progress="hidden", **private)
    heads = [
        photo.input(show_photo, [session, photo, gr.State(None)], shown, **on_gpu),
        picker.input(show_photo, [session, photo, picker], shown, **on_gpu),
    ]
    gr.on([photo.clear, forget_button.click], forget, current, shown, queue=False, show_progress="hidden", **private)
    releases = [slider.release for slider in values]
    noting = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple"}
    gr.on(releases, note_sliders, [session, *values], None, **noting, **private)
    heads.append(gr.on(releases, slide, [*current, *values], shown, **newest, **on_gpu))
    heads.append(edits.act(act, current, shown, **newest, **on_gpu))
    heads.append(protect.input(protect_these, [*current, protect], shown, **newest, **on_gpu))
    heads.append(undo.click(step_back, current, shown, **newest, **on_gpu))
    heads.append(redo.click(step_forth, current, shown, **newest, **on_gpu))
    heads.append(reset.click(reset_all, current, shown, **newest, **on_gpu))
    refining = refine_button.click(refine_head, current, shown, show_progress_on=refined, **on_gpu)
    heads.append(refining)
    heads.append(stop.click(None, cancels=refining, **private).then(show_both, session, shown, **on_gpu))
    format_choice.input(choose_format, [session, format_choice], [download], **on_gpu)
    look_button.click(look_at_angles, [session, yaw, pitch], [looked, looked_depth], **on_gpu)
    film_button.click(film_head, session, [film], **on_gpu)
    heads.append(recipe_upload.upload(use_recipe, [session, recipe_upload], shown, **on_gpu))

    for head_shown in heads:
        meshes = [model, download, format_choice, status]
        head_shown.then(show_mesh, session, meshes, queue=False, show_progress="hidden", **private)

    with gr.Column(visible=False):  # what the endpoints take and give
        a_photo = gr.File(label="photo")
        a_strengths = gr.JSON({}, label="strengths")
        a_face = gr.Number(1, label="face", precision=0)
        a_yaw, a_pitch = gr.Number(0, label="yaw_deg"), gr.Number(0, label="pitch_deg")
        a_format = gr.Textbox("glb", label="format")
        a_picture = gr.Image(format="png", label="picture")
        a_mesh = gr.File(label="mesh")
        on_gpu["api_visibility"] = "public"
        for endpoint, inputs, output in (
            (edit_portrait, [a_photo, a_strengths, a_face, a_yaw, a_pitch], a_picture),
            (pose_grid, [a_photo, a_strengths, a_face], a_picture),
            (mesh, [a_photo, a_strengths, a_face, a_format], a_mesh),
        ):
            gr.Button().click(endpoint, inputs, output, api_name=endpoint.__name__, **on_gpu)

demo.queue(max_size=options.queue_size)


if __name__ == "__main__":
    sweep_forever(FORGET_S)
    try:
        demo.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            max_file_size="15mb",
            state_session_capacity=500,
            theme=THEME,
            css=CSS + safe_marks(slider_ends),
            head=HEAD,
        )
    except OSError as error:
        sys.exit(f"preim3d: the page cannot be opened: {error}")
