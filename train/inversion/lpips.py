"""LPIPS (Zhang et al. 2018) on torchvision's weight files of AlexNet or VGG-16, without torchvision: the user brings
the files, nothing is downloaded."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


# (output channels, kernel, stride, padding) of each convolution; "M": max pooling. "|" ends a slice that LPIPS reads.
_ALEXNET = [(64, 11, 4, 2), "|", "M", (192, 5, 1, 2), "|", "M", (384, 3, 1, 1), "|", (256, 3, 1, 1), "|",
            (256, 3, 1, 1), "|"]  # fmt: skip
_VGG16 = [64, 64, "|", "M", 128, 128, "|", "M", 256, 256, 256, "|", "M", 512, 512, 512, "|", "M", 512, 512, 512, "|"]
_POOLS = {"alexnet": (3, 2), "vgg16": (2, 2)}  # kernel, stride

# ImageNet's mean and spread for images in [-1, 1], as LPIPS scales its input.
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Distance of two images by the features of a network trained on ImageNet (their Eq. 1).

    Args:
        backbone: "alexnet" or "vgg16".
    """

    def __init__(self, backbone: str):
        super().__init__()
        layers, self.ends, channels = [], [], []
        inputs = 3
        for entry in {"alexnet": _ALEXNET, "vgg16": _VGG16}[backbone]:
            if entry == "|":
                self.ends.append(len(layers))
                channels.append(inputs)
            elif entry == "M":
                layers.append(nn.MaxPool2d(*_POOLS[backbone]))
            else:
                outputs, kernel, stride, padding = (entry, 3, 1, 1) if isinstance(entry, int) else entry
                layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
                inputs = outputs
        self.features = nn.Sequential(*layers)  # numbered as torchvision numbers them
        # One weight per channel; the published ones come in a file of their own.
        self.linear = nn.ParameterList(nn.Parameter(torch.ones(count) / count) for count in channels)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1))

    def forward(self, images: Tensor, truth: Tensor) -> Tensor:
        """images, truth [B, 3, H, W] in [-1, 1] -> L_LPIPS of Eq. 7, mean over the batch."""
        with torch.no_grad():
            wanted = self._maps(truth)
        layers = zip(self._maps(images), wanted, self.linear)
        return sum(torch.einsum("bchw,c->bhw", (a - b).square(), linear).mean() for a, b, linear in layers)

    def _maps(self, images: Tensor) -> list[Tensor]:
        x, maps = (images - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i + 1 in self.ends:
                maps.append(F.normalize(x.float(), dim=1, eps=1e-10))
        return maps


def load_lpips(weights: Path | str, linear: Path | str | None = None) -> Lpips:
    """LPIPS from torchvision's `alexnet-*.pth` or `vgg16-*.pth`, told apart by their shapes.

    `linear` is the `alex.pth` or `vgg.pth` of the lpips package; without it all channels of a layer count alike.
    Raises ValueError for any other file."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    first = state.get("features.0.weight") if isinstance(state, dict) else None
    backbone = {(64, 3, 11, 11): "alexnet", (64, 3, 3, 3): "vgg16"}.get(tuple(first.shape) if first is not None else 0)
    if backbone is None:
        raise ValueError(f"{weights} holds no AlexNet or VGG-16 of torchvision: give alexnet-*.pth or vgg16-*.pth.")
    network = Lpips(backbone)
    names = {name for name in network.state_dict() if name.startswith("features.")}
    missing = sorted(names - state.keys())
    if missing:
        raise ValueError(f"{weights} lacks {missing[0]} of torchvision's {backbone}: download the file again.")
    network.load_state_dict({name: state[name] for name in names}, strict=False)
    if linear is not None:
        published = torch.load(linear, map_location="cpu", weights_only=True)
        for i, parameter in enumerate(network.linear):
            row = published.get(f"lin{i}.model.1.weight")
            if row is None or row.numel() != parameter.numel():
                raise ValueError(f"{linear} holds no weights of LPIPS for {backbone}: give the lpips package's.")
            parameter.data.copy_(row.flatten())
    return network.eval().requires_grad_(False)
