"""A ResNet-50 (He et al. 2016) as feature network: its similarity takes the place of identity in domains without
faces. Reads the weights of MoCo (He et al. 2020; Chen et al. 2020) and torchvision's; the user brings the file."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for images in [0, 1]
_SIDE = 224
_PREFIXES = ("module.encoder_q.", "module.base_encoder.", "module.", "")  # MoCo v1 and v2, v3, any other, torchvision


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 with four times the channels, plus a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = nn.Identity()
        if inputs != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class FeatureNetwork(nn.Module):
    """images [B, 3, H, W] in [-1, 1] -> unit vectors [B, 2048] of ResNet-50, without its last layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for i, (count, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512))):
            blocks = []
            for j in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if i and not j else 1))
                inputs = 4 * width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.pooled(images), dim=1)

    def pooled(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> what the last layer reads [B, 2048]."""
        if images.shape[-1] != _SIDE:
            images = F.interpolate(images, (_SIDE, _SIDE), mode="bilinear", antialias=True)
        x = self.maxpool(F.relu(self.bn1(self.conv1(((images + 1) / 2 - self.mean) / self.std))))
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return x.float().mean((2, 3))


def load_features(path: Path | str) -> FeatureNetwork:
    """A feature network from MoCo's or torchvision's ResNet-50 file. Raises ValueError for any other."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    network = FeatureNetwork()
    names = network.state_dict().keys()
    for prefix in _PREFIXES:
        # Old files lack the count of batches; nothing reads it.
        if all(prefix + name in state for name in names if not name.endswith("num_batches_tracked")):
            found = {name: state[prefix + name] for name in names if prefix + name in state}
            network.load_state_dict(found, strict=False)
            return network.eval().requires_grad_(False)
    raise ValueError(f"{path} holds no ResNet-50: give MoCo's checkpoint or torchvision's resnet50-*.pth.")
