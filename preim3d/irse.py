"""IR-SE: the residual body with squeeze-and-excitation shared by the W+ encoder and the identity network.

Sources: ResNet (He et al. 2016) as improved for faces by ArcFace (Deng et al. 2019, section 3.1), and
squeeze-and-excitation (Hu et al. 2018). Parameters have the names of the published `model_ir_se50.pth`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Each channel scaled by a factor in (0, 1) that depends on the means of all channels."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(scale))))


class Unit(nn.Module):
    """Two convolutions, the second with the stride, plus a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        if in_channels == out_channels:
            self.shortcut_layer = nn.MaxPool2d(1, stride)  # Takes every stride-th pixel.
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            SqueezeExcitation(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


def irse_body(
    units: Sequence[int], depths: Sequence[int], stem_stride: int = 1
) -> tuple[nn.Sequential, nn.Sequential]:
    """Input layer and body: [B, 3, H, W] -> [B, depths[0], H, W] -> [B, depths[-1], H / 2**stages, W / 2**stages].

    `units` are the numbers of units of the stages, `depths` their channels (a multiple of 16); the first unit of every
    stage halves the picture. A `stem_stride` of 2 halves it before all others, for a quarter of the work (ours only).
    """
    assert len(units) == len(depths), (units, depths)
    input_layer = nn.Sequential(
        nn.Conv2d(3, depths[0], 3, stem_stride, padding=1, bias=False), nn.BatchNorm2d(depths[0]), nn.PReLU(depths[0])
    )
    body, in_channels = [], depths[0]
    for count, depth in zip(units, depths):
        for i in range(count):
            body.append(Unit(in_channels, depth, stride=2 if i == 0 else 1))
            in_channels = depth
    return input_layer, nn.Sequential(*body)


class IdentityNetwork(ModelMixin, ConfigMixin):
    """ArcFace: face picture -> a unit vector that is the same for all pictures of one person.

    The keyword defaults are the published IR-SE-50. Its distance in PREIM3D is 1 - cosine, of the whole crop.
    """

    @register_to_config
    def __init__(
        self,
        input_size: int = 112,  # Pictures are pooled to this side.
        units: Sequence[int] = (3, 4, 14, 3),
        depths: Sequence[int] = (64, 128, 256, 512),
        feature_dim: int = 512,  # Length of the vector.
        dropout: float = 0.6,  # In training only.
    ):
        super().__init__()
        self.input_layer, self.body = irse_body(units, depths)
        side = input_size // 2 ** len(units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(depths[-1]),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(depths[-1] * side**2, feature_dim),
            nn.BatchNorm1d(feature_dim),
        )

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W] RGB in [-1, 1], of any size
    ) -> Tensor:
        """Unit vectors [B, feature_dim]."""
        x = F.adaptive_avg_pool2d(images, self.config.input_size)
        x = self.output_layer(self.body(self.input_layer(x)))
        return F.normalize(x.float(), dim=1)
