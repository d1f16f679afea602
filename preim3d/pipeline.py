"""Photo -> crop -> w -> w_edit -> planes -> nine views and a mesh (paper, figure 2), as one diffusers pipeline."""

import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from preim3d.align import FaceAligner, crop_face, photo_corners, whole_crop
from preim3d.back import BUST
from preim3d.camera import PITCHES_DEG, YAWS_DEG, grid_cameras
from preim3d.detail import DetailNetwork, draw_detail
from preim3d.device import draws_faster_in_bfloat16, exactly
from preim3d.directions import Directions, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.face_mesh import FaceMesh
from preim3d.feedback import Feedback, Photos, bring_nearer
from preim3d.film import angle_label, pictures, pose_sheet
from preim3d.generator import Planes, RenderOutput, TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.inversion import Judges, Reached, Target, invert, load_judges
from preim3d.landmarks import LandmarkNetwork
from preim3d.mesh import FACES, TEXTURE_PX, TEXTURED_FACES, Mesh, extract_mesh
from preim3d.methods import Method, check_method
from preim3d.photo import load_photo
from preim3d.strengths import check_face, check_strengths
from preim3d.texture import check_texture
from preim3d.tuning import Tuning, edited, tuned
from preim3d.turntable import Angles, DepthRange, cameras, depth_pictures, depth_range
from preim3d.weights import (
    BUNDLED,
    REMEDY,
    WeightsError,
    check_weights,
    find_weights,
    identity_folder,
    perceptual_file,
    present,
)


PIXELS_AT_A_TIME = 9 * 512**2  # of views rendered in one go on a GPU: published weights then take some 4 GB
COMPONENT_CLASSES = {"encoder": PortraitEncoder, "generator": TriPlaneGenerator, "directions": Directions}
OPTIONAL_CLASSES = {
    "origin_directions": Directions,
    "feedback": Feedback,
    "detail": DetailNetwork,
    "identity": FaceIdentity,
}


class Quality(NamedTuple):
    """Rays along a picture's side and samples along a ray, as multiples of the configured ones."""

    rays: float
    samples: float


QUALITIES = {
    "fast": Quality(1, 0.5),  # while a slider moves
    "normal": Quality(1, 1),  # as the networks were trained
    "best": Quality(2, 2),  # for a picture to keep: thin things such as frames of glasses come out whole
}


class Head(NamedTuple):
    """A head in 3D: its planes, tuned where it was, are computed once and read by every view and by the mesh."""

    w: Tensor  # [1, num_ws, w_dim]
    planes: Planes
    tuning: Tuning | None = None


class Portrait(NamedTuple):
    """A face of a photo, ready for the encoder."""

    crop: Image.Image  # upright, PIL RGB 512 x 512
    camera_deg: Angles | None  # yaw and nominal pitch of the camera that took the photo
    faces_found: int | None  # in the photo, this one included
    corners: np.ndarray | None  # [4, 2] of the photo, in sides of the crop: see `align.photo_corners`


@dataclass
class Preim3DOutput(BaseOutput):
    """What one photo gave.

    Args:
        crop: the upright crop that the encoder saw, PIL RGB.
        w: latent of the reconstruction, float32 [num_ws, w_dim].
        w_edit: the edited latent, likewise; the same values where every strength is 0.
        views: the reconstruction as nine PIL RGB images, row by row: pitch -20 (from above), 0, 20 by yaw -30, 0, 30
            degrees.
        edited_views: the edited head, likewise.
        mesh: the edited head's surface with colours in [0, 1], +y up and the face to +z; None when not asked for.
        camera_deg: yaw and nominal pitch of the camera that took the photo; None for a ready-made crop, and with
            weights that find no faces.
        faces_found: how many faces the photo has; None likewise.
        tuning: what the planes of the reconstruction are tuned by; None where nothing tunes them.
    """

    crop: Image.Image
    w: np.ndarray
    w_edit: np.ndarray
    views: list[Image.Image]
    edited_views: list[Image.Image]
    mesh: Mesh | None = None
    camera_deg: Angles | None = None
    faces_found: int | None = None
    tuning: Tuning | None = None


