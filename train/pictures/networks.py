"""w -> a picture, by the StyleGAN2 that makes the planes of heads; and photo -> w as e4e has it: one row, and a small
offset of each further row from it (Tov et al. 2021, section 4.1)."""

import copy

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from preim3d.efficientnet import EfficientNetLite0
from preim3d.stylegan2 import FullyConnected, MappingNetwork, SynthesisNetwork


TAPS = (24, 40, 80, 112)  # channels of EfficientNet-Lite0's last four features, at 1/4, 1/8, 1/16 and 1/16
POOL = 4  # side that the encoder's last map is pooled to
STYLE_GAIN = 0.5  # on the styles' first weights: near-linear in w to begin with
RGB_GAIN = 0.1  # on those of what adds up to the picture, which begins as the mean


class PictureGenerator(ModelMixin, ConfigMixin):
    """z [B, z_dim] -> ws [B, num_ws, w_dim] -> pictures [B, 3, S, S] in [-1, 1] (not clipped): StyleGAN2 of a few
    channels, whose picture is added to `average` [3, S, S], the mean of all photos.

    Args:
        resolution: S, a power of two, 16 or more.
        channel_base, channel_max: channels at side r are `channel_base / r`, at most `channel_max`.
    """

    @register_to_config
    def __init__(
        self,
        z_dim: int = 256,
        w_dim: int = 256,
        mapping_layers: int = 4,
        resolution: int = 128,
        channel_base: int = 1024,
        channel_max: int = 192,
    ):
        super().__init__()
        self.mapping = MappingNetwork(z_dim, 0, w_dim, mapping_layers)
        self.synthesis = SynthesisNetwork(w_dim, resolution, 3, channel_base, channel_max)
        with torch.no_grad():
            for name, parameter in self.synthesis.named_parameters():
                if name.endswith("affine.weight"):
                    parameter *= STYLE_GAIN
                elif name.endswith("torgb.weight"):
                    parameter *= RGB_GAIN
            # The last blocks begin by showing what those before them have learned.
            for side in (resolution, resolution // 2):
                self.synthesis.get_submodule(f"b{side}.torgb").weight.zero_()
        self.register_buffer("average", torch.zeros(3, resolution, resolution))

    @property
    def num_ws(self) -> int:
        return self.synthesis.num_ws

    def latents(self, z: Tensor) -> Tensor:
        """The original space: ws [B, num_ws, w_dim], all rows equal."""
        return self.mapping(z)[:, None].repeat(1, self.num_ws, 1)

    def forward(self, ws: Tensor, halved: int = 0) -> Tensor:
        """Pictures, of half the size for each of the last blocks that is left out."""
        if not halved:
            return self.average + self.synthesis(ws)
        smaller = copy.copy(self.synthesis)  # of the same weights
        smaller.resolutions = self.synthesis.resolutions[:-halved]
        smaller.num_ws = self.num_ws - 2 * halved
        return F.avg_pool2d(self.average, 2**halved) + smaller(ws[:, : smaller.num_ws])


class PictureEncoder(ModelMixin, ConfigMixin):
    """crops [B, 3, input_size, input_size] in [-1, 1] -> ws [B, num_ws, w_dim], on features of EfficientNet-Lite0,
    which knows ImageNet and learns nothing here.

    Args:
        width: channels of the first layer; the last has four times as many.
        feature_dim: between the body and the rows of w.
    """

    @register_to_config
    def __init__(
        self, input_size: int = 64, width: int = 32, feature_dim: int = 512, num_ws: int = 12, w_dim: int = 256
    ):
        super().__init__()
        self.body = EfficientNetLite0().eval().requires_grad_(False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in TAPS)
        self.fine = _layer(TAPS[0], width, 2)
        self.middle = _layer(width + TAPS[1], 2 * width, 2)
        self.coarse = _layer(2 * width + TAPS[2] + TAPS[3], 4 * width, 1)
        self.last = _layer(4 * width, 4 * width, 2)
        self.linear = nn.Sequential(nn.Linear(4 * width * POOL**2, feature_dim), nn.LeakyReLU(0.2))
        self.base = FullyConnected(feature_dim, w_dim)
        self.deltas = FullyConnected(feature_dim, (num_ws - 1) * w_dim)
        nn.init.zeros_(self.deltas.weight)

    def train(self, mode: bool = True) -> "PictureEncoder":
        super().train(mode)
        self.body.eval()  # its statistics are ImageNet's
        return self

    def forward(self, crops: Tensor) -> Tensor:
        return self.rows(crops, self.config.num_ws)

    def rows(self, crops: Tensor, free: int) -> Tensor:
        """ws [B, num_ws, w_dim] of which only the first `free` rows may differ: e4e lets one after the other go."""
        size, num_ws = self.config.input_size, self.config.num_ws
        assert crops.ndim == 4 and crops.shape[1:] == (3, size, size), crops.shape
        with torch.no_grad():
            seen = self.body(crops)[-len(TAPS) :]
        quarter, eighth, *coarse = (norm(one) for norm, one in zip(self.norms, seen))
        x = torch.cat([self.fine(quarter), eighth], 1)
        x = self.last(self.coarse(torch.cat([self.middle(x), *coarse], 1)))
        features = self.linear(F.adaptive_avg_pool2d(x, POOL).flatten(1))
        first = self.base(features)[:, None]
        deltas = self.deltas(features, slice(0, (free - 1) * self.config.w_dim))
        deltas = deltas.view(len(crops), free - 1, self.config.w_dim)
        rows = torch.cat([first, first + deltas], 1)
        return torch.cat([rows, first.expand(-1, num_ws - free, -1)], 1)


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)
    )
