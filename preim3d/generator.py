"""w and camera -> image: EG3D's generator (Chan et al. 2022, section 4). w -> tri-planes -> feature image -> image.

    z ── mapping ──> ws ── planes ──> planes ──┬─ render(camera) ──> features ── super_resolve ──> image
                                               └─ decode(points) ──> density, colour

The keyword defaults are the published ffhq512-128 configuration; ours in weights/faces differs in the config only.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .back import BOX, LEAST_DENSITY, Back, back_share
from .camera import FOCAL, PIVOT, RADIUS, camera_from_angles, camera_rays
from .device import draws_faster_in_bfloat16
from .renderer import PLANE_AXES, Rays, render_guided_rays, render_rays, row_by_row, sample_planes, side_by_side
from .stylegan2 import FullyConnected, MappingNetwork, SynthesisBlock, SynthesisNetwork


# Points decoded in one go where no gradient is wanted: on a CPU so few that the hidden layer stays in its cache.
CHUNK_CPU = 16384
CHUNK_GPU = 2**20
# Of the samples of a coarse and a fine pass, how many a guided ray takes to be as exact: see `render_guided_rays`.
GUIDED_SHARE = 5 / 12
GUIDED_TOGETHER = 128  # rays along a side of a picture from which four of them share a guide


@dataclass
class RenderOutput:
    """One or more views, float32.

    image: [B, 3, H, W] in [-1, 1] (not clipped). raw: [B, 3, r, r], the picture before super-resolution.
    features: [B, C, r, r], raw being its first three channels. depth: [B, 1, r, r], distance from the camera along
    the ray, the farthest where there is nothing. opacity: [B, 1, r, r] in [0, 1].
    """

    image: Tensor
    raw: Tensor
    features: Tensor
    depth: Tensor
    opacity: Tensor


class StitchedPlanes(NamedTuple):
    """Planes of B heads whose back is a grid of its own."""

    front: Tensor  # [B, 3, C, R, R]
    back: Tensor  # [B, cells, cells, cells, 4]
    rough: Tensor  # [B, cells, cells, cells]: raw density at the cells' middles
    near: Tensor  # [B, cells, cells, cells] bool: where anything is read at all


Planes = Tensor | StitchedPlanes  # a plain tensor [B, 3, C, R, R] where the generator has no back


class Backbone(nn.Module):
    """Mapping and synthesis network under the names of the published checkpoints."""

    def __init__(self, mapping: MappingNetwork, synthesis: SynthesisNetwork):
        super().__init__()
        self.mapping, self.synthesis = mapping, synthesis


class Decoder(nn.Module):
    """Plane features [..., C] -> raw density [..., 1] and colour features [..., C] in [0, 1] (section 4.2)."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(FullyConnected(features, hidden), nn.Softplus(), FullyConnected(hidden, 1 + features))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.net[:2](features)
        # Apart from each other: together they round otherwise, and steep surfaces show it.
        density, color = self.net[2](hidden, slice(0, 1)), self.net[2](hidden, slice(1, None))
        # Slightly more than [0, 1], so that the ends are reached (mip-NeRF, Barron et al. 2021, appendix).
        return density, torch.add(-0.001, torch.sigmoid(color), alpha=1 + 2 * 0.001)

    def density(self, features: Tensor) -> Tensor:
        """Raw density [..., 1] alone."""
        return self.net[2](self.net[:2](features), slice(0, 1))


class SuperResolution(nn.Module):
    """Feature image -> image: StyleGAN2 blocks without noise, all driven by one w (section 4.4)."""

    def __init__(self, blocks: Sequence[dict[str, Any]], w_dim: int, resolution: int, clamp: float | None):
        super().__init__()
        self.count = len(blocks)
        for i, block in enumerate(blocks):
            resolution = resolution * 2 if block["up"] else resolution
            self.add_module(
                f"block{i}",
                SynthesisBlock(
                    block["in"], block["out"], 3, w_dim, resolution, up=block["up"], use_noise=False, clamp=clamp
                ),
            )

    def forward(self, features: Tensor, w: Tensor) -> Tensor:
        x, image = features, features[:, :3]
        for i in range(self.count):
            x, image = self.get_submodule(f"block{i}")(x, image, [w, w, w])
        return image