class Preim3DPipeline(DiffusionPipeline):
    """From one portrait photo to an editable 3D head.

    Args:
        encoder: crop -> w.
        generator: w -> planes -> images, density, colours.
        directions: strengths -> an offset of w; learned with this encoder and this generator.
        origin_directions: the same learned among sampled latents in place of encoded photos, to compare with (paper,
            section 3.4); None where the weights have none.
        feedback: brings the encoder's w nearer to the photo; None where the weights have none.
        detail: tunes the planes to the photo; None likewise.
        identity: whose embeddings these two compare; None without them.

    Example:
        >>> pipeline = Preim3DPipeline.from_pretrained("weights/faces")
        >>> head = pipeline("portrait.jpg", {"smile": 2, "age": -1})
        >>> head.edited_views[4].save("front.png")
    """

    _optional_components = list(OPTIONAL_CLASSES)

    def __init__(
        self,
        encoder: PortraitEncoder,
        generator: TriPlaneGenerator,
        directions: Directions,
        origin_directions: Directions | None = None,
        feedback: Feedback | None = None,
        detail: DetailNetwork | None = None,
        identity: FaceIdentity | None = None,
    ):
        super().__init__()
        self.register_modules(
            encoder=encoder,
            generator=generator,
            directions=directions,
            origin_directions=origin_directions,
            feedback=feedback,
            detail=detail,
            identity=identity,
        )
        # Not components: a face detector is no diffusers model. Without them, as for cats, a photo is its own crop.
        self.landmarks_folder: Path | None = None
        self.aligner: FaceAligner | None = None
        self.weights_folder = BUNDLED  # where `judges` are looked for first
        self._judges: Judges | None = None

    @classmethod
    def from_pretrained(cls, weights: str | os.PathLike | None = None, **components) -> "Preim3DPipeline":
        """Loads a folder in pipeline layout; None takes PREIM3D_WEIGHTS or the bundled default.

        Networks are in float32 in memory, whatever they are on disk; `view_precision` says where bfloat16 is faster.

        Args:
            weights: the folder.
            components: networks to take in place of the folder's, as in diffusers.

        Raises:
            WeightsError: a file is missing or damaged, or the parts do not belong together.
            ValueError: another argument, such as a `dtype`.
        """
        for name in components:
            if name not in COMPONENT_CLASSES | OPTIONAL_CLASSES:
                *most, last = COMPONENT_CLASSES | OPTIONAL_CLASSES
                raise ValueError(
                    f"`from_pretrained` does not take `{name}`: besides the weights it takes networks, as"
                    f" {', '.join(f'`{known}`' for known in most)} or `{last}`, in float32."
                )
        folder = find_weights(weights).folder
        check_weights(folder)
        for name, network_class in COMPONENT_CLASSES.items():
            if name not in components:
                components[name] = load_component(network_class, folder / name, torch.float32)
        for name in present(folder):
            if name not in components:
                components[name] = load_component(OPTIONAL_CLASSES[name], folder / name, torch.float32)
        pipeline = cls(**components)
        pair = fingerprint(pipeline.encoder, pipeline.generator)
        for learned, stage in (
            (pipeline.directions, "directions"),
            (pipeline.origin_directions, "directions"),
            (pipeline.feedback, "feedback"),
            (pipeline.detail, "detail"),
        ):
            if learned is not None and learned.config.fingerprint not in ("", pair):
                raise WeightsError(
                    f"What lies in {folder / stage} was learned with another encoder or generator, or one of the three"
                    f" is damaged; {REMEDY}, or learn it again with python -m train.{stage}."
                )
        if (folder / "landmarks").is_dir():
            # The aligner would not miss a tensor.
            load_component(LandmarkNetwork, folder / "landmarks", torch.float32)
            load_component(FaceMesh, folder / "landmarks" / "mesh", torch.float32)
            pipeline.landmarks_folder = folder / "landmarks"
            pipeline.aligner = FaceAligner(folder / "landmarks")
        pipeline.weights_folder = folder
        return pipeline

    def save_pretrained(self, folder: str | os.PathLike, **kwargs) -> None:
        """Writes the folder that `from_pretrained` reads."""
        super().save_pretrained(folder, **kwargs)
        if self.landmarks_folder is not None:
            shutil.copytree(self.landmarks_folder, Path(folder, "landmarks"), dirs_exist_ok=True)

    @torch.no_grad()
    def __call__(
        self,
        photo: str | os.PathLike | bytes | Image.Image | Portrait | None = None,
        strengths: Mapping[str, float] | None = None,
        *,
        face: int = 1,
        crop: Image.Image | None = None,
        head: Head | None = None,
        mesh: bool = False,
        texture: bool = False,
        quality: Literal["fast", "normal", "best"] = "normal",
        inversion: Method = "encoder",
        steps: int | None = None,
        seconds: float | None = None,
        return_dict: bool = True,
    ) -> Preim3DOutput | tuple:
        """Reconstructs the head of a photo and edits it.

        photo ── portrait ──> crop ── reconstruct ──> w, planes, tuning ── views ──> nine views
                                                      │           │
                                          strengths ──┴── head ───┴──> planes ──┬─ views ──> nine views, edited
                                                                                └─ mesh ───> surface

        Args:
            photo: any portrait photo: a path, the bytes of a file, or a picture; or what `portrait` gave of one. Of
                weights that find no faces, as those of cats, a photo that is cut already.
            strengths: by attribute, in standard deviations of its classifier's logit; 0 changes nothing.
            face: which face of several, 1 being the largest.
            crop: a face crop as `align` makes it, in place of a photo.
            head: what `reconstruct` gave of the crop, where that is known: many crops can be encoded at once.
            mesh: whether to extract the edited head's surface.
            texture: the surface is of fewer triangles and has a picture of its colours, 1024 px wide, in place of
                colours at the vertices; that takes some seconds on a CPU.
            quality: of the views: half as many samples along each ray, as in training, or twice as many and four rays
                for each one.
            inversion: how the head is found: by networks alone, or by one of the slower ways of `preim3d.inversion`,
                of which "hybrid" takes half a minute on a CPU and looks even more like the person.
            steps: of the slower ways; None takes as many as they need.
            seconds: after which they end, whatever is reached.
            return_dict: a `Preim3DOutput` rather than a tuple of its fields.

        Raises:
            ValueError: impossible arguments.
            PhotoError: the photo cannot be read, or has no such face.
        """
        strengths = self.check_inputs(photo, crop, strengths or {}, face, quality)
        check_method(inversion, steps, seconds)
        if texture and not mesh:
            raise ValueError("A `texture` is part of the mesh: give `mesh=True`, too.")
        if texture:
            check_texture()

        camera_deg = faces_found = corners = None
        if crop is None:
            portrait = photo if isinstance(photo, Portrait) else self.portrait(photo, face)
            crop, camera_deg, faces_found, corners = portrait
        if head is None:
            (head,) = self.reconstruct(crop)
        if inversion != "encoder":
            found = self.invert(
                crop, inversion, w=head.w, tuning=head.tuning, corners=corners, steps=steps, seconds=seconds
            )
            (reached,) = deque(found, maxlen=1)
            head, camera_deg = self.head(reached.w, reached.tuning), reached.angles_deg
        w, tuning = head.w, head.tuning
        views = self.views(head, quality=quality)

        # An edit of nothing is the reconstruction itself, not a second rendering of it.
        changed = head if not any(strengths.values()) else self.head(w, tuning, strengths)
        edited_views = views if changed is head else self.views(changed, quality=quality)
        surface = self.mesh(changed, texture=texture) if mesh else None

        output = Preim3DOutput(
            crop, as_array(w), as_array(changed.w), views, edited_views, surface, camera_deg, faces_found, tuning
        )
        return output if return_dict else output.to_tuple()

    def check_inputs(
        self, photo, crop, strengths: Mapping[str, float], face: int = 1, quality: str = "normal"
    ) -> dict[str, float]:
        """Everything that can be said before the work; returns the strengths as floats."""
        check_face(face)
        if quality not in QUALITIES:
            raise ValueError(f"`quality` must be one of {', '.join(QUALITIES)}, not `{quality}`.")
        if (photo is None) == (crop is None):
            raise ValueError("Give either a `photo` or a `crop`.")
        if crop is not None and not isinstance(crop, Image.Image):
            raise ValueError(f"`crop` must be a PIL image as `align` makes it, not {type(crop).__name__}.")
        if self.aligner is None and face != 1:
            raise ValueError(
                f"These weights find no faces, so there is no `face` {face}: a photo is taken as its crop."
            )
        return check_strengths(strengths, self.directions.names)

    def align(self, photo: str | os.PathLike | bytes | Image.Image, face: int = 1) -> Image.Image:
        """photo -> the upright crop of its face number `face`, 1 the largest, PIL RGB 512 x 512.

        Raises:
            PhotoError: the photo cannot be read, or has no such face.
        """
        return self.portrait(photo, face).crop

    def portrait(self, photo: str | os.PathLike | bytes | Image.Image, face: int = 1) -> Portrait:
        """The same, with the camera that took the photo and the number of its faces. Of weights without landmark
        networks, which find no faces, the middle square of the photo is the crop, and nothing else is known."""
        picture = load_photo(photo)
        if self.aligner is None:
            return Portrait(whole_crop(picture), None, None, None)
        faces = self.aligner.faces(picture)
        chosen = self.aligner.choose(picture, face, faces)
        corners = photo_corners(picture.size, chosen)
        return Portrait(crop_face(picture, chosen), chosen.angles_deg, len(faces), corners)

    @torch.no_grad()
    @exactly()
    def encode(self, *crops: Image.Image) -> Tensor:
        """crops -> w [B, num_ws, w_dim]: the encoder's, brought nearer to the photos where the weights can do that."""
        return self._encode(crops)[0]

    def _encode(self, crops: tuple[Image.Image, ...]) -> tuple[Tensor, Photos | None]:
        """The same, and what the photos show, where anything asks for that."""
        side = self.encoder.config.input_size
        small = [crop.convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for crop in crops]
        image = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)  # [B, 3, side, side]
        image = image.to(self.device, self.encoder.dtype) / 127.5 - 1
        w = self.encoder(image)
        if self.aligner is None or (self.feedback is None and self.detail is None):
            return w, None
        angles_deg, people = zip(*(self.aligner.look(crop) for crop in crops))
        camera = cameras(angles_deg, self.generator.config.pivot).to(w)
        photos = Photos(image, torch.from_numpy(np.stack(people))[:, None].to(w), camera)
        if self.feedback is not None:
            w = bring_nearer(w, photos, self.generator, self.identity, self.feedback)
        return w, photos

    @torch.no_grad()
    @exactly()
    def reconstruct(self, *crops: Image.Image) -> Iterator[Head]:
        """crops -> their heads, in order: w as `encode` gives it, for all of them at once; then, when the next head is
        asked for, its planes, tuned to the photo where the weights can do that."""
        w, photos = self._encode(crops)
        shown = len(crops) * [None]
        if photos is not None:
            shown = [Photos(*parts) for parts in zip(*(part.split(1) for part in photos))]
        return map(self._detailed, w.split(1), shown)

    @torch.no_grad()
    @exactly()
    def _detailed(self, w: Tensor, photo: Photos | None) -> Head:
        planes = self.generator.planes(w)
        if self.detail is None or photo is None:
            return Head(w, planes)
        tuning = draw_detail(w, planes, photo, self.generator, self.identity, self.detail)
        return Head(w, self.generator.survey(tuned(planes, tuning)), tuning)

    @property
    def judges(self) -> Judges:
        """The networks by which slower inversions compare a head with its photo, loaded when first asked for.

        Raises:
            WeightsError: neither these weights nor the bundled ones have them.
        """
        if self._judges is None:
            identity, perceptual = identity_folder(self.weights_folder), perceptual_file(self.weights_folder)
            if identity is None or perceptual is None:
                raise WeightsError(
                    f"Nothing can compare a head with its photo: {BUNDLED} lacks the networks for that; {REMEDY}."
                )
            network = self.identity or load_component(FaceIdentity, identity, torch.float32)
            self._judges = load_judges(network, perceptual)
        return self._judges.to(self.device)

    def invert(
        self,
        crop: Image.Image,
        method: Literal["latent", "pti", "hybrid"] = "hybrid",
        *,
        w: Tensor | np.ndarray | None = None,
        tuning: Tuning | None = None,
        corners: np.ndarray | None = None,
        steps: int | None = None,
        seconds: float | None = None,
    ) -> Iterator[Reached]:
        """crop -> ever better heads; the last one is the best, whenever one stops. See `preim3d.inversion`.

        Args:
            w, tuning: where "hybrid" starts; without w, at what `reconstruct` gives.
            corners: of the photo, as in `Portrait`; None where all of the crop is photo.
            steps, seconds: as in `__call__`.

        Raises:
            ValueError: impossible arguments, or weights that cannot see where a face in a crop looks.
        """
        check_method(method, steps, seconds)
        if self.aligner is None:
            raise ValueError("These weights have no landmark network, which sees where a face in a crop looks.")
        if w is None:
            ((w, _, tuning),) = self.reconstruct(crop)
        w = as_latent(w, self.directions.vectors)
        target = Target.of_crop(crop, *self.aligner.look(crop), self.judges, corners)
        yield from invert(self.generator, self.judges, target, method, w, tuning, steps, seconds)

    def directions_of(self, space: Literal["inversion", "origin"]) -> Directions:
        """Those learned on encoded photos, or those learned among sampled latents.

        Raises:
            ValueError: the weights have none of the original space.
        """
        if space == "inversion":
            return self.directions
        if self.origin_directions is None:
            raise ValueError("These weights have no directions of the original space; take those of the inversion.")
        return self.origin_directions

    @torch.no_grad()
    @exactly()
    def head(
        self,
        w: Tensor | np.ndarray,
        tuning: Tuning | None = None,
        strengths: Mapping[str, float] | None = None,
        space: Literal["inversion", "origin"] = "inversion",
    ) -> Head:
        """w [1, num_ws, w_dim] or [num_ws, w_dim], and what its planes are tuned by -> the head, edited along the
        directions of a space, that `views` and `mesh` read.

        Raises:
            ValueError: an unknown attribute or an impossible strength; no such space; a tuning of other planes.
        """
        directions = self.directions_of(space)
        w = as_latent(w, directions.vectors)
        if any(check_strengths(strengths or {}, directions.names).values()):
            w, tuning = edited(w, tuning, directions, strengths)
        planes = self.generator.planes(w)
        return Head(w, planes if tuning is None else self.generator.survey(tuned(planes, tuning)), tuning)

    @torch.no_grad()
    @exactly()
    def views(
        self, head: Head, cameras: Tensor | None = None, quality: Literal["fast", "normal", "best"] = "normal"
    ) -> list[Image.Image]:
        """A PIL image of the head from each camera [N, 25]; without any, the nine of the pose grid."""
        return pictures(torch.cat([output.image for output in self._render(head, cameras, quality)]))

    @torch.no_grad()
    @exactly()
    def views_and_depths(
        self,
        head: Head,
        cameras: Tensor | None = None,
        quality: Literal["fast", "normal", "best"] = "normal",
        between: DepthRange | None = None,
    ) -> tuple[list[Image.Image], list[Image.Image], DepthRange]:
        """The same, and for each the depth as a grey picture, near being light; and the range of depth that they show,
        which is that of these views unless it is given. Frames of one film need one range, or they flicker."""
        outputs = self._render(head, cameras, quality)
        images, depth, opacity = (
            torch.cat([getattr(output, name) for output in outputs]) for name in ("image", "depth", "opacity")
        )
        between = between or depth_range(depth, opacity)
        return pictures(images), depth_pictures(depth, opacity, images.shape[-1], between), between

    def _render(self, head: Head, cameras: Tensor | None, quality: str) -> list[RenderOutput]:
        """Some views at a time."""
        config, (rays, samples) = self.generator.config, QUALITIES[quality]
        sizes = {
            "ray_resolution": round(rays * config.ray_resolution),
            "coarse_samples": round(samples * config.coarse_samples),
            "fine_samples": round(samples * config.fine_samples),
        }
        cameras = grid_cameras(config.pivot) if cameras is None else cameras
        # One by one on a CPU: nine views at once are no faster there and take nine times the memory.
        pixels = 1 if self.device.type == "cpu" else PIXELS_AT_A_TIME
        together = max(1, pixels // config.image_resolution**2)
        with view_precision(self.generator):
            return [
                self.generator.render(head.planes, part, head.w, **sizes)
                for part in cameras.to(self.device, head.w.dtype).split(together)
            ]

    @torch.no_grad()
    @exactly()
    def mesh(self, head: Head, resolution: int = 144, faces: int | None = None, texture: bool = False) -> Mesh:
        """Its surface, on a grid of resolution^3 cells; `faces` triangles at most, by default 50,000, or 10,000 under
        a texture."""
        config = self.generator.config

        def density(axis: Tensor):
            at = self.generator.density_on_grid(head.planes, axis.to(head.w))
            return lambda index: at(index.to(head.w.device))

        return extract_mesh(
            density,
            lambda points: self.generator.decode(head.planes, points[None].to(head.w))[1][0, :, :3],
            box_size=self.generator.mesh_box,
            bust=BUST if config.has_back else None,
            level=config.surface_density,
            resolution=resolution,
            faces=faces or (TEXTURED_FACES if texture else FACES),
            texture_px=TEXTURE_PX if texture else None,
        )


def view_precision(generator: TriPlaneGenerator):
    """The context to render views in: bfloat16 where that is faster.

    Views of the published size then keep 45 dB to those in float32, of the bundled model 57 dB, and take two thirds of
    the time. `TriPlaneGenerator.planes` says in what planes are made.
    """
    able = draws_faster_in_bfloat16(generator.device, generator.config.image_resolution)
    return torch.autocast(generator.device.type, torch.bfloat16, enabled=able)


def load_component(network_class: type, folder: Path, dtype: torch.dtype):
    """One network of the pipeline, ready for use, with every weight from its file.

    Raises:
        WeightsError: a tensor that the network has is missing, is one too many, or of another shape.
    """
    try:
        # Without this, diffusers would take a pickle where there are no safetensors.
        network, report = network_class.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"The weights in {folder} do not fit this version: {reason[:200]}; {REMEDY}.") from error
    # A weight that the files lack would silently stay without any values.
    for names, trouble in ((report["missing_keys"], "lack the"), (report["unexpected_keys"], "have an unknown")):
        if names:
            raise WeightsError(f"The weights in {folder} {trouble} tensor `{sorted(names)[0]}`; {REMEDY}.")
    return network.eval().requires_grad_(False)


def grid_sheet(views: list[Image.Image]) -> Image.Image:
    """The nine views of the pose grid as one picture, the angles written on the cells."""
    return pose_sheet(views, [angle_label(yaw, pitch) for pitch in PITCHES_DEG for yaw in YAWS_DEG])


def as_latent(w: Tensor | np.ndarray, like: Tensor) -> Tensor:
    """w as [1, num_ws, w_dim], of the type and on the device of another tensor."""
    w = torch.as_tensor(w).to(like)
    return w[None] if w.ndim == 2 else w


def as_array(w: Tensor) -> np.ndarray:
    """[1, num_ws, w_dim] on any device -> float32 [num_ws, w_dim]."""
    return w[0].float().cpu().numpy()
