"""Face crop -> who it is: dlib's face recognition network (Davis King 2017, CC0 1.0), which knows real people.

Distances between embeddings, not cosines: dlib calls two photos the same person's below .6. On the London set's two
photos of each person the same people are .26 apart, strangers .83, the nearest stranger .55."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


CHIP_PX = 150  # side of the square that dlib's network reads
# Where that square lies in an EG3D crop, in crop sides: fitted to dlib's own alignment of real photos.
CHIP_SIDE, CHIP_CENTRE = 0.727, (0.5, 0.525)
MEAN_RGB, SCALE = (122.782, 117.001, 104.298), 256.0  # of dlib's input, in [0, 255]
# The embedding is at least as wide as this: below it, a face's crop is enlarged smoothly first.
LEAST_CROP_PX = 128


class FaceIdentity(ModelMixin, ConfigMixin):
    """A ResNet of 29 convolutions, each followed by an affine map of its channels, as in dlib.

    Args:
        stem_width: channels of the first convolution.
        stages: channels of each residual block and whether it halves the picture.
        embedding_size: length of the embedding.
    """

    @register_to_config
    def __init__(
        self,
        stem_width: int = 32,
        stages: Sequence[tuple[int, bool]] = (
            *[(32, False)] * 3, (64, True), *[(64, False)] * 3, (128, True), *[(128, False)] * 2,
            (256, True), *[(256, False)] * 2, (256, True),
        ),
        embedding_size: int = 128,
    ):  # fmt: skip
        super().__init__()
        self.stem = _ConvAffine(3, stem_width, 7, stride=2, padding=0)
        widths = [stem_width, *(width for width, _ in stages)]
        self.blocks = nn.ModuleList(
            _Residual(inputs, outputs, halved) for inputs, (outputs, halved) in zip(widths, stages)
        )
        self.embedding = nn.Linear(widths[-1], embedding_size, bias=False)

    def forward(self, crops: Tensor) -> Tensor:
        """EG3D crops [B, 3, S, S] in [-1, 1] -> embeddings [B, 128]."""
        return self.embed_chips(cut_chips(crops))[0]

    def embed_chips(self, chips: Tensor) -> tuple[Tensor, list[Tensor]]:
        """dlib's squares [B, 3, 150, 150] in [0, 255] -> embeddings [B, 128] and what each block gives."""
        x = (chips - chips.new_tensor(MEAN_RGB)[:, None, None]) / SCALE
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.embedding(x.mean((2, 3))), features


def cut_chips(crops: Tensor) -> Tensor:
    """EG3D crops [B, 3, S, S] in [-1, 1] -> the squares [B, 3, 150, 150] in [0, 255] that dlib would cut from them."""
    if crops.shape[-1] < LEAST_CROP_PX:
        crops = F.interpolate(crops, (LEAST_CROP_PX, LEAST_CROP_PX), mode="bilinear")
    theta = crops.new_tensor([
        [CHIP_SIDE, 0, 2 * CHIP_CENTRE[0] - 1],
        [0, CHIP_SIDE, 2 * CHIP_CENTRE[1] - 1],
    ]).float()  # fmt: skip
    grid = F.affine_grid(theta.expand(len(crops), -1, -1), (len(crops), 3, CHIP_PX, CHIP_PX), align_corners=False)
    return (F.grid_sample(crops.float(), grid, align_corners=False, padding_mode="border") + 1) * 127.5


class _ConvAffine(nn.Module):
    """Convolution, then a factor and an offset for each channel (dlib's batch norm when it no longer learns)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        self.gamma, self.beta = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gamma[:, None, None] + self.beta[:, None, None]


class _Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut; where sizes differ, the smaller of the two is padded with zeros, as dlib
    does it."""

    def __init__(self, inputs: int, outputs: int, halved: bool):
        super().__init__()
        self.halved = halved
        self.first = _ConvAffine(inputs, outputs, 3, 2 if halved else 1, 0 if halved else 1)
        self.second = _ConvAffine(outputs, outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        shortcut = F.avg_pool2d(x, 2, 2) if self.halved else x
        channels, height, width = (max(a, b) for a, b in zip(y.shape[1:], shortcut.shape[1:]))

        def padded(t: Tensor) -> Tensor:
            return F.pad(t, (0, width - t.shape[3], 0, height - t.shape[2], 0, channels - t.shape[1]))

        return F.relu(padded(y) + padded(shortcut))
