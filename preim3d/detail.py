"""What a photo shows and w cannot say -> a tuning of the head's planes, in one pass.

    photo and picture of the head, seen from the front plane ──┐
                              the front plane's own features ──┼── DetailNetwork ──> offset of the front plane
              what the picture lacks of the photo's embedding ──┘

People differ by more than w holds. What is left lies in the difference of photo and picture, and where that belongs
in the planes is known: each texel of the front plane is looked up in both, at the surface that the head has there. A
U-Net (Ronneberger et al. 2015) makes of it the offset that pivotal tuning takes forty steps to find. TriPlaneNet
(Bhattarai et al. 2024) does so too, from pictures that are not yet seen from the plane."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from preim3d.camera import angles_from_camera, camera_rays
from preim3d.feedback import Photos
from preim3d.generator import Planes, RenderOutput, TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.tuning import TEXELS, Tuning, front_of


RAYS = 64  # along a side of the picture that is looked at
LOOKUPS = 4  # by which the surface above a texel is found
FIRST_Z = 0.12  # where the first one begins: about a cheek
SEEN = 9  # channels of a look-up: colours of photo and picture, person, opacity, whether the surface was found
CHANNELS = 2 * SEEN + 3  # of all that is read besides features: reflected too, depth of the surface, yaw and pitch
ASIDE_RAD = 0.35, 0.6  # yaw of the photo from which, and at which wholly, the far half is a reflection
MIDLINE_BLEND = 0.03  # box units to either side of the midline, across which
FOUND_WITHIN = 0.02  # box units between a texel and the surface that is looked up for it


class DetailNetwork(ModelMixin, ConfigMixin):
    """A U-Net over the texels of the front plane.

    Args:
        plane_channels: of the generator.
        embedding_size: of the identity network.
        widths: channels at 128 texels along a side, at 64, at 32 and so on.
        fingerprint: of encoder and generator that it was learned with.
    """

    @register_to_config
    def __init__(
        self,
        plane_channels: int = 32,
        embedding_size: int = 128,
        widths: tuple[int, ...] = (32, 48, 64, 96),
        fingerprint: str = "",
    ):
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS + plane_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(narrow, wide, 4, 2, 1), ResidualBlock(wide)])
            for narrow, wide in zip(widths, widths[1:])
        )
        self.who = nn.Linear(2 * embedding_size, widths[-1])
        self.middle = ResidualBlock(widths[-1])
        self.up = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(wide + narrow, narrow, 3, padding=1), ResidualBlock(narrow)])
            for narrow, wide in reversed(list(zip(widths, widths[1:])))
        )
        self.last = nn.Conv2d(widths[0], plane_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        looked_up: Tensor,  # [B, CHANNELS + C, TEXELS, TEXELS], as `at_texels` gives it
        who: Tensor,  # [B, 2 * embedding_size]: what the picture lacks of the photo's embedding, and that itself
    ) -> Tensor:
        """The offset [B, C, TEXELS, TEXELS], in standard deviations of the planes."""
        x = self.stem(looked_up)
        kept = []
        for halve, block in self.down:
            kept.append(x)
            x = block(halve(F.silu(x)))
        x = self.middle(x + self.who(who)[:, :, None, None])
        for (join, block), aside in zip(self.up, reversed(kept)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = block(join(F.silu(torch.cat([x, aside], 1))))
        return self.last(F.silu(x))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


def surface(view: RenderOutput, cameras: Tensor) -> Tensor:
    """Points [B, 3, r, r] where the rays of a view meet the head."""
    size = view.depth.shape[-1]
    origins, directions = (x.transpose(1, 2).unflatten(2, (size, size)) for x in camera_rays(cameras, size))
    return origins + view.depth * directions


def projected(points: Tensor, cameras: Tensor) -> Tensor:
    """Points [B, 3, H, W] -> where cameras [B, 25] see them, [B, H, W, 2] in -1 to 1 across and down the picture."""
    rotation, position = cameras[:, :16].view(-1, 4, 4)[:, :3, :3], cameras[:, :16].view(-1, 4, 4)[:, :3, 3]
    local = torch.einsum("bji,bjhw->bihw", rotation, points - position[:, :, None, None])
    flat = local[:, :2] / local[:, 2:]
    fx, cx, fy, cy = (cameras[:, i, None, None] for i in (16, 18, 20, 21))
    return 2 * torch.stack([flat[:, 0] * fx + cx, flat[:, 1] * fy + cy], -1) - 1


@torch.no_grad()
def compared(
    w: Tensor,  # [B, num_ws, w_dim]
    planes: Planes,  # of these w
    photos: Photos,
    generator: TriPlaneGenerator,
    identity: FaceIdentity,
) -> tuple[Tensor, Tensor]:
    """What `DetailNetwork` reads of heads and their photos."""
    view = generator.render(planes, photos.cameras, w, ray_resolution=RAYS)
    wanted = identity(photos.crops)
    looked_up = at_texels(planes, photos, view, generator.config.box_warp)
    return looked_up, torch.cat([wanted - identity(view.image), wanted], 1)


@torch.no_grad()
def draw_detail(
    w: Tensor,  # [1, num_ws, w_dim]
    planes: Planes,  # of this w
    photo: Photos,  # one
    generator: TriPlaneGenerator,
    identity: FaceIdentity,
    network: DetailNetwork,
) -> Tuning:
    """What the planes of one head are tuned by, so that it is the photo's."""
    offset = deviation(planes) * network(*compared(w, planes, photo, generator, identity))
    offset = far_half_reflected(offset, photo.cameras, generator.config.box_warp)
    return Tuning.of_offset(offset[0].float().cpu().numpy())


