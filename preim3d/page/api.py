"""For programs: three stateless endpoints. Nothing is kept but the result's file, which goes after an hour."""

import math
import numbers

import gradio as gr

from preim3d.camera import FURTHEST_PITCH_DEG, FURTHEST_YAW_DEG
from preim3d.page.gpu import EditedHead, Gpu
from preim3d.page.visitor import Visitor, take_upload
from preim3d.pipeline import Preim3DPipeline, grid_sheet
from preim3d.strengths import check_face, check_strengths


class Api:
    """The endpoints. Their arguments' names are those that a program writes."""

    def __init__(self, pipeline: Preim3DPipeline, gpu: Gpu):
        self.pipeline = pipeline
        self.gpu = gpu

    def edit_portrait(self, photo: str, strengths: dict, face: int, yaw_deg: float, pitch_deg: float) -> str:
        """A portrait photo and strengths by attribute, such as {"smile": 2, "age": -1} -> a picture of the edited
        head, seen from yaw (-45 to 45 degrees, positive from the picture's right) and pitch (-20 to 20, positive from
        below). `face` chooses among several, 1 being the largest."""

        def check():
            check_angle("yaw_deg", yaw_deg, FURTHEST_YAW_DEG)
            check_angle("pitch_deg", pitch_deg, FURTHEST_PITCH_DEG)

        picture, _ = self.gpu.look_from(self.asked(photo, strengths, face, check), (yaw_deg, pitch_deg))
        return Visitor().keep_picture("portrait.png", picture)

    def pose_grid(self, photo: str, strengths: dict, face: int) -> str:
        """A portrait photo and strengths by attribute -> the edited head from nine sides, as one labelled picture.
        `face` chooses among several, 1 being the largest."""
        views = self.gpu.nine_views(self.asked(photo, strengths, face))
        return Visitor().keep_picture("grid.png", grid_sheet(views))

    def mesh(self, photo: str, strengths: dict, face: int, format: str, texture: bool) -> str:
        """A portrait photo and strengths by attribute -> the edited head's surface in metres, as a "glb", "obj" or
        "ply" file; a "glb" may have a texture in place of colours at its vertices. `face` chooses among several, 1
        being the largest."""

        def check():
            if format not in ("glb", "obj", "ply"):
                raise ValueError(f"`format` is {format!r}; 'glb', 'obj' and 'ply' are allowed.")
            if not isinstance(texture, bool):
                raise ValueError(f"`texture` must be true or false, not {texture!r}.")
            if texture and format != "glb":
                raise ValueError(f"A `texture` is written into a 'glb' only, not into {format!r}.")

        content = self.gpu.mesh(self.asked(photo, strengths, face, check), format, texture)
        return Visitor().keep(f"head.{format}", content)

    def asked(self, photo: str | None, strengths: dict, face: int, check=lambda: None) -> EditedHead:
        """The crop and the checked strengths, once `check` has passed all else that was asked; the uploaded file is
        deleted as soon as it is read.

        Raises:
            gr.Error: one sentence about what cannot be done.
        """
        if photo is None:
            raise gr.Error("No photo was given: pass one as `photo=handle_file(...)`.", print_exception=False)
        content = take_upload(photo)
        try:
            check()
            if not isinstance(strengths, dict):
                raise ValueError('`strengths` must be an object such as {"smile": 2}.')
            strengths = check_strengths(strengths, self.pipeline.directions.names)
            crop = self.pipeline.align(content, check_face(face))
        except ValueError as error:  # PhotoError is one
            raise gr.Error(str(error), print_exception=False) from None
        return EditedHead(crop, strengths)


def check_angle(name: str, degrees: float, most: float) -> None:
    """Raises ValueError unless it is a number of degrees from -`most` to `most`."""
    number = isinstance(degrees, numbers.Real) and not isinstance(degrees, bool) and math.isfinite(degrees)
    if not (number and abs(degrees) <= most):
        raise ValueError(f"`{name}` must be a number from {-most:g} to {most:g}, in degrees, not {degrees!r}.")
