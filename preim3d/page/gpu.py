"""What runs on the GPU, where there is one: latents, strengths and pictures go in, pictures and files come out.

On ZeroGPU each call is a process of its own, so numbers and pictures are handed over, never tensors; and a call is
refused when the seconds it asks for are more than the visitor has left, so each asks for little."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import spaces
from PIL import Image

from preim3d.camera import orbit_cameras
from preim3d.inversion import Reached
from preim3d.mesh import mesh_bytes
from preim3d.pipeline import Head, Preim3DPipeline, as_array
from preim3d.tuning import Tuning
from preim3d.turntable import GRID, Angles, cameras, turn_angles


FILM_FRAMES = 90  # three seconds


class EditedHead(NamedTuple):
    """Which head is meant."""

    source: np.ndarray | Image.Image  # w [num_ws, w_dim] before the edits; or a crop, which is made a head first
    strengths: dict[str, float]
    space: Literal["inversion", "origin"] = "inversion"  # whose directions edit it
    tuning: Tuning | None = None  # what its planes are tuned by


class Gpu:
    """The pipeline's work in pieces of one call each; a visitor's action is one such call."""

    def __init__(self, pipeline: Preim3DPipeline):
        self.pipeline = pipeline
        self.pivot = pipeline.generator.config.pivot
        # Here and not above the methods, as `self` would then be an argument and be pickled with the whole pipeline.
        self.start = spaces.GPU(duration=15)(self.start)
        self.show = spaces.GPU(duration=10)(self.show)
        self.show_both = spaces.GPU(duration=15)(self.show_both)
        self.look_from = spaces.GPU(duration=5)(self.look_from)
        self.nine_views = spaces.GPU(duration=10)(self.nine_views)
        self.mesh = spaces.GPU(duration=10)(self.mesh)
        self.film = spaces.GPU(duration=20)(self.film)
        self.improve = spaces.GPU(duration=30)(self.improve)

    def start(self, crop: Image.Image, angles: Angles) -> Iterator[tuple]:
        """crop -> ("head", w [num_ws, w_dim], tuning), then what `look_at` gives."""
        (head,) = self.pipeline.reconstruct(crop)
        yield "head", as_array(head.w), head.tuning
        yield from self.look_at(head, {}, angles)

    def show(self, asked: EditedHead, angles: Angles) -> Iterator[tuple]:
        """What `look_at` gives."""
        yield from self.look_at(self.head(asked), asked.strengths, angles)

    def show_both(self, asked: EditedHead, angles: Angles) -> Iterator[tuple]:
        """The head without the edits, then with them, as `look_at` gives them, and ("edited", None) between them."""
        yield from self.look_at(self.head(asked._replace(strengths={})), {}, angles)
        if asked.strengths:
            yield "edited", None
            yield from self.look_at(self.head(asked), asked.strengths, angles)

    def look_at(self, head: Head, strengths: dict[str, float], angles: Angles) -> Iterator[tuple]:
        """("frames", frames, depths) so far, ever more of them, and ("mesh", the bytes of a GLB) as soon as the grid
        is there."""
        seats = cameras(turn_angles(angles), self.pivot)
        frames, depths, between = [], [], None
        for first, last in ((0, 1), (1, GRID.stop), (GRID.stop, 20), (20, 30), (30, len(seats))):
            pictures, depth, between = self.pipeline.views_and_depths(head, seats[first:last], between=between)
            frames += pictures
            depths += depth
            yield "frames", frames, depths
            if last == GRID.stop:
                yield "mesh", mesh_bytes(self.pipeline.mesh(head), "glb", {"strengths": strengths})

    def head(self, asked: EditedHead) -> Head:
        w, tuning = asked.source, asked.tuning
        if isinstance(w, Image.Image):
            (head,) = self.pipeline.reconstruct(w)
            if not asked.strengths:
                return head
            w, tuning = head.w, head.tuning
        return self.pipeline.head(w, tuning, asked.strengths, asked.space)

    def look_from(self, asked: EditedHead, angles: Angles) -> tuple[Image.Image, Image.Image]:
        """One picture, and its depth."""
        pictures, depths, _ = self.pipeline.views_and_depths(self.head(asked), cameras([angles], self.pivot))
        return pictures[0], depths[0]

    def nine_views(self, asked: EditedHead) -> list[Image.Image]:
        return self.pipeline.views(self.head(asked))

    def mesh(self, asked: EditedHead, format: str, texture: bool = False) -> bytes:
        surface = self.pipeline.mesh(self.head(asked), texture=texture)
        return mesh_bytes(surface, format, {"strengths": asked.strengths})

    def film(self, asked: EditedHead) -> Iterator[list[Image.Image]]:
        """The frames of one round, some at a time."""
        head = self.head(asked)
        for camera in orbit_cameras(FILM_FRAMES, pivot=self.pivot).split(10):
            yield self.pipeline.views(head, camera)

    def improve(
        self, crop: Image.Image, corners: np.ndarray | None, w: np.ndarray, tuning: Tuning | None
    ) -> Iterator[Reached]:
        """Ever better heads, from the one that is there on; w of each [num_ws, w_dim]."""
        for reached in self.pipeline.invert(crop, w=w, tuning=tuning, corners=corners):
            yield reached._replace(w=as_array(reached.w))
