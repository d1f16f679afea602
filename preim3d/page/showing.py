"""What stands on the page: the session's state -> new contents of boxes, by their elem_id."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from PIL import Image

from preim3d.align import FaceAligner
from preim3d.directions import Directions
from preim3d.edits import Plan, planned
from preim3d.page.gpu import EditedHead, Gpu
from preim3d.page.reproduce import python_and_command
from preim3d.page.verdict import Verdict, unknown_here
from preim3d.page.visitor import OutOfDate, Visitor, data_uri
from preim3d.pipeline import grid_sheet
from preim3d.recipe import Recipe
from preim3d.turntable import COLUMNS, GRID, pack, turn_angles


Boxes = dict[str, object]  # by elem_id: the new content of a box, or a component with new properties

IMPROVE_COST = "About half a minute on a processor, seconds on a GPU; stop at any time and keep what is there."

# What a handler that yields at all must begin with, as one that yields nothing would empty every box.
UNCHANGED: Boxes = {"status": gr.skip()}


def still_current(answer: Callable) -> Callable:
    """An answer that ends, telling nothing more, as soon as its session shows something else."""

    def tell(visitor: Visitor, *arguments, **named) -> Boxes:
        try:
            told = answer(visitor, *arguments, **named)
        except OutOfDate:
            return UNCHANGED
        return UNCHANGED if told.get("session", visitor).gone else told

    def tell_each(visitor: Visitor, *arguments, **named) -> Iterator[Boxes]:
        with suppress(OutOfDate):
            for told in answer(visitor, *arguments, **named):
                visitor = told.get("session", visitor)
                if visitor.gone:
                    visitor.delete_files()
                # A new head is put into the session even while the next photo waits, which may be of no use.
                if told is UNCHANGED or visitor.current or ("owner" in told and not visitor.gone):
                    yield told

    return tell_each if inspect.isgeneratorfunction(answer) else tell


@dataclass
class Showing:
    """Everything that is shown of a head, and what that needs."""

    gpu: Gpu
    aligner: FaceAligner | None  # None: photos are their own crops, as those of cats
    directions: dict[str, Directions]  # by space, on the CPU: what is asked of them needs no GPU
    verdict: Verdict
    examples: list[Path]
    prompt: str  # stands by the photo box while there is no photo
    weights: str | None  # as --weights was

    def __post_init__(self):
        known = self.directions["inversion"]
        self.names = known.names
        self.labels = dict(zip(known.names, known.config.labels))

    def show_both(self, visitor: Visitor) -> Iterator[Boxes]:
        """The head afresh, without its edits and with them; nothing is being improved any more."""
        yield {"stop": gr.Button(interactive=False)}
        if visitor.w is not None:
            steps = self.gpu.show_both(self.asked(visitor), visitor.photo_angles)
            yield from self.show_head(visitor, steps, original=True)

    def show_head(self, visitor: Visitor, steps: Iterator[tuple], original: bool = False) -> Iterator[Boxes]:
        """The pictures and the mesh of `Gpu.look_at`, each as soon as it is there; `original` while nothing is edited.
        Ends early where the sliders have moved on."""
        total = len(turn_angles())
        before = None if original else visitor.front
        visitor.unfinished = True
        pending = original and bool(self.asked(visitor).strengths)  # the edits are not in these pictures yet
        for kind, *things in visitor.while_current(steps):
            if not original and visitor.sliders.moved_on:
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
                shown["pending"] = pending and original
                boxes = {"session": visitor, "viewer": shown}
                if len(frames) == 1:
                    boxes |= {**self.describe(visitor, frames[0], before), **self.plan_boxes(visitor)}
                elif len(frames) == GRID.stop:
                    sheet = visitor.keep_picture("grid.png" if original else "edited.png", grid_sheet(frames[GRID]))
                    of_edited = None if pending and original else sheet
                    boxes |= {"grid": sheet, "edited": of_edited} if original else {"edited": sheet}
                yield boxes
        visitor.unfinished = False

    def first_view(self, visitor: Visitor, picture: Image.Image) -> dict:
        """What the viewer shows of a head that is not ready: the reconstruction from the photo's camera alone."""
        visitor.front, visitor.frames = picture, data_uri(pack([picture]))
        value = view_value(visitor, visitor.frames, "", count=1)
        del value["depth"]
        return {**value, "pending": bool(self.asked(visitor).strengths)}

    def show_mesh(self, visitor: Visitor) -> Boxes:
        """The newest mesh. An event of its own, as the viewer stays blank if it is told the same file twice."""
        if "head.glb" not in visitor.files:
            return UNCHANGED
        path = str(visitor.files["head.glb"][-1])
        return {
            "model": path,
            "download": gr.DownloadButton("Download GLB", value=path, interactive=True),
            "format": "GLB",
        }

    def plan_boxes(self, visitor: Visitor) -> Boxes:
        """The list of edits, the recipe and the code to copy, as they are now."""
        history = visitor.history
        boxes = {
            "edits": [{**edit._asdict(), "label": self.labels[edit.name]} for edit in history.plan.edits],
            "undo": gr.Button(interactive=bool(history.past)),
            "redo": gr.Button(interactive=bool(history.future)),
        }
        if visitor.w is None:
            return {**boxes, "recipe": gr.DownloadButton(interactive=False), "python": "", "command": ""}
        fingerprint = self.directions["inversion"].config.fingerprint
        recipe = Recipe(visitor.w, history.plan, *visitor.photo_angles, visitor.tuning).dumps(fingerprint)
        path = visitor.keep("head.recipe.json", recipe.encode())
        python, command = python_and_command(visitor, self.asked(visitor).strengths, self.weights)
        recipe_box = gr.DownloadButton(value=path, interactive=True)
        return {**boxes, "recipe": recipe_box, "python": python, "command": command}

    def slider_boxes(self, visitor: Visitor, plan: Plan) -> Boxes:
        """Moves the sliders, and what else chooses, to a plan."""
        visitor.sliders.move()
        standing = {edit.name: edit.strength for edit in plan.edits}
        boxes = {f"slider-{name}": standing.get(name, 0.0) for name in self.names}
        return {**boxes, "turn": visitor.sliders.turn, "protect": list(plan.protect), **self.space_box(plan.space)}

    def space_box(self, space: str) -> Boxes:
        return {"space": space} if "origin" in self.directions else {}

    def cleared(self) -> Boxes:
        """Every box empty and every slider at 0."""
        empty = dict.fromkeys(("found", "crop", "grid", "edited", "model", "film", "looked", "depth"))
        empty |= {"viewer": {}, "verdict": "", "figures": "", "improved": IMPROVE_COST, "format": "GLB", "protect": []}
        empty |= {
            "picker": gr.HTML([], visible=False),
            "download": gr.DownloadButton("Download GLB", interactive=False),
        }
        empty["stop"] = gr.Button(interactive=False)
        return {**empty, **self.space_box("inversion"), **{f"slider-{name}": 0 for name in self.names}}

    def owned(self, visitor: Visitor) -> Boxes:
        return {"session": visitor, "owner": visitor.key, "turn": visitor.sliders.turn}

    def describe(self, visitor: Visitor, after: Image.Image, before: Image.Image | None = None) -> Boxes:
        """What is said of the head and its edits, in words and, for researchers, in figures."""
        plan = visitor.history.plan
        words, figures = self.verdict.describe(visitor, after, before)
        left_out = unknown_here(plan, self.directions[plan.space], self.labels)
        return {"verdict": "\n\n".join(filter(None, (left_out, words))), "figures": figures}

    def asked(self, visitor: Visitor) -> EditedHead:
        plan = visitor.history.plan
        return EditedHead(visitor.w, planned(plan, self.directions[plan.space]), plan.space, visitor.tuning)

    def has_head(self, visitor: Visitor, owner: str) -> bool:
        """Whether there is something to edit.

        Raises:
            gr.Error: the session's time has run out. The state is then as at first, while the browser still shows, and
                owns, another one.
        """
        if owner in visitor.stage.former:  # asked of the head before this one, while this one was being made
            return False
        if owner and owner != visitor.key:
            raise gr.Error(
                "This session was an hour old and has ended; drop the photo in again, or use your recipe.",
                print_exception=False,
            )
        if visitor.w is None:
            gr.Warning("Drop in a photo first, or choose an example; then the sliders edit its head.")
        return visitor.w is not None


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
