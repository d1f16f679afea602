"""What each event does: handlers that take the session's state and yield what is to be shown."""

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from preim3d.align import MIN_FACE_PX, TAKEN_WHOLE, Face, crop_face, photo_corners, whole_crop
from preim3d.camera import FURTHEST_PITCH_DEG, FURTHEST_YAW_DEG
from preim3d.edits import Plan, check_plan
from preim3d.film import font, orbit_video
from preim3d.judge import likeness_in_words
from preim3d.page.examples import visit_example
from preim3d.page.gpu import FILM_FRAMES
from preim3d.page.showing import UNCHANGED, Boxes, Showing, view_value
from preim3d.page.visitor import Visitor, data_uri, delete_upload, read_upload, take_upload
from preim3d.photo import PhotoError, load_photo
from preim3d.recipe import RecipeError, load_recipe
from preim3d.strengths import check_face
from preim3d.turntable import turn_angles


CHOICE_PX = 112  # side of a face's picture in the picker


class Answers(Showing):
    """The handlers."""

    # A head is chosen.

    def show_photo(
        self, visitor: Visitor, file: str | None, face: int | None, progress=gr.Progress()
    ) -> Iterator[Boxes]:
        """A new photo, or another face of the same one: finds the face, then shows the head bit by bit."""
        yield UNCHANGED
        if file is None:
            return
        if visitor.gone or not visitor.stage.take_up(file):
            if face is None:  # else it is the photo of the head that is shown
                delete_upload(file)
            return
        progress(0.1, "Finding the face")
        # The photo of which another face is chosen is needed still, should that one be of no use.
        content, name = (take_upload if face is None else read_upload)(file), Path(file).name
        face = face or 1
        try:
            picture = load_photo(content)
            faces, chosen = self.find_faces(picture, face, lambda words: progress(0.2, words))
        except PhotoError as error:
            gr.Warning(str(error))
            yield from self.refuse(visitor, file, str(error))
            return
        visitor = Visitor().after(visitor)
        visitor.origin, visitor.photo_name, visitor.face = "photo", name, face
        if chosen is None:
            visitor.crop, status = whole_crop(picture), TAKEN_WHOLE
        else:
            visitor.crop, visitor.photo_angles = crop_face(picture, chosen), chosen.angles_deg
            visitor.corners = photo_corners(picture.size, chosen)
            status = f"{len(faces)} faces were found: choose one." if len(faces) > 1 else "1 face was found."
        yield {
            **self.cleared(),
            **self.owned(visitor),
            "photo": visitor.keep(name, content, kind="photo"),
            "found": visitor.keep_picture("found.png", draw_faces(picture, faces, face - 1)),
            "crop": visitor.keep_picture("crop.png", visitor.crop),
            "picker": gr.HTML(face_choices(picture, faces, face), visible=len(faces) > 1),
            "status": status,
            **self.plan_boxes(visitor),
        }
        progress(0.3, "Reconstructing")
        yield from self.reconstruct(visitor)

    def find_faces(self, picture: Image.Image, face: int, say) -> tuple[list[Face], Face | None]:
        """The faces of a photo, and the one of this number; none where the weights find none, as those of cats.

        Raises:
            PhotoError: there is no such face.
        """
        if self.aligner is None:
            return [], None
        faces = self.aligner.faces(picture, lambda: say("Still looking for a face, small ones too"))
        return faces, self.aligner.choose(picture, face, faces)

    def choose_face(
        self, visitor: Visitor, file: str | None, event: gr.EventData, progress=gr.Progress()
    ) -> Iterator[Boxes]:
        """Another face of the photo, by its number from 1."""
        yield from self.show_photo(visitor, file, check_face(event.number), progress)

    def reconstruct(self, visitor: Visitor) -> Iterator[Boxes]:
        """The head of the crop, bit by bit."""
        visitor.unfinished = True
        steps = visitor.while_current(self.gpu.start(visitor.crop, visitor.photo_angles))
        _, visitor.w, visitor.tuning = next(steps)
        yield from self.show_head(visitor, steps, original=True)

    def refuse(self, visitor: Visitor, file: str, why: str) -> Iterator[Boxes]:
        """A photo that is of no use: the head that was there, its edits and its photo stay, and are finished."""
        told = {"refused": file, "status": f"**{why}**"}
        if "photo" in visitor.files:
            told |= {"photo": str(visitor.files["photo"][-1])}
        yield told
        if visitor.unfinished:
            yield from self.reconstruct(visitor) if visitor.w is None else self.show_both(visitor)

    def note_photo(self, visitor: Visitor, file: str | None) -> None:
        """Before the photo waits in the queue: what is being rendered for another one may stop."""
        if file is not None:
            visitor.stage.await_photo(file)

    def choose_example(self, visitor: Visitor, event: gr.SelectData) -> Boxes:
        visitor.stage.give_up_photo()
        return {**self.cleared(), **self.show_example(event.index, visitor), "photo": None, "status": self.prompt}

    def show_first_example(self, visitor: Visitor) -> Boxes:
        """As the page opens: all is as it was laid out, but for what is the session's own."""
        return self.show_example(0, visitor)

    def show_example(self, index: int, earlier: Visitor) -> Boxes:
        """Everything about a fresh example, without any computation."""
        folder = self.examples[index]
        visitor = visit_example(folder).after(earlier)
        with Image.open(folder / "depth.webp") as depth:
            shown = view_value(visitor, visitor.frames, data_uri(depth.convert("L")), count=len(turn_angles()))
        return {
            **self.owned(visitor),
            "crop": str(folder / "crop.webp"),
            "viewer": shown,
            "grid": str(folder / "grid.webp"),
            "edited": str(folder / "grid.webp"),
            "model": str(folder / "head.glb"),
            "download": gr.DownloadButton("Download GLB", value=str(folder / "head.glb"), interactive=True),
            **self.plan_boxes(visitor),
            **self.describe(visitor, visitor.front),
        }

    def use_recipe(self, visitor: Visitor, file: str) -> Iterator[Boxes]:
        """Everything as it was when the recipe was taken, but for the photo."""
        yield UNCHANGED
        if visitor.gone:
            delete_upload(file)
            return
        content = take_upload(file)
        try:
            recipe = load_recipe(content, self.directions["inversion"], self.directions.get("origin"))
        except RecipeError as error:
            raise gr.Error(str(error), print_exception=False) from None
        fresh = Visitor(
            origin="recipe", w=recipe.w, tuning=recipe.tuning, photo_angles=(recipe.yaw_deg, recipe.pitch_deg)
        )
        visitor = fresh.after(visitor)
        visitor.history.plan = recipe.plan
        yield {
            **self.cleared(),
            **self.owned(visitor),
            "photo": None,
            **self.slider_boxes(visitor, recipe.plan),
            "status": "Restored from a recipe.",
        }
        yield from self.show_both(visitor)

    def forget(self, visitor: Visitor, file: str | None) -> Boxes:
        """Nothing of the photo is left: no file, no latent."""
        visitor.stage.give_up_photo()
        return {**self.clear(visitor, file), "photo": None}

    def clear(self, visitor: Visitor, file: str | None) -> Boxes:
        """The same when the photo box was emptied, unless it holds a new photo by now."""
        if visitor.stage.awaited:
            return UNCHANGED
        if file is not None:
            delete_upload(file)
        if self.examples:
            start = self.show_example(0, visitor)
        else:
            fresh = Visitor().after(visitor)
            start = {**self.owned(fresh), **self.plan_boxes(fresh)}
        done = "Forgotten: the photo, everything made of it, and its files are deleted."
        return {**self.cleared(), **start, "status": done}

    # Its edits change.

    def note_sliders(self, visitor: Visitor, at_ms: float, turn: str, *values: float) -> None:
        """Before anything waits in the queue: what is being rendered for other values may stop."""
        visitor.sliders.note(at_ms, turn, values)

    def slide(self, visitor: Visitor, at_ms: float, turn: str, owner: str, *values: float) -> Iterator[Boxes]:
        """The sliders as they were let go of."""
        yield UNCHANGED
        if not self.has_head(visitor, owner):
            return
        self.note_sliders(visitor, at_ms, turn, *values)  # the note of this very event may be late
        while visitor.sliders.moved_on:
            visitor.sliders.followed = visitor.sliders.told
            plan = visitor.history.plan
            standing = {edit.name: edit.strength for edit in plan.edits}
            moved = {name: x for name, x in zip(self.names, visitor.sliders.followed) if x != standing.get(name, 0.0)}
            if moved:
                yield from self.follow(visitor, plan.with_strengths(moved))

    def act(self, visitor: Visitor, owner: str, event: gr.EventData) -> Iterator[Boxes]:
        """A button or a switch in the list of edits."""
        yield UNCHANGED
        plan = visitor.history.plan
        if not self.has_head(visitor, owner) or event.name not in {edit.name for edit in plan.edits}:
            return
        after = {
            "switch": plan.switched,
            "up": lambda name: plan.moved(name, -1),
            "down": lambda name: plan.moved(name, 1),
            "remove": lambda name: plan.with_strengths({name: 0.0}),
        }[event.what](event.name)
        if event.what in ("up", "down"):  # edits add up: their order changes the list, not the head
            visitor.history.do(after)
            yield self.plan_boxes(visitor)
            return
        yield self.slider_boxes(visitor, after)
        yield from self.follow(visitor, after)

    def protect(self, visitor: Visitor, owner: str, names: list[str]) -> Iterator[Boxes]:
        yield UNCHANGED
        if self.has_head(visitor, owner):
            yield from self.follow(visitor, visitor.history.plan._replace(protect=tuple(names)))

    def choose_space(self, visitor: Visitor, owner: str, space: str) -> Iterator[Boxes]:
        """The same edits with the other directions."""
        yield UNCHANGED
        if self.has_head(visitor, owner):
            yield from self.follow(visitor, visitor.history.plan._replace(space=space))

    def undo(self, visitor: Visitor, owner: str) -> Iterator[Boxes]:
        yield from self.step(visitor, owner, visitor.history.undo)

    def redo(self, visitor: Visitor, owner: str) -> Iterator[Boxes]:
        yield from self.step(visitor, owner, visitor.history.redo)

    def step(self, visitor: Visitor, owner: str, move) -> Iterator[Boxes]:
        yield UNCHANGED
        if self.has_head(visitor, owner):
            move()
            yield self.slider_boxes(visitor, visitor.history.plan)
            yield from self.follow(visitor, visitor.history.plan)

    def reset(self, visitor: Visitor, owner: str) -> Iterator[Boxes]:
        yield UNCHANGED
        if self.has_head(visitor, owner):
            fresh = Plan(space=visitor.history.plan.space)
            yield self.slider_boxes(visitor, fresh)
            yield from self.follow(visitor, fresh)

    def follow(self, visitor: Visitor, plan: Plan) -> Iterator[Boxes]:
        """Shows a new plan, which can be undone; one that is impossible leaves all as it was."""
        try:
            check_plan(plan, self.directions[plan.space])
        except ValueError as error:
            yield {**self.slider_boxes(visitor, visitor.history.plan), **self.plan_boxes(visitor)}
            raise gr.Error(str(error), print_exception=False) from None
        visitor.history.do(plan)
        yield self.plan_boxes(visitor)
        yield from self.show_head(visitor, self.gpu.show(self.asked(visitor), visitor.photo_angles))

    def improve(self, visitor: Visitor, owner: str, progress=gr.Progress()) -> Iterator[Boxes]:
        """Brings the head nearer to the photo; whatever is reached when it ends, or is stopped, stands."""
        yield UNCHANGED
        if not self.has_head(visitor, owner):
            return
        if visitor.crop is None:
            gr.Warning("A recipe has no photo that its head could be brought nearer to; drop in the photo.")
            return
        if self.aligner is None:
            gr.Warning("These weights cannot see where a face in a photo looks, so the head cannot be brought nearer.")
            return
        yield {"stop": gr.Button(interactive=True)}
        started, first = time.monotonic(), None
        steps = self.gpu.improve(visitor.crop, visitor.corners, visitor.w, visitor.tuning)
        for reached in visitor.while_current(steps):
            first = first or reached
            left_s = (time.monotonic() - started) * (reached.steps - reached.done) / max(reached.done, 1)
            progress((reached.done, reached.steps), "Improving likeness", unit="steps")
            before, now = (likeness_in_words(step.distance) for step in (first, reached))
            told = f"**{now.capitalize()}**" + (f"; before: {before}" if now != before else "")
            told += f". About {left_s:.0f} s left." if 0 < reached.done < reached.steps else "."
            boxes = {"improved": told}
            if reached.tuning is not None and reached.picture is not None and reached.done:
                visitor.w, visitor.tuning, visitor.judged = reached.w, reached.tuning, {}
                visitor.photo_angles, visitor.unfinished, visitor.improved = reached.angles_deg, True, True
                boxes["viewer"] = self.first_view(visitor, reached.picture)
            yield boxes
        yield from self.show_both(visitor)

    # Things to take along.

    def choose_format(self, visitor: Visitor, owner: str, format: str) -> Boxes:
        """The mesh in another format, made when asked for."""
        if not self.has_head(visitor, owner):
            return UNCHANGED
        content = self.gpu.mesh(self.asked(visitor), format.lower())
        path = visitor.keep(f"head.{format.lower()}", content)
        return {"download": gr.DownloadButton(f"Download {format}", value=path, interactive=True)}

    def film(self, visitor: Visitor, owner: str, progress=gr.Progress()) -> Boxes:
        if not self.has_head(visitor, owner):
            return UNCHANGED
        frames = []
        for part in visitor.while_current(self.gpu.film(self.asked(visitor))):
            frames += part
            progress((len(frames), FILM_FRAMES), "Rendering the orbit", unit="frames")
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            orbit_video(frames, file.name)
            return {"film": visitor.keep("orbit.mp4", Path(file.name).read_bytes())}

    def look(self, visitor: Visitor, owner: str, yaw_deg: float, pitch_deg: float) -> Boxes:
        """One picture from any side, and its depth."""
        if not self.has_head(visitor, owner):
            return UNCHANGED
        picture, depth = self.gpu.look_from(self.asked(visitor), (yaw_deg, pitch_deg))
        return {
            "looked": visitor.keep_picture("view.png", picture),
            "depth": visitor.keep_picture("depth.png", depth),
        }

    def look_as_viewer(self, visitor: Visitor, owner: str, event: gr.EventData) -> Boxes:
        """The same from where the turning viewer stands."""
        return self.look_near(visitor, owner, event.yaw, event.pitch)

    def look_as_mesh(self, visitor: Visitor, owner: str, model: gr.Model3D) -> Boxes:
        """The same from where the mesh's viewer stands."""
        return self.look_near(visitor, owner, *viewer_angles(*model.camera_position[:2]))

    def look_near(self, visitor: Visitor, owner: str, yaw_deg: float, pitch_deg: float) -> Boxes:
        """From the nearest angles that the sliders have, to which they are moved."""
        if not self.has_head(visitor, owner):
            return UNCHANGED
        yaw = round(float(np.clip(yaw_deg, -FURTHEST_YAW_DEG, FURTHEST_YAW_DEG)))
        pitch = round(float(np.clip(pitch_deg, -FURTHEST_PITCH_DEG, FURTHEST_PITCH_DEG)))
        if abs(yaw - yaw_deg) > 1 or abs(pitch - pitch_deg) > 1:
            gr.Info(
                f"You look from yaw {yaw_deg:.0f}°, pitch {pitch_deg:.0f}°; pictures go to {FURTHEST_YAW_DEG:.0f}° and"
                f" {FURTHEST_PITCH_DEG:.0f}°, so this is the nearest one."
            )
        shown = self.look(visitor, owner, yaw, pitch)
        return {"yaw": yaw, "pitch": pitch, "any-side": gr.Accordion(open=True), **shown}


