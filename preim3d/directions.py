"""Named directions in W+: strengths in, an offset of w out (paper, section 3.4: editing in the inversion manifold),
and for heads whose planes are tuned an offset of the front plane besides.

The only room that knows the names of attributes. A direction belongs to one encoder and one generator, and says which.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from preim3d.strengths import check_strengths


class Attribute(NamedTuple):
    """How one attribute is shown, and which label of CelebA it is learned from."""

    label: str  # on the slider
    group: str  # the sliders that stand together
    celeba: str  # the label's name there
    sign: int = 1  # -1: the attribute is the label's opposite


ATTRIBUTES = {
    "smile": Attribute("Smile", "Expression", "Smiling"),
    "age": Attribute("Age", "Age and shape", "Young", sign=-1),
    "gender": Attribute("Gender (+ male)", "Age and shape", "Male"),
    "eyeglasses": Attribute("Eyeglasses", "Things worn", "Eyeglasses"),
    "full_beard": Attribute("Full beard", "Beard", "Full_Beard"),
    "mouth_open": Attribute("Mouth open", "Expression", "Mouth_Slightly_Open"),
    "grey_hair": Attribute("Grey hair", "Hair", "Gray_Hair"),
    "hat": Attribute("Hat", "Things worn", "Wearing_Hat"),
    "blond_hair": Attribute("Blond hair", "Hair", "Blond_Hair"),
    "brown_hair": Attribute("Brown hair", "Hair", "Brown_Hair"),
    "black_hair": Attribute("Black hair", "Hair", "Black_Hair"),
    "bald": Attribute("Bald", "Hair", "Bald"),
    "bangs": Attribute("Fringe", "Hair", "Bangs"),
    "wavy_hair": Attribute("Curly hair", "Hair", "Wavy_Hair"),
    "straight_hair": Attribute("Straight hair", "Hair", "Straight_Hair"),
    "long_hair": Attribute("Long hair", "Hair", "Long_Hair"),
    "receding_hairline": Attribute("Receding hairline", "Hair", "Receding_Hairline"),
    "raised_eyebrows": Attribute("Eyebrows raised", "Expression", "Raised_Eyebrows"),
    "eyes_open": Attribute("Eyes open", "Expression", "Narrow_Eyes", sign=-1),
    "sunglasses": Attribute("Sunglasses", "Things worn", "Sunglasses"),
    "goatee": Attribute("Goatee", "Beard", "Goatee"),
    "moustache": Attribute("Moustache", "Beard", "Mustache"),
    "sideburns": Attribute("Sideburns", "Beard", "Sideburns"),
    "stubble": Attribute("Stubble", "Beard", "5_o_Clock_Shadow"),
    "lipstick": Attribute("Lipstick", "Make-up", "Wearing_Lipstick"),
    "heavy_makeup": Attribute("Heavy make-up", "Make-up", "Heavy_Makeup"),
    "rosy_cheeks": Attribute("Rosy cheeks", "Make-up", "Rosy_Cheeks"),
    "chubby": Attribute("Chubby", "Age and shape", "Chubby"),
    "double_chin": Attribute("Double chin", "Age and shape", "Double_Chin"),
    "oval_face": Attribute("Oval face", "Age and shape", "Oval_Face"),
    "high_cheekbones": Attribute("High cheekbones", "Age and shape", "High_Cheekbones"),
    "big_nose": Attribute("Big nose", "Age and shape", "Big_Nose"),
    "pointy_nose": Attribute("Pointy nose", "Age and shape", "Pointy_Nose"),
    "big_lips": Attribute("Big lips", "Age and shape", "Big_Lips"),
    "pale_skin": Attribute("Pale skin", "Age and shape", "Pale_Skin"),
    "bushy_eyebrows": Attribute("Bushy eyebrows", "Age and shape", "Bushy_Eyebrows"),
    "arched_eyebrows": Attribute("Arched eyebrows", "Age and shape", "Arched_Eyebrows"),
    "wide_face": Attribute("Wide face", "Age and shape", "Wide_Face"),
    "wrinkles": Attribute("Wrinkles", "Age and shape", "Bags_Under_Eyes"),
    "freckles": Attribute("Freckles", "Age and shape", "Freckles"),
}
# Those that an edit paints in another colour, and in the same shape.
COLOURS = {
    "grey_hair",
    "blond_hair",
    "brown_hair",
    "black_hair",
    "lipstick",
    "heavy_makeup",
    "rosy_cheeks",
    "pale_skin",
}
MAIN_ATTRIBUTES = 8  # as many sliders stand in sight: the first ones that the weights know, in the order above


class Directions(ModelMixin, ConfigMixin):
    """`vectors` [K, num_ws, w_dim]: moving w by one of them changes that attribute's logit by one standard deviation.

    Args:
        names: K keys, as a person writes them after `--set`.
        labels: K words for the sliders.
        groups: K headings; sliders of one group stand together.
        accuracies: K validation accuracies in [0, 1] of the linear classifiers behind the directions; None where there
            is none, as with principal components.
        safe_range: K pairs of strengths between which results were seen to stay good.
        num_ws, w_dim: the shape of w.
        space: `"inversion"` (learned on encoded photos, as the paper advises) or `"origin"` (on sampled w).
        fingerprint: of the encoder and the generator that they were learned with, see `fingerprint`; empty: unknown.
        sigmas: K standard deviations of the space's latents along the directions, in the unit of w; None, or empty,
            where unknown.
        cosines: [K, K] between the directions; empty: unknown.
        left_out: name -> why there is no such direction, one sentence each.
        drawn: the names whose edits are drawn into the front plane of tuned heads as well: `front_weights`
            [len(drawn), C, R] of `front_maps` [R, r, r].
        front_shape: R, C and r.
    """

    @register_to_config
    def __init__(
        self,
        names: tuple[str, ...] = (),
        labels: tuple[str, ...] = (),
        groups: tuple[str, ...] = (),
        accuracies: tuple[float | None, ...] = (),
        safe_range: tuple[tuple[float, float], ...] = (),
        num_ws: int = 14,
        w_dim: int = 512,
        space: Literal["inversion", "origin"] = "inversion",
        fingerprint: str = "",
        sigmas: tuple[float | None, ...] = (),
        cosines: tuple[tuple[float, ...], ...] = (),
        left_out: dict[str, str] | None = None,
        drawn: tuple[str, ...] = (),
        front_shape: tuple[int, int, int] = (0, 32, 128),
    ):
        super().__init__()
        lengths = {len(names), len(labels), len(groups), len(accuracies), len(safe_range)}
        lengths |= {len(column) for column in (sigmas, cosines) if column}
        assert lengths == {len(names)}, lengths
        self.register_buffer("vectors", torch.zeros(len(names), num_ws, w_dim))
        if drawn:
            maps, channels, texels = front_shape
            self.register_buffer("front_maps", torch.zeros(maps, texels, texels))
            self.register_buffer("front_weights", torch.zeros(len(drawn), channels, maps))

    @property
    def names(self) -> list[str]:
        return list(self.config.names)

    def offset(self, strengths: Mapping[str, float]) -> Tensor:
        """The sum of strength times direction, [num_ws, w_dim].

        Raises:
            ValueError: an unknown attribute or an impossible strength, see `check_strengths`.
        """
        return weighted_sum(strengths, self.names, self.vectors)

    def front(self, strengths: Mapping[str, float]) -> Tensor | None:
        """What the edits add to the front plane of a tuned head, [C, r, r]; None where none of them is drawn."""
        drawn = {name: strength for name, strength in strengths.items() if strength and name in self.config.drawn}
        if not drawn:
            return None
        weights = weighted_sum(drawn, list(self.config.drawn), self.front_weights)
        return torch.tensordot(weights, self.front_maps, dims=1)


def weighted_sum(strengths: Mapping[str, float], names: list[str], vectors: Tensor) -> Tensor:
    """Of K named vectors [K, ...], each times its strength: [...].

    Raises:
        ValueError: an unknown attribute or an impossible strength, see `check_strengths`.
    """
    strengths = check_strengths(strengths, names)
    scales = torch.tensor([strengths.get(name, 0.0) for name in names]).to(vectors)
    return torch.tensordot(scales, vectors, dims=1)


def cosines(vectors: Tensor) -> Tensor:
    """[K, K] between directions [K, num_ws, w_dim]."""
    units = F.normalize(vectors.flatten(1), dim=1)
    return units @ units.T


def fingerprint(*networks: nn.Module) -> str:
    """Sixteen hexadecimal digits that change with any weight of the networks (for directions: encoder, generator), but
    not with their precision on disk."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            if name.startswith("back."):  # it follows from w, not w from it: directions stay true with another
                continue
            # Weights are saved in half precision: rounding them first makes the saved and the unsaved pair agree.
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
