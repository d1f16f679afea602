"""crop -> w: the feed-forward W+ encoder of pSp and PREIM3D (Li et al. 2023, section 3.1), on the IR-SE body."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from .irse import irse_body
from .stylegan2 import FullyConnected


class PortraitEncoder(ModelMixin, ConfigMixin):
    """crop [B, 3, input_size, input_size] -> w [B, num_ws, w_dim]. No camera is needed.

    The keyword defaults are the published PREIM3D encoder; ours in weights/faces differs in the config only.
    """

    @register_to_config
    def __init__(
        self,
        input_size: int = 256,  # Side of the crop.
        units: Sequence[int] = (3, 4, 14, 3),
        depths: Sequence[int] = (64, 128, 256, 512),
        stem_stride: int = 1,  # 2 halves the crop in the first convolution. Ours only.
        pool: int = 7,  # Side that the body's output is pooled to.
        feature_dim: int = 512,  # Between the body and the rows of w.
        num_ws: int = 14,
        w_dim: int = 512,
        latent_recipe: dict[str, float] | None = None,  # How `latent_average` was computed: convert.LATENT_RECIPE.
    ):
        super().__init__()
        self.input_layer, self.body = irse_body(units, depths, stem_stride)
        self.output_layer_2 = nn.Sequential(
            nn.BatchNorm2d(depths[-1]),
            nn.AdaptiveAvgPool2d(pool),
            nn.Flatten(),
            nn.Linear(depths[-1] * pool**2, feature_dim),
        )
        self.linear = FullyConnected(feature_dim, num_ws * w_dim)
        # What the network's output is an offset from: the mean w of the generator that it was trained with.
        self.register_buffer("latent_average", torch.zeros(num_ws, w_dim))

    def forward(
        self,
        crop: Tensor,  # [B, 3, input_size, input_size] RGB in [-1, 1]
    ) -> Tensor:
        """w [B, num_ws, w_dim] of the generator."""
        return self.of_features(self.features(crop))

    def features(self, crop: Tensor) -> Tensor:
        """What w is read off [B, feature_dim]."""
        size = self.config.input_size
        assert crop.ndim == 4 and crop.shape[1:] == (3, size, size), crop.shape
        return self.output_layer_2(self.body(self.input_layer(crop)))

    def of_features(self, features: Tensor) -> Tensor:
        """[B, feature_dim] -> w [B, num_ws, w_dim]."""
        offset = self.linear(features).unflatten(1, (self.config.num_ws, self.config.w_dim))
        return self.latent_average + offset
