"""Unit directions -> calibrated ones: heads are edited, rendered and classified again, which tells how far strength 1
goes (one standard deviation of the attribute's logit over the photos) and what else the edit drags along."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.reader import HeadReader
from train.judging.attributes import read_images
from train.judging.classifier import AttributeClassifier
from train.loop.precision import Precision, autocast
from train.model.batches import READ_RAYS, render_views


LADDER = (0.4, 0.8, 1.5)  # steps tried, in spreads of the latents; longer ones leave the manifold
PURE_LADDER = (1.0, 1.4)  # of a direction that was calibrated before something was taken out of it
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
    {"Raised_Eyebrows", "Arched_Eyebrows"},
    {"Wide_Face", "Chubby", "Oval_Face", "Double_Chin"},
    {"Heavy_Makeup", "Wearing_Lipstick", "Rosy_Cheeks"},
    {"Long_Hair", "Bald", "Bangs"},
)


class Effect(NamedTuple):
    """What an offset of w does to heads."""

    response: Tensor  # [A] mean change of each logit, in standard deviations
    distance: float  # mean distance of dlib's network between before and after; 0 where nobody tells people apart


class EditTrial:
    """A few heads that are edited, rendered and read again."""

    def __init__(
        self,
        generator: TriPlaneGenerator,
        reader: HeadReader | AttributeClassifier,
        ws: Tensor,  # [M, num_ws, w_dim]
        sigma: Tensor,  # [A] standard deviation of each logit over the photos
        precision: Precision = "float32",
        cameras: Tensor | None = None,  # [M, 25] of the photos; None = from the front
        identity: FaceIdentity | None = None,  # tells how far an edit leads away from the person
    ):
        self.generator, self.reader, self.ws, self.sigma, self.precision = generator, reader, ws, sigma, precision
        self.cameras = generator.frontal_camera().expand(len(ws), -1).cpu() if cameras is None else cameras
        self.identity = identity
        self.logits, self.people = self.read(ws)

    @torch.no_grad()
    def read(self, ws: Tensor, styles_offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [m, A] and dlib's embeddings [m, 128] of the first m heads, seen from their cameras with these w and,
        if any, this offset of the styles [1, S]."""
        with autocast(self.generator.device, self.precision):
            images = render_views(self.generator, ws, self.cameras[: len(ws)], READ_RAYS, styles_offset)
        people = self.identity(images.to(self.identity.device)).cpu() if self.identity else torch.zeros(len(ws), 1)
        return read_images(self.reader, images).logits, people

    def effect(self, offset: Tensor, heads: int | None = None) -> Effect:
        """Of moving the heads (or the first few) by `offset`, [num_ws, w_dim] of w or [S] of the styles."""
        ws = self.ws[:heads]
        logits, people = self.read(ws, offset[None]) if offset.ndim == 1 else self.read(ws + offset)
        response = ((logits - self.logits[: len(logits)]) / self.sigma).mean(0)
        return Effect(response, (people - self.people[: len(people)]).norm(dim=1).mean().item())


def calibrate(
    trial: EditTrial,
    unit: Tensor,  # [num_ws, w_dim], unit length; or [S], an offset of the styles
    spread: float,  # of the latents along it, or another length that the ladder counts in
    attribute: int,
    sign: int = 1,  # -1: the direction is to lower the logit
    ladder: tuple[float, ...] = LADDER,
) -> tuple[Tensor, Tensor]:
    """The shortest step, shaped like `unit`, along the direction that moves the mean logit by one standard deviation,
    and the response to it [A]; where none on the ladder goes so far, the most effective one.

    The ladder is climbed from below: glasses, once there, move the logit no further, but longer steps ruin them."""
    below = torch.zeros(len(trial.sigma))
    best, best_gain, best_response, low = 0.0, -np.inf, below, 0.0
    for spreads in ladder:
        response = trial.effect(spreads * spread * unit).response
        gain, gain_below = (sign * one[attribute].item() for one in (response, below))
        if gain >= 1:
            share = (1 - gain_below) / (gain - gain_below)
            return (low + share * (spreads - low)) * spread * unit, below + share * (response - below)
        if gain > best_gain:
            best, best_gain, best_response = spreads, gain, response
        below, low = response, spreads
    return best * spread * unit, best_response


def hold_identity(trial: EditTrial, vector: Tensor, most: float) -> Tensor:
    """The direction, shortened until strength 2 leaves the heads no further than `most` from whom they were."""
    for _ in range(4):
        distance = trial.effect(2 * vector).distance
        if distance <= most:
            break
        # The distance grows a little slower than the step.
        vector = vector * max(0.5, 0.95 * most / distance)
    return vector


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