def far_half_reflected(
    offset: Tensor,  # [B, C, TEXELS, TEXELS]
    cameras: Tensor,  # [B, 25] of the photos
    box: float,  # side of the cube that the planes cover
) -> Tensor:
    """The same, but of a face that looks far aside the half that the photo hardly shows gets what the other half gets:
    what is read there is mostly what lies behind the face."""
    yaw, _ = angles_from_camera(cameras)
    aside = ((yaw.abs() - ASIDE_RAD[0]) / (ASIDE_RAD[1] - ASIDE_RAD[0])).clamp(0, 1)
    x = ((torch.arange(TEXELS, device=offset.device) + 0.5) / TEXELS - 0.5) * box
    far = (0.5 - x * yaw.sign()[:, None] / (2 * MIDLINE_BLEND)).clamp(0, 1)  # [B, TEXELS]
    return offset.lerp(offset.flip(-1), (aside[:, None] * far)[:, None, None])


def at_texels(
    planes: Planes,  # of B heads
    photos: Photos,
    view: RenderOutput,  # of the heads from the photos' cameras
    box: float,  # side of the cube that the planes cover
) -> Tensor:
    """Photo, view and planes as the front plane's texels see them, [B, CHANNELS + C, TEXELS, TEXELS]. Row 0 is at the
    chin, as in the planes."""
    cameras = photos.cameras
    axis = ((torch.arange(TEXELS, device=cameras.device) + 0.5) / TEXELS - 0.5) * box
    y, x = (part.expand(len(cameras), 1, -1, -1) for part in torch.meshgrid(axis, axis, indexing="ij"))
    met, z = surface(view, cameras), torch.full_like(x, FIRST_Z)
    for _ in range(LOOKUPS):
        place = projected(torch.cat([x, y, z], 1), cameras)
        z = (z + F.grid_sample(met, place, padding_mode="border", align_corners=False)[:, 2:]) / 2
    place = projected(torch.cat([x, y, z], 1), cameras)

    def read(images: Tensor) -> Tensor:
        small = F.interpolate(images, (TEXELS, TEXELS), mode="area")
        return F.grid_sample(small, place, padding_mode="zeros", align_corners=False)

    # Where the photo's camera does not see the surface above a texel, it sees another one.
    there = F.grid_sample(met, place, padding_mode="border", align_corners=False)
    off = (there[:, :2] - torch.cat([x, y], 1)).norm(dim=1, keepdim=True)
    seen = torch.cat([
        read(photos.crops), read(view.image.clamp(-1, 1)), read(photos.person), read(view.opacity),
        (1 - off / FOUND_WITHIN).clamp(0, 1),
    ], 1)  # fmt: skip
    yaw, pitch = (angle.view(-1, 1, 1, 1).expand_as(z) for angle in angles_from_camera(cameras))
    features = F.interpolate(front_of(planes)[:, 0], (TEXELS, TEXELS), mode="area") / deviation(planes)
    # Reflected too: of the half of a face that looks away, the other half knows most.
    return torch.cat([seen, seen.flip(-1), z, yaw, pitch, features], 1)


def deviation(planes: Planes) -> Tensor:
    """Standard deviation [B, 1, 1, 1] of each head's planes."""
    return front_of(planes).std(dim=(1, 2, 3, 4), keepdim=True)[:, 0]
