"""Unit directions -> calibrated ones: heads are edited, rendered and classified again, which tells how far strength 1
goes (one standard deviation of the attribute's logit over the photos) and what else the edit drags along."""

import numpy as np
import torch
from torch import Tensor

from preim3d.generator import TriPlaneGenerator
from train.attributes import HeadReader, read_images
from train.batches import READ_RAYS, render_views
from train.precision import Precision, autocast


LADDER = (0.5, 1.0, 1.5, 2.0, 3.0, 4.5)  # steps tried, in spreads of the latents; longer ones leave the manifold
# Attributes that go together by definition: their labels share a cause, so moving one without the other is
# meaningless.
ALLIED = (
    {"Full_Beard", "Goatee", "Mustache", "No_Beard", "Sideburns", "5_o_Clock_Shadow"},
    {"Black_Hair", "Brown_Hair", "Blond_Hair", "Gray_Hair"},
    {
        "Bald",
        "Black_Hair",
        "Brown_Hair",
        "Blond_Hair",
        "Gray_Hair",
        "Bangs",
        "Long_Hair",
        "Straight_Hair",
        "Wavy_Hair",
    },
    {"Bald", "Receding_Hairline"},
    {"Wearing_Hat", "Bangs", "Receding_Hairline"},
    {"Smiling", "High_Cheekbones"},
    {"Chubby", "Double_Chin"},
    {"Eyeglasses", "Sunglasses"},
    {"Pale_Skin", "Dark_Skin"},
    {"Big_Nose", "Pointy_Nose"},
    {"Young", "Bags_Under_Eyes"},
)


class EditTrial:
    """A few heads that are edited, rendered from the front and read again."""

    def __init__(
        self,
        generator: TriPlaneGenerator,
        reader: HeadReader,
        ws: Tensor,  # [M,num_ws,w_dim]
        sigma: Tensor,  # [A] standard deviation of each logit over the photos
        precision: Precision = "float32",
    ):
        self.generator, self.reader, self.ws, self.sigma, self.precision = generator, reader, ws, sigma, precision
        self.before = self.logits(ws)  # [M,A]

    @torch.no_grad()
    def logits(self, ws: Tensor) -> Tensor:
        with autocast(self.generator.device, self.precision):
            images = render_views(self.generator, ws, self.generator.frontal_camera(), READ_RAYS)
        return read_images(self.reader, images).logits

    def response(self, offset: Tensor, heads: int | None = None) -> Tensor:
        """Mean change of each logit [A], in standard deviations, when the heads (or the first few) move by `offset`
        [num_ws,w_dim]."""
        few = slice(heads)
        return ((self.logits(self.ws[few] + offset) - self.before[few]) / self.sigma).mean(0)


def calibrate(
    trial: EditTrial,
    normal: Tensor,  # [num_ws,w_dim], unit length
    sigma_w: float,  # spread of the latents along it
    attribute: int,
    sign: int = 1,  # -1: the direction is to lower the logit
) -> tuple[Tensor, Tensor]:
    """The shortest step [num_ws,w_dim] along the normal that moves the mean logit by one standard deviation, and the
    response to it [A]; of those on the ladder the most effective, where none goes so far.

    The ladder is climbed from below: glasses, once there, move the logit no further, but longer steps ruin them."""
    below, gain_below = 0.0, 0.0
    best, best_gain, best_response = 0.0, -np.inf, None
    for spreads in LADDER:
        response = trial.response(spreads * sigma_w * normal)
        gain = sign * response[attribute].item()
        if gain >= 1:
            step = below + (spreads - below) * (1 - gain_below) / (gain - gain_below)
            return step * sigma_w * normal, trial.response(step * sigma_w * normal)
        if gain > best_gain:
            best, best_gain, best_response = spreads, gain, response
        below, gain_below = spreads, gain
    return best * sigma_w * normal, best_response


def dependency(response: Tensor, attribute: int) -> float:
    """Mean absolute response of the other attributes, per unit of the edited one: AD at AA = 1."""
    others = torch.arange(len(response)) != attribute
    return (response[others].abs().mean() / response[attribute].abs().clamp(min=0.1)).item()


def allied(first: str, second: str) -> bool:
    return any(first in group and second in group for group in ALLIED)


def purify(
    vectors: dict[str, Tensor],  # CelebA name -> calibrated direction
    responses: dict[str, Tensor],  # CelebA name -> response to it [A]
    names: list[str],  # the A names of the response
    name: str,
    most: int = 3,
    least: float = 0.15,  # a drag below this is left alone
) -> Tensor:
    """The direction less those of the attributes that it drags along most, each in the measured amount."""

    def drag(other: str) -> float:
        column = names.index(other)
        own = responses[other][column].item()
        # A direction that hardly moves its own attribute must not be taken in large amounts.
        return responses[name][column].item() * np.sign(own) / max(abs(own), 0.5)

    drags = {other: drag(other) for other in vectors if other != name and not allied(name, other)}
    worst = sorted((other for other in drags if abs(drags[other]) > least), key=lambda other: -abs(drags[other]))
    return vectors[name] - sum(drags[other] * vectors[other] for other in worst[:most])
