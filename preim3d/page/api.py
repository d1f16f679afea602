"""For programs: three stateless endpoints. Nothing is kept but the result's file, which goes after an hour."""

import gradio as gr
from PIL import Image

from preim3d.page.gpu import EditedHead, Gpu
from preim3d.page.visitor import Visitor, take_upload
from preim3d.pipeline import Preim3DPipeline, grid_sheet
from preim3d.strengths import check_strengths


class Api:
    def __init__(self, pipeline: Preim3DPipeline, gpu: Gpu):
        self.pipeline = pipeline
        self.gpu = gpu

    def edit_portrait(self, file: str, strengths: dict, face: int, yaw_deg: float, pitch_deg: float) -> str:
        """A portrait photo and strengths by attribute, such as {"smile": 2, "age": -1} -> a picture of the edited
        head, seen from yaw (-45 to 45 degrees, positive from the picture's right) and pitch (-20 to 20, positive from
        below)."""
        if not (abs(yaw_deg) <= 45 and abs(pitch_deg) <= 20):
            raise gr.Error(
                f"yaw {yaw_deg:g} and pitch {pitch_deg:g} are too far round: -45..45 and -20..20 degrees are allowed.",
                print_exception=False,
            )
        picture, _ = self.gpu.look_from(self.asked(file, strengths, face), (yaw_deg, pitch_deg))
        return Visitor().keep_picture("portrait.png", picture)

    def pose_grid(self, file: str, strengths: dict, face: int) -> str:
        """A portrait photo and strengths by attribute -> the edited head from nine sides, as one labelled picture."""
        views = self.gpu.nine_views(self.asked(file, strengths, face))
        return Visitor().keep_picture("grid.png", grid_sheet(views))

    def mesh(self, file: str, strengths: dict, face: int, format: str) -> str:
        """A portrait photo and strengths by attribute -> the edited head's surface as a "glb", "obj" or "ply" file."""
        if format not in ("glb", "obj", "ply"):
            raise gr.Error(f"`format` is {format!r}; 'glb', 'obj' and 'ply' are allowed.", print_exception=False)
        return Visitor().keep(f"head.{format}", self.gpu.mesh(self.asked(file, strengths, face), format))

    def asked(self, file: str | None, strengths: dict, face: int) -> EditedHead:
        """The crop and the checked strengths; the uploaded file is deleted as soon as it is read."""
        if file is None:
            raise gr.Error("No photo was given: pass one as `photo=handle_file(...)`.", print_exception=False)
        content = take_upload(file)
        try:
            if not isinstance(strengths, dict):
                raise ValueError('`strengths` must be an object such as {"smile": 2}.')
            strengths = check_strengths(strengths, self.pipeline.directions.names)
            if not isinstance(face, int | float) or face != int(face) or face < 1:
                raise ValueError(f"`face` counts from 1, the largest face, so it cannot be {face}.")
            crop: Image.Image = self.pipeline.align(content, int(face) - 1)
        except ValueError as error:  # PhotoError is one
            raise gr.Error(str(error), print_exception=False) from None
        return EditedHead(crop, strengths)
