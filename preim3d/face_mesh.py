"""A face box (RGB, 128 px) -> 120 points of its surface, the camera's yaw and pitch, and where the person is.

The box is the EG3D crop as the first reading of align.py has it; from the points the crop is found anew, finer."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from preim3d.landmarks import MIRRORED, Residual, points_of_heatmaps


class MeshReading(NamedTuple):
    points: Tensor  # [B, K, 3] x right, y down, the box is [-1, 1]; z away from the viewer, same scale, mean near 0
    angles: Tensor  # [B, 2] yaw and nominal pitch in radians, as in `camera`
    person: Tensor  # [B, 1, S/2, S/2] logit of the person, hair and clothes included
    heatmaps: Tensor  # [B, K, S/4, S/4] log-probability over the cells


class FaceMesh(ModelMixin, ConfigMixin):
    """Convolutions down to 1/16 and up again: at 1/4 a heat map for each point, at 1/2 the person.

    Depth and angles are regressed from the deepest level, angles also from the points."""

    @register_to_config
    def __init__(
        self,
        input_size: int = 128,  # a multiple of 16
        widths: tuple[int, ...] = (24, 40, 56, 64),  # channels at 1/2, 1/4, 1/8, 1/16
        points: int = 120,
        summary: int = 8,  # channels of the deepest level that the regressions read
        hidden: int = 48,  # of the angles
    ):
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.stem = nn.Sequential(nn.Conv2d(3, half, 5, 2, 2, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.down4 = nn.Sequential(Residual(half, quarter, stride=2), Residual(quarter, quarter))
        self.down8 = nn.Sequential(Residual(quarter, eighth, stride=2), Residual(eighth, eighth))
        self.down16 = nn.Sequential(Residual(eighth, sixteenth, stride=2), Residual(sixteenth, sixteenth))
        self.up8 = nn.Conv2d(sixteenth, eighth, 1)
        self.up4 = nn.Conv2d(eighth, quarter, 1)
        self.refine8 = Residual(eighth, eighth)
        self.refine4 = Residual(quarter, quarter)
        self.heatmap = nn.Conv2d(quarter, points, 1)
        self.describe = nn.Conv2d(sixteenth, summary, 1)
        described = summary * (input_size // 16) ** 2
        self.depth = nn.Linear(described, points)
        self.angles = nn.Sequential(nn.Linear(described + 3 * points, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        self.up2 = nn.Conv2d(quarter, 16, 1)
        self.skip2 = nn.Conv2d(half, 16, 1)
        self.person = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 1, 3, 1, 1)
        )
        # The five points of the crop (eye centres, nose tip, mouth corners) as weighted means of the mesh's.
        self.register_buffer("five", torch.full((5, points), 1 / points))

    def forward(
        self,
        faces: Tensor,  # [B, 3, S, S] RGB, any range: contrast and brightness are taken out first
    ) -> MeshReading:
        size = self.config.input_size
        assert faces.shape[1:] == (3, size, size), faces.shape
        # The floor keeps an even box (std 0) finite; it is 1/100 of the contrast of a face in [0, 1].
        spread = faces.std((1, 2, 3), keepdim=True).clamp_min(2e-3)
        half = self.stem((faces - faces.mean((1, 2, 3), keepdim=True)) / spread)
        quarter = self.down4(half)
        eighth = self.down8(quarter)
        sixteenth = self.down16(eighth)
        eighth = self.refine8(eighth + F.interpolate(self.up8(sixteenth), scale_factor=2, mode="nearest"))
        quarter = self.refine4(quarter + F.interpolate(self.up4(eighth), scale_factor=2, mode="nearest"))

        heatmaps = self.heatmap(quarter).float()
        heatmaps = heatmaps.flatten(2).log_softmax(2).view_as(heatmaps)
        described = self.describe(sixteenth).flatten(1)
        points = torch.cat([points_of_heatmaps(heatmaps), self.depth(described).float()[..., None]], 2)
        angles = self.angles(torch.cat([described, points.flatten(1).to(described.dtype)], 1)).float()
        person = self.person(
            F.relu(self.skip2(half) + F.interpolate(self.up2(quarter), scale_factor=2, mode="nearest"))
        )
        return MeshReading(points, angles, person.float(), heatmaps)

    def five_points(
        self,
        points: Tensor,  # [B, K, 2 or 3]
    ) -> Tensor:
        """Eye centres, nose tip, mouth corners, image left first: [B, 5, 2], in the box of the points."""
        return self.five @ points[..., :2]

    @torch.no_grad()
    def read(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor, MeshReading]:
        """Reads each face twice, as it is and mirrored: [B, 3, S, S] -> five points [B, 5, 2] and angles [B, 2], each
        the mean of the two readings, disagreement [B] (largest distance between the readings' five points), and the
        first reading with the mean of both persons.

        Not every point of the mesh has a mirrored one in it, so its points are the first reading's alone."""
        plain, turned = (self(x) for x in (faces, faces.flip(3)))
        five = self.five_points(turned.points)[:, list(MIRRORED)] * faces.new_tensor([-1.0, 1.0])
        disagreement = (self.five_points(plain.points) - five).norm(dim=2).amax(1)
        five = (self.five_points(plain.points) + five) / 2
        angles = (plain.angles + turned.angles * faces.new_tensor([-1.0, 1.0])) / 2
        return five, angles, disagreement, plain._replace(person=(plain.person + turned.person.flip(3)) / 2)