class TriPlaneGenerator(ModelMixin, ConfigMixin):
    """EG3D's generator, sizes by configuration. See the module's drawing.

    It computes in float32, but for `planes` (see `_plane_precision`). Within `torch.autocast(device, torch.bfloat16)`
    backbone and super-resolution take half as long where the processor multiplies bfloat16, and pictures move by about
    a hundredth of their range.
    """

    @register_to_config
    def __init__(
        self,
        z_dim: int = 512,
        c_dim: int = 25,  # Length of the camera label that the mapping sees; 0 = no pose conditioning.
        w_dim: int = 512,
        mapping_layers: int = 2,
        plane_resolution: int = 256,
        plane_channels: int = 32,
        channel_base: int = 32768,  # Backbone channels at resolution r: min(channel_base / r, channel_max).
        channel_max: int = 512,
        mean_planes: bool = False,  # A learned average head, added to the planes. Ours only.
        has_back: bool = False,  # A field of its own for what photos do not show: see back.py. Ours only.
        decoder_hidden: int = 64,
        image_resolution: int = 512,
        ray_resolution: int = 128,  # Rays per side of a view.
        superresolution_input: int = 128,  # Side that the feature image is resized to first.
        superresolution_blocks: Sequence[dict[str, Any]] = (
            {"in": 32, "out": 256, "up": True},
            {"in": 256, "out": 128, "up": True},
        ),
        superresolution_clamp: float | None = 256.0,  # Clamp of every layer, from half-precision training.
        box_warp: float = 1.0,  # Side of the cube around the origin that the planes cover.
        ray_start: float = 2.25,  # Nearest and farthest depth sampled.
        ray_end: float = 3.3,
        coarse_samples: int = 48,
        fine_samples: int = 48,
        plane_axes: Literal["eg3d", "fixed"] = "eg3d",  # Which way the third plane lies: see renderer.PLANE_AXES.
        surface_density: float = 10.0,  # Raw density that meshes take for the surface; 10 is EG3D's.
        background: float = 0.0,  # Grey behind the head, in [0, 1]: 0 = EG3D's faces, 1 = white.
        pivot: tuple[float, float, float] = PIVOT,  # The point cameras look at,
        camera_radius: float = RADIUS,  # their distance from the origin,
        focal: float = FOCAL,  # their focal length over image width.
        c_scale: float = 1.0,  # Factor on the camera label that the mapping sees.
    ):
        super().__init__()
        self.backbone = Backbone(
            MappingNetwork(z_dim, c_dim, w_dim, mapping_layers),
            SynthesisNetwork(w_dim, plane_resolution, 3 * plane_channels, channel_base, channel_max),
        )
        self.decoder = Decoder(plane_channels, decoder_hidden)
        self.superresolution = SuperResolution(
            superresolution_blocks, w_dim, superresolution_input, superresolution_clamp
        )
        if mean_planes:
            self.average_planes = nn.Parameter(torch.zeros(3 * plane_channels, plane_resolution, plane_resolution))
        if has_back:
            self.back = Back(self.num_ws, w_dim, plane_channels)
        output = superresolution_input * 2 ** sum(block["up"] for block in superresolution_blocks)
        assert output == image_resolution, (output, image_resolution)

    @property
    def num_ws(self) -> int:
        """Rows of w that the backbone reads."""
        return self.backbone.synthesis.num_ws

    @property
    def w_avg(self) -> Tensor:
        """The running mean of w during training [w_dim], towards which truncation pulls."""
        return self.backbone.mapping.w_avg

    def frontal_camera(self) -> Tensor:
        """The camera label [1, 25] straight in front of the face."""
        config = self.config
        camera = camera_from_angles(0.0, 0.0, radius=config.camera_radius, pivot=config.pivot, focal=config.focal)
        return camera[None].to(self.device)

    def mapping(
        self,
        z: Tensor,  # [B, z_dim]
        camera: Tensor | None = None,  # [B, 25] the pose that w is conditioned on; not used where c_dim is 0.
        truncation_psi: float = 1.0,  # 1 = as drawn, 0 = the average w.
        truncation_cutoff: int | None = None,  # Rows to truncate, from the first; None = all.
    ) -> Tensor:
        """z -> ws [B, num_ws, w_dim], all rows equal but for truncation."""
        condition = camera * self.config.c_scale if self.config.c_dim else None
        ws = self.backbone.mapping(z, condition)[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            ws[:, :truncation_cutoff] = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
        return ws

    def styles(self, ws: Tensor) -> Tensor:
        """ws [B, num_ws, w_dim] -> the point in S space [B, S] that makes the planes (Wu et al. 2021): the styles of
        all layers of the synthesis network. Super-resolution, which works on pictures, is not among them."""
        return self.backbone.synthesis.styles(ws)

    @property
    def mesh_box(self) -> float:
        """Side of the cube around the origin that holds the head."""
        # Beyond the outermost texels' centres the features fade to zero, which would grow a flange.
        return BOX if self.config.has_back else self.config.box_warp * (1 - 1 / self.config.plane_resolution)

    def planes(
        self,
        ws: Tensor,  # [B, num_ws, w_dim]
        styles_offset: Tensor | None = None,  # [B, S] or [1, S]: what is added to `styles`. None = nothing.
    ) -> Planes:
        """ws -> planes [B, 3, C, R, R]. In a CPU's memory [B, R, R, 3, C]: the channels of a point side by side; on a
        GPU each channel is a picture, which is what `sample_planes` reads fastest there.

        The back of the head follows w alone: an offset of the styles reaches it by the seam only."""
        order = torch.channels_last if ws.device.type == "cpu" else torch.contiguous_format
        with self._plane_precision():
            image = self.backbone.synthesis(ws, styles_offset)
        if self.config.mean_planes:
            image = image + self.average_planes[None].contiguous(memory_format=order)
        planes = image.contiguous(memory_format=order).unflatten(1, (3, -1))
        if not self.config.has_back:
            return planes
        seam = self.back.seam()
        features = sample_planes(planes, seam.expand(len(ws), -1, -1), self.config.box_warp, self.config.plane_axes)
        density, color = self.decoder(features)
        back = self.back(ws, seam, density, color[..., :3], self.config.surface_density)
        hull = (self.back.hull > 0).expand(len(ws), -1, -1, -1)
        return self.survey(StitchedPlanes(planes, back, torch.empty(()), hull))

    def _plane_precision(self):
        """bfloat16 on a CPU that is faster so, where nothing learns and there are mean planes: synthesis then draws
        only what sets a head apart, and pictures keep 62 dB to those of planes in float32. Without mean planes they
        would keep 38 dB, so there, and on a GPU, where nobody has measured it, precision is left as it is."""
        able = self.device.type == "cpu" and draws_faster_in_bfloat16(self.device, self.config.image_resolution)
        if able and self.config.mean_planes and not torch.is_grad_enabled():
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    @torch.no_grad()
    def survey(self, planes: Planes) -> Planes:
        """The same, with `rough` and `near` as front and back are now: for planes that were changed."""
        if not self.config.has_back:
            return planes
        hull = self.back.hull > 0
        everywhere = planes._replace(near=hull.expand(len(planes.front), -1, -1, -1))
        density = self.density(everywhere, self.back.middles().expand(len(planes.front), -1, -1))
        return planes._replace(rough=density.float().unflatten(1, hull.shape), near=self.back.near_matter(density))

    def decode(
        self,
        planes: Planes,  # of B heads
        points: Tensor,  # [B, N, 3]
    ) -> tuple[Tensor, Tensor]:
        """Raw density [B, N, 1], before the softplus, and colour features [B, N, C], the first three RGB in [0, 1]."""
        return self._read(planes, points, self.decoder)

    def density(self, planes: Planes, points: Tensor) -> Tensor:
        """Raw density [B, N] at points [B, N, 3] of the planes of B heads."""
        return self._read(planes, points, lambda features: (self.decoder.density(features),))[0].squeeze(-1)

    def density_on_grid(
        self,
        planes: Planes,  # of one head
        axis: Tensor,  # [n] coordinates that the grid's points have in x, y and z, on the planes' device
    ) -> Callable[[Tensor], Tensor]:
        """A function: places on the axis [N, 3], integers, -> raw density [N], as `density` gives it at those points.

        A grid has n^3 points, but each plane sees only n^2 places, and the decoder's first layer is linear up to its
        activation: planes and layer are read n^2 times beforehand, and a point costs a sum of three rows.
        """
        size, axes = len(axis), PLANE_AXES[self.config.plane_axes]
        row, column = torch.meshgrid(axis, axis, indexing="ij")
        places = torch.stack([column, row], -1) * (2 / self.config.box_warp)
        front = planes.front if self.config.has_back else planes
        features = F.grid_sample(front[0].float(), places.expand(len(axes), -1, -1, -1), align_corners=False)
        first, activation, last = self.decoder.net
        table = first(features.permute(0, 2, 3, 1)).flatten(0, 2) / len(axes)  # [3 * n * n, hidden]

        def of_front(index: Tensor) -> Tensor:
            rows = [
                (plane * size + index[:, row]) * size + index[:, column] for plane, (column, row) in enumerate(axes)
            ]
            hidden = activation(F.embedding_bag(torch.stack(rows, -1), table, mode="sum"))
            return last(hidden, slice(0, 1))

        def stitched(index: Tensor) -> Tensor:
            head = index.new_zeros(len(index))
            return self._stitch(planes, axis[index], head, lambda at: (of_front(index[at]),))[0]

        def density(index: Tensor) -> Tensor:
            parts = index.split(max(1, self._chunk() // 2))
            return torch.cat([stitched(part) if self.config.has_back else of_front(part) for part in parts])[:, 0]

        return density

    def _read(self, planes: Planes, points: Tensor, decoder: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """What the decoder says at the points, asked bit by bit where no gradient needs the whole."""
        chunk = points.shape[1] if torch.is_grad_enabled() else self._chunk()
        parts = [self._read_part(planes, part, decoder) for part in points.split(chunk, dim=1)]
        return [torch.cat(part, dim=1) if len(part) > 1 else part[0] for part in zip(*parts)]

    def _read_part(self, planes: Planes, points: Tensor, decoder) -> tuple[Tensor, ...]:
        box, axes = self.config.box_warp, self.config.plane_axes
        if not self.config.has_back:
            return decoder(sample_planes(planes, points, box, axes))
        batch, count = points.shape[:2]
        points, head = points.flatten(0, 1), torch.arange(batch, device=points.device).repeat_interleave(count)

        def of_front(at: Tensor) -> tuple[Tensor, ...]:
            return decoder(sample_planes(planes.front, points[at], box, axes, head[at]))

        return tuple(part.unflatten(0, (batch, count)) for part in self._stitch(planes, points, head, of_front))

    def _stitch(
        self,
        planes: StitchedPlanes,
        points: Tensor,  # [N, 3]
        head: Tensor,  # [N] which of the planes' heads each belongs to
        of_front: Callable[[Tensor], tuple[Tensor, ...]],  # places among the points -> density and, if wanted, colour
    ) -> tuple[Tensor, ...]:
        """The field at the points: the front's, the back's, or both in shares; nothing where there is none near."""
        inside, share = self.back.in_cells(planes.near, points, head), back_share(points)
        front, back = (torch.nonzero(inside & there).squeeze(1) for there in (share < 1, share > 0))
        share, level = share[:, None], self.config.surface_density
        fields = zip(
            of_front(front),
            self.back.read(planes.back, points[back], head[back], level),
            (LEAST_DENSITY, self.config.background),
        )
        # In float32 within autocast too: shares of bfloat16 would show as steps at the seam.
        return tuple(
            torch.where(inside[:, None], 0.0, free)
            .repeat(1, ours.shape[1])
            .index_copy(0, front, ours.float() * (1 - share[front]))
            .index_add(0, back, theirs.float() * share[back])
            for ours, theirs, free in fields
        )

    def _render_guided(
        self,
        planes: StitchedPlanes,  # of one head
        origins: Tensor,  # [N * size * size, 3]
        directions: Tensor,
        size: int,
        samples: int,
    ) -> Rays:
        """Pictures of one head, of which only what shows is computed."""
        config, back = self.config, self.back

        def field(points: Tensor) -> tuple[Tensor, Tensor]:
            # Like `_stitch`, but for points that nearly all are the front's.
            head = points.new_zeros(len(points), dtype=torch.int)
            features = sample_planes(planes.front, points, config.box_warp, config.plane_axes, head)
            density, color = (x.float() for x in self.decoder(features))
            share = back_share(points)
            at = share.nonzero().squeeze(1)
            theirs = back.read(planes.back, points[at], head[at], config.surface_density)
            for ours, other in zip((density, color), theirs):
                ours.index_copy_(0, at, ours[at].lerp(other, share[at, None]))
            density.masked_fill_(~back.in_cells(planes.near, points, head)[:, None], LEAST_DENSITY)
            return density, color

        # In a fine picture rays side by side pass through the same of the guide's cells.
        side = 2 if size >= GUIDED_TOGETHER and size % 2 == 0 else 1
        rays = render_guided_rays(
            field,
            lambda points: back.guide(planes.rough[0], points),
            side_by_side(origins, size, side),
            side_by_side(directions, size, side),
            config.ray_start,
            config.ray_end,
            samples,
            config.background,
        )
        return Rays(*(row_by_row(groups, size, side) for groups in rays))

    def _chunk(self) -> int:
        return CHUNK_CPU if self.device.type == "cpu" else CHUNK_GPU

    def render(
        self,
        planes: Planes,  # of B heads, or of one, seen by B cameras
        camera: Tensor,  # [B, 25]
        ws: Tensor,  # [B, num_ws, w_dim], or [1, num_ws, w_dim]; super-resolution reads the last row.
        ray_resolution: int | None = None,  # None = as configured, here and below.
        coarse_samples: int | None = None,
        fine_samples: int | None = None,
        jitter: float | Tensor = 0.5,  # Where samples lie, as in `render_rays`; [1, B * R, ...] for planes [1, ...].
        u: Tensor | None = None,
        generator: torch.Generator | None = None,  # Draws both at random. None = the same every time.
    ) -> RenderOutput:
        """Views of the planes from `camera`."""
        config = self.config
        size = config.ray_resolution if ray_resolution is None else ray_resolution
        views = len(camera)
        heads = len(planes.front if config.has_back else planes)
        assert heads in (1, views), (heads, camera.shape)
        origins, directions = camera_rays(camera, size)  # [B, R, 3]
        if heads == 1:
            # One head: all views' rays are one long list, and the planes need no copies.
            origins, directions = origins.reshape(1, -1, 3), directions.reshape(1, -1, 3)
        how = {
            "start": config.ray_start,
            "end": config.ray_end,
            "samples": config.coarse_samples if coarse_samples is None else coarse_samples,
            "fine_samples": config.fine_samples if fine_samples is None else fine_samples,
            "background": config.background,
            "jitter": jitter,
            "u": u,
            "generator": generator,
        }
        if config.has_back and self.device.type == "cpu" and jitter == 0.5 and u is None and generator is None:
            samples = max(1, round(GUIDED_SHARE * (how["samples"] + how["fine_samples"])))
            parts = (StitchedPlanes(*(x[i : i + 1] for x in planes)) for i in range(heads))
            seen = [self._render_guided(*part, size, samples) for part in zip(parts, origins, directions)]
            rays = Rays(*(torch.stack(part) for part in zip(*seen)))
        else:
            group = None if torch.is_grad_enabled() else self._chunk()
            rays = render_rays(
                lambda points: self.decode(planes, points), origins, directions, points_at_a_time=group, **how
            )
        # [B, size * size, C] is the memory of a channels-last picture.
        features, depth, opacity = (x.reshape(views, size, size, -1).permute(0, 3, 1, 2) for x in rays)
        features = features * 2 - 1
        image = self.super_resolve(features, ws)
        return RenderOutput(image.float(), features[:, :3], features, depth, opacity)

    def super_resolve(
        self,
        features: Tensor,  # [B, C, r, r] in [-1, 1]
        ws: Tensor,  # [B, num_ws, w_dim], or [1, num_ws, w_dim]
    ) -> Tensor:
        """Feature image -> image [B, 3, image_resolution, image_resolution] in [-1, 1], not clipped."""
        size = self.config.superresolution_input
        if features.shape[-1] != size:
            features = F.interpolate(features, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return self.superresolution(features, ws[:, -1])

    @torch.no_grad()
    def latent_average(
        self,
        samples: int = 10000,
        seed: int = 123,
        camera: Tensor | None = None,  # [1, 25]; None = straight in front of the face.
    ) -> Tensor:
        """The mean w [w_dim] of numpy's RandomState(seed) normal z at truncation .7, as PREIM3D's code takes it."""
        z = torch.from_numpy(np.random.RandomState(seed).randn(samples, self.config.z_dim)).float().to(self.device)
        camera = (self.frontal_camera() if camera is None else camera).expand(samples, -1)
        ws = self.mapping(z, camera, truncation_psi=0.7, truncation_cutoff=14)
        return ws[:, 0].mean(dim=0)
