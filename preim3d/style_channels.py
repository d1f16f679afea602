"""Named edits in S space: strengths in, an offset of the styles out (StyleSpace, Wu et al. 2021).

Where a direction of `preim3d.directions` moves all of w, this moves a few channels of the styles that w becomes."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from preim3d.directions import weighted_sum


class Channel(NamedTuple):
    """One channel of an edit."""

    layer: str  # of the synthesis network, such as `b32.conv1`
    channel: int  # of the layer's style
    step: float  # added to it at strength 1


class StyleChannels(ModelMixin, ConfigMixin):
    """`vectors` [K, S], mostly zeros: what strength 1 of each edit adds to `TriPlaneGenerator.styles`.

    Args:
        names: K keys, as a person writes them after `--set`.
        layers, sizes: the layers of S space in order, and how many channels each has; their sum is S.
        space: of the latents that they were found on, as of `Directions`.
        fingerprint: of encoder and generator, as of `Directions`; empty: unknown.
    """

    @register_to_config
    def __init__(
        self,
        names: tuple[str, ...] = (),
        layers: tuple[str, ...] = (),
        sizes: tuple[int, ...] = (),
        space: Literal["inversion", "origin"] = "inversion",
        fingerprint: str = "",
    ):
        super().__init__()
        assert len(layers) == len(sizes), (layers, sizes)
        self.register_buffer("vectors", torch.zeros(len(names), sum(sizes)))

    @property
    def names(self) -> list[str]:
        return list(self.config.names)

    def offset(self, strengths: Mapping[str, float]) -> Tensor:
        """The sum of strength times edit, [S], for `TriPlaneGenerator.planes`.

        Raises:
            ValueError: an unknown attribute or an impossible strength, see `check_strengths`.
        """
        return weighted_sum(strengths, self.names, self.vectors)

    def channels(self, name: str) -> list[Channel]:
        """The channels that an edit moves, in the order of the layers."""
        parts = self.vectors[self.names.index(name)].split(list(self.config.sizes))
        return [
            Channel(layer, channel, part[channel].item())
            for layer, part in zip(self.config.layers, parts)
            for channel in part.nonzero()[:, 0].tolist()
        ]
