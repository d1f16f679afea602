"""What makes a generator's planes those of one person: an offset of the plane that lies as a photo does.

Pivotal tuning (Roich et al. 2021) changes a generator's weights until its picture at a fixed latent is the photo. Of
those weights only the last is changed here, the constant that is added to the planes: backwards through all the others
takes ten times as long as rendering does, and the planes are where they all meet. The two planes that look along the
face stay as they are, as a photo says little about them: changed too, they draw stripes over the head's sides.

The offset is kept in 8 bits from the start, so that a recipe gives back the very same head."""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preim3d.directions import COLOURS, Directions
from preim3d.generator import Planes, StitchedPlanes


TEXELS = 128  # along a side of the offset: as many as a bundled model's picture has rays
FRONT = 0  # the plane of x and y, see `renderer.PLANE_AXES`
# What draws the photo's face holds back what an edit draws over it. So edits of tuned heads are drawn into the front
# plane, too (`Directions.front`), or, where nothing was learned for that, go further along their directions. Measured
# (`train.evaluate --inversion`): without this, a slider shows half to three quarters of what it does to the encoder's
# head; much more, and what should stay changes more than there. Another colour is not held back: pictures of tuned
# heads change by as much as the encoder's do (.97 to .99 of it), and further along they turn blue.
EDITS_BY = 1.6
MOST = 127  # of 8 bits, to either side
MOST_CHANNELS = 256  # more is no tuning of ours: who reads a recipe of others must not fill the memory


class Tuning(NamedTuple):
    """An offset of the front plane, in 8 bits."""

    offset: np.ndarray  # int8 [C, TEXELS, TEXELS]
    scales: np.ndarray  # float32 [C] by which it is multiplied

    @classmethod
    def of_offset(cls, offset: np.ndarray) -> "Tuning":
        """[C, TEXELS, TEXELS], in numbers of the planes."""
        scales = (abs(offset).max((1, 2)) / MOST).astype(np.float32)
        steps = offset / np.maximum(scales, 1e-12)[:, None, None]
        return cls(np.rint(steps).astype(np.int8), scales)

    def plus(self, offset: np.ndarray) -> "Tuning":
        """With another offset [C, TEXELS, TEXELS] added."""
        return self.of_offset(self.scales[:, None, None] * self.offset + offset)

    def to_bytes(self) -> bytes:
        """Compressed: some 0.4 MB for 32 channels."""
        return zlib.compress(self.scales.astype("<f4").tobytes() + self.offset.tobytes(), 9)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Tuning":
        """Raises ValueError where the bytes are not those of a tuning."""
        each = 4 + TEXELS**2
        unpacker = zlib.decompressobj()
        try:
            raw = unpacker.decompress(content, MOST_CHANNELS * each)
        except zlib.error as error:
            raise ValueError(f"The tuning is damaged: {error}.") from None
        channels, rest = divmod(len(raw), each)
        if rest or not unpacker.eof:
            raise ValueError("The tuning is damaged: it is not whole.")
        split = 4 * channels
        scales = np.frombuffer(raw[:split], "<f4").astype(np.float32)
        if not (channels and np.isfinite(scales).all() and abs(scales).max() < 1e3):
            raise ValueError("The tuning is damaged: its scales are no numbers.")
        return cls(np.frombuffer(raw[split:], np.int8).reshape(channels, TEXELS, TEXELS), scales)


def edited(
    w: Tensor,  # [B, num_ws, w_dim]
    tuning: Tuning | None,  # of the planes of these w
    directions: Directions,
    strengths: Mapping[str, float],
) -> tuple[Tensor, Tuning | None]:
    """w and tuning of the edited heads.

    Raises:
        ValueError: an unknown attribute or an impossible strength, see `check_strengths`.
    """
    offset = directions.offset(strengths)
    if tuning is not None:
        held_back = {
            name: strength
            for name, strength in strengths.items()
            if name not in COLOURS and name not in directions.config.drawn
        }
        offset = offset + (EDITS_BY - 1) * directions.offset(held_back)
        if (front := directions.front(strengths)) is not None:
            tuning = tuning.plus(front.float().cpu().numpy())
    return w + offset.to(w), tuning


def tuned(planes: Planes, tuning: Tuning) -> Planes:
    """Planes of one head as they are tuned.

    Raises:
        ValueError: the tuning is of planes with more channels, or fewer.
    """
    channels = front_of(planes).shape[2]
    if len(tuning.scales) != channels:
        raise ValueError(f"The tuning is of planes with {len(tuning.scales)} channels; these have {channels}.")
    return add_to_front(planes, offset_of(tuning, front_of(planes))[None])


def offset_of(tuning: Tuning, like: Tensor) -> Tensor:
    """[C, TEXELS, TEXELS], of the type and on the device of another tensor."""
    scales, steps = (torch.from_numpy(part.copy()).to(like) for part in (tuning.scales, tuning.offset))
    return scales[:, None, None] * steps


def add_to_front(planes: Planes, offsets: Tensor) -> Planes:
    """Planes of B heads, with offsets [B, C, r, r] of their front ones."""
    images = front_of(planes)
    size = images.shape[-1]
    fitted = F.interpolate(offsets, (size, size), mode="bilinear", antialias=size < offsets.shape[-1])
    # In the order that a CPU's memory has, and without planes of zeros: both would cost each step of an inversion more
    # than it takes to look at the head.
    rows, fitted = images.permute(0, 3, 4, 1, 2), fitted.permute(0, 2, 3, 1)[:, :, :, None]
    moved = rows.index_add(3, torch.tensor([FRONT], device=images.device), fitted).permute(0, 3, 4, 1, 2)
    return planes._replace(front=moved) if isinstance(planes, StitchedPlanes) else moved


def front_of(planes: Planes) -> Tensor:
    """The planes [B, 3, C, R, R] themselves, whether or not the generator has a back."""
    return planes.front if isinstance(planes, StitchedPlanes) else planes
