"""A face box (grey, 64 px) -> five points and whether it is a face at all: a small network of our own.

The five points are those of the EG3D crop (see align.py): eye centres, nose tip, mouth corners, image left first."""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


MIRRORED = (1, 0, 2, 4, 3)  # the order of the points in a mirrored face
LEAST_SPREAD = 2e-3  # of a box in [0, 1]: a face has a hundred times that


class Landmarks(NamedTuple):
    points: Tensor  # [B, 5, 2] x right, y down; the box is [-1, 1]
    face_logit: Tensor  # [B] > 0: a face
    heatmaps: Tensor  # [B, 5, h, w] log-probability over the cells


class LandmarkNetwork(ModelMixin, ConfigMixin):
    """Convolutions down to 1/16, up again to 1/4; there one heat map a point, whose mean is the point (soft-argmax).

    Heat maps look at local features (an eye's corners, the lips' ends) and so carry over from rendered to real faces
    better than a regression from one pooled vector; the deepest level still sees the whole face."""

    @register_to_config
    def __init__(
        self,
        input_size: int = 64,  # a multiple of 16
        widths: tuple[int, ...] = (16, 32, 64, 80),  # channels at 1/2, 1/4, 1/8, 1/16
        points: int = 5,
    ):
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.stem = nn.Sequential(nn.Conv2d(1, half, 5, 2, 2, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.down4 = nn.Sequential(Residual(half, quarter, stride=2), Residual(quarter, quarter))
        self.down8 = nn.Sequential(Residual(quarter, eighth, stride=2), Residual(eighth, eighth))
        self.down16 = nn.Sequential(Residual(eighth, sixteenth, stride=2), Residual(sixteenth, sixteenth))
        self.up8 = nn.Conv2d(sixteenth, eighth, 1)
        self.up4 = nn.Conv2d(eighth, quarter, 1)
        self.refine8 = Residual(eighth, eighth)
        self.refine4 = Residual(quarter, quarter)
        self.heatmap = nn.Conv2d(quarter, points, 3, padding=1)
        self.face = nn.Linear(sixteenth, 1)

    def forward(
        self,
        faces: Tensor,  # [B, 1, S, S] grey, any range: contrast and brightness are taken out first
    ) -> Landmarks:
        size = self.config.input_size
        assert faces.shape[1:] == (1, size, size), faces.shape
        # The floor keeps an even grey box (std 0) finite.
        spread = faces.std((1, 2, 3), keepdim=True).clamp_min(LEAST_SPREAD)
        quarter = self.down4(self.stem((faces - faces.mean((1, 2, 3), keepdim=True)) / spread))
        eighth = self.down8(quarter)
        sixteenth = self.down16(eighth)
        eighth = self.refine8(eighth + F.interpolate(self.up8(sixteenth), scale_factor=2, mode="nearest"))
        quarter = self.refine4(quarter + F.interpolate(self.up4(eighth), scale_factor=2, mode="nearest"))

        heatmaps = self.heatmap(quarter).float()  # [B, 5, h, w]
        heatmaps = heatmaps.flatten(2).log_softmax(2).view_as(heatmaps)
        points = points_of_heatmaps(heatmaps)
        return Landmarks(points, self.face(sixteenth.mean((2, 3))).float()[:, 0], heatmaps)

    STEP_PX = 16  # what the deepest level shrinks by

    @torch.no_grad()
    def everywhere(
        self,
        picture: Tensor,  # [1, 1, H, W] grey, brightness and contrast (mean 0, spread 1) taken out around each pixel
    ) -> Tensor:
        """The face_logit of every box in a picture that begins at multiples of `STEP_PX`: [h, w]. Nearly what each box
        alone would give: there, nothing is seen of what lies around it."""
        deepest = self.down16(self.down8(self.down4(self.stem(picture))))
        cells = F.conv2d(deepest, self.face.weight[..., None, None], self.face.bias)
        return F.avg_pool2d(cells, self.config.input_size // self.STEP_PX, 1)[0, 0].float()

    @torch.no_grad()
    def read(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reads each face twice, as it is and mirrored: [B, 1, S, S] -> points [B, 5, 2] (mean of the two readings,
        box = [-1, 1]), face_logit [B] (the lower of the two), disagreement [B] (largest distance between the
        readings)."""
        count = len(faces)
        points, face_logit, _ = self(torch.cat([faces, faces.flip(3)]))
        turned = points[count:, list(MIRRORED)] * points.new_tensor([-1.0, 1.0])
        disagreement = (points[:count] - turned).norm(dim=2).amax(1)
        return (points[:count] + turned) / 2, torch.minimum(face_logit[:count], face_logit[count:]), disagreement


def points_of_heatmaps(
    heatmaps: Tensor,  # [B, K, h, w] log-probability
) -> Tensor:
    """The mean place of each map (soft-argmax), [B, K, 2] in [-1, 1]."""
    chances = heatmaps.exp()
    cells = _cell_centres(heatmaps.shape[-1], heatmaps.device)
    return torch.stack([(chances.sum(2) * cells).sum(2), (chances.sum(3) * cells).sum(2)], 2)


def gaussian_heatmaps(
    points: Tensor,  # [B, K, 2] box = [-1, 1]
    size: int,
    sigma: float = 0.08,  # of the half box: .6 cell of a 16-cell map
) -> Tensor:
    """The heat maps that the network should give, [B, K, size, size], each summing to 1."""
    cells = _cell_centres(size, points.device)
    across = -((cells - points[..., :1]) ** 2) / (2 * sigma**2)  # [B, K, size]
    down = -((cells - points[..., 1:]) ** 2) / (2 * sigma**2)
    return (down[..., :, None] + across[..., None, :]).flatten(2).softmax(2).unflatten(2, (size, size))


def _cell_centres(size: int, device: torch.device) -> Tensor:
    """[-1, 1] cut into `size` cells: their centres."""
    return (torch.arange(size, device=device) + 0.5) * (2 / size) - 1


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def fold_batch_norms(network: nn.Module) -> None:
    """Into the convolutions before them, in place: a network in eval mode then gives the same in 2/3 of the time."""
    for part in [part for part in network.modules() if isinstance(part, nn.Sequential)]:
        for place, (first, second) in enumerate(itertools.pairwise(list(part))):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                part[place], part[place + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