def viewer_angles(alpha_deg: float | None, beta_deg: float | None) -> tuple[float, float]:
    """Longitude and latitude of Babylon's camera -> yaw and nominal pitch in degrees, as in `camera`. It counts the
    longitude from our +x to +z; 90, 90 is in front of the face, and None is before anything is drawn."""
    if alpha_deg is None or beta_deg is None:
        return 0.0, 0.0
    yaw = (90 - alpha_deg + 180) % 360 - 180
    return yaw, -90 * math.cos(math.radians(beta_deg))


def face_choices(photo: Image.Image, faces: list[Face], chosen: int) -> list[dict]:
    """The value of `widgets.face_picker`: a square of the photo around each face, `chosen` counting from 1."""
    return [
        {
            "number": number,
            "src": data_uri(around(photo, face)),
            "chosen": number == chosen,
            "too_small": face.width_px < MIN_FACE_PX,
        }
        for number, face in enumerate(faces, 1)
    ]


def around(photo: Image.Image, face: Face) -> Image.Image:
    """A small square of the photo with the face in it, and a little of what is around."""
    left, top, right, bottom = face.box_px
    side = min(1.3 * max(right - left, bottom - top), *photo.size)
    x = float(np.clip((left + right - side) / 2, 0, photo.width - side))
    y = float(np.clip((top + bottom - side) / 2, 0, photo.height - side))
    return photo.resize((CHOICE_PX, CHOICE_PX), box=(x, y, x + side, y + side), reducing_gap=2)


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
