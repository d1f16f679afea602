"""Picture of a head -> attributes and camera: what edits are judged by. It does not tell people apart: see
`preim3d.identity`."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from preim3d.efficientnet import EfficientNetLite0
from preim3d.irse import irse_body


ANGLE_SCALE = 0.35  # Radians; about the spread of yaw in the dataset, so that the regression's target is about 1.
LITE0_CHANNELS = (40, 80, 112)  # of the body's last three outputs, at 1/8, 1/16 and 1/16


class Reading(NamedTuple):
    """What the network reads from images: embedding [B, E], attribute logits [B, A], features [B, F], yaw and pitch
    [B, 2] in rad."""

    embedding: Tensor
    logits: Tensor
    features: Tensor
    angles: Tensor


class HeadReader(ModelMixin, ConfigMixin):
    """A body and three linear heads over one embedding.

    Args:
        input_size: side of the images that it reads; others are resized.
        units, depths, stem_stride: of a body of kind `"irse"`, see `irse_body`.
        pool: side of the body's output that the embedding sees.
        embedding_size: length of the embedding.
        attribute_names: A names, as in CelebA.
        feature_count: F, length of the head features.
        logit_std: A standard deviations of the logits over photos of many people: the unit of changes; empty: unknown.
        backbone: `"irse"`, which learns from nothing, or `"lite0"`, EfficientNet-Lite0 that knows ImageNet.
    """

    @register_to_config
    def __init__(
        self,
        input_size: int = 128,
        units: tuple[int, ...] = (2, 2, 2, 2),
        depths: tuple[int, ...] = (32, 64, 128, 256),
        stem_stride: int = 2,
        pool: int = 4,
        embedding_size: int = 384,
        attribute_names: tuple[str, ...] = (),
        feature_count: int = 165,
        logit_std: tuple[float, ...] = (),
        backbone: Literal["irse", "lite0"] = "irse",
    ):
        super().__init__()
        if backbone == "irse":
            self.input_layer, self.body = irse_body(units, depths, stem_stride)
            self.output_layer = nn.Sequential(
                nn.BatchNorm2d(depths[-1]),
                nn.AdaptiveAvgPool2d(pool),
                nn.Flatten(),
                nn.Linear(depths[-1] * pool * pool, embedding_size),
            )
        else:
            self.body = EfficientNetLite0()
            count = sum(LITE0_CHANNELS) * pool * pool
            self.output_layer = nn.Sequential(
                nn.BatchNorm1d(count),
                nn.Dropout(0.3),
                nn.Linear(count, embedding_size),
                nn.PReLU(embedding_size),
            )
        self.attributes = nn.Linear(embedding_size, len(attribute_names))
        self.features = nn.Linear(embedding_size, feature_count)
        self.angles = nn.Linear(embedding_size, 2)

    def forward(self, images: Tensor) -> Reading:
        """images [B, 3, H, W] in [-1, 1] -> `Reading`."""
        return self.judge(self.see(images))

    def see(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> what the body makes of them, as the embedding reads it."""
        size = self.config.input_size
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        if self.config.backbone == "irse":
            return self.body(self.input_layer(images))
        pooled = (F.adaptive_avg_pool2d(seen, self.config.pool) for seen in self.body(images)[-len(LITE0_CHANNELS) :])
        return torch.cat([one.flatten(1) for one in pooled], 1)

    def judge(self, seen: Tensor) -> Reading:
        embedding = self.output_layer(seen)
        angles = self.angles(embedding) * ANGLE_SCALE
        return Reading(embedding, self.attributes(embedding), self.features(embedding), angles)
