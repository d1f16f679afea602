"""Two pictures of a head -> whether it is the same person; what an edit altered (AA), how far the rest drifts (AD).

    photo's crop, its reconstruction ── FaceIdentity ──> distance ──> words
    head before and after an edit ──┬── FaceIdentity ──> distance ──> words
                                    └── HeadReader ───> AA, AD (paper, section 4.2, of one head)

Who it is is told by dlib's network, which learned from real people; HeadReader tells attributes only."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from preim3d.directions import ATTRIBUTES
from preim3d.identity import FaceIdentity
from preim3d.pipeline import load_component
from preim3d.reader import HeadReader
from preim3d.weights import identity_folder, knows_people


# Distances of dlib's embeddings on the Face Research Lab London Set, two photos of each of 99 people (DeBruine and
# Jones 2017): the same person's two, the nearest of the others, all others. Below .6 dlib itself says "the same".
SAME_PERSON, NEAREST_STRANGER, STRANGERS = 0.26, 0.55, 0.83
# From the same person's mean to the nearest stranger's, in three steps: up to here, these words.
LIKENESS = ((0.35, "unmistakably the same person"), (0.45, "clearly alike"), (NEAREST_STRANGER, "alike"))
UNLIKE = "a resemblance at most"
KEPT = (
    (0.35, "The edit keeps the person"),
    (0.45, "The edit mostly keeps the person"),
    (NEAREST_STRANGER, "The edit changes the person"),
)
NOT_KEPT = "The edit makes someone else"
SCALE = f"two photos of one person differ by {SAME_PERSON:.2f}, photos of strangers by {STRANGERS:.2f}"
IDENTITY_PX = 256  # the crops that those distances were measured on; larger ones are averaged down first


class Likeness(NamedTuple):
    """How far apart two faces are for dlib's network, and what that means."""

    distance: float  # 0: the same picture; see `SCALE`
    words: str


class Judgement(NamedTuple):
    """What an edit did, as far as the judging networks see it."""

    kept: Likeness | None  # the person before and after; None without an identity network
    altering: dict[str, float]  # of each edited attribute, towards more of it (AA)
    dependency: float  # mean absolute change of the other attributes (AD)
    drifts: dict[str, float]  # the three others that changed most, by the classifier's name in words


class IdentityJudge:
    """Compares faces with dlib's network of a folder, in float32 whatever it is on disk."""

    def __init__(self, folder: Path):
        """Raises `WeightsError` where a tensor is missing or does not fit."""
        self.network = load_component(FaceIdentity, folder, torch.float32)

    @classmethod
    def of_weights(cls, weights: Path) -> "IdentityJudge | None":
        """The one of a weights folder, else the bundled one; None where neither is there, and for weights that know no
        people, as those of cats."""
        folder = identity_folder(weights) if knows_people(weights) else None
        return folder and cls(folder)

    @torch.no_grad()
    def distance(self, first: Image.Image, second: Image.Image) -> float:
        """Between the faces of two EG3D crops, or views of a head, of any size."""
        embeddings = torch.cat([self.network(as_crop(picture)) for picture in (first, second)])
        return torch.dist(*embeddings).item()

    def likeness(self, photo: Image.Image, view: Image.Image) -> Likeness:
        """Of a reconstruction, seen from the photo's camera, to the photo's crop."""
        distance = self.distance(photo, view)
        return Likeness(distance, likeness_in_words(distance))

    def kept(self, before: Image.Image, after: Image.Image) -> Likeness:
        """What an edit left of the person; both pictures from one camera."""
        distance = self.distance(before, after)
        return Likeness(distance, in_steps(distance, KEPT, NOT_KEPT))


def as_crop(picture: Image.Image) -> Tensor:
    """[1, 3, S, S] in [-1, 1], S at most `IDENTITY_PX`."""
    if picture.width > IDENTITY_PX:
        picture = picture.resize((IDENTITY_PX, IDENTITY_PX), Image.Resampling.BOX)
    pixels = np.array(picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def likeness_in_words(distance: float) -> str:
    """Of a reconstruction to its photo."""
    return in_steps(distance, LIKENESS, UNLIKE)


def in_steps(distance: float, steps: tuple[tuple[float, str], ...], beyond: str) -> str:
    """The words of the first step that a distance does not exceed."""
    return next((words for limit, words in steps if distance <= limit), beyond)


class Judge:
    """Judges edits, with a reader's folder (made by `train.attributes`) and, for who it is, an `IdentityJudge`."""

    def __init__(self, reader: Path, identity: IdentityJudge | None):
        self.reader = load_component(HeadReader, reader, torch.float32)
        self.identity = identity

    @torch.no_grad()
    def read(self, *pictures: Image.Image):
        side = self.reader.config.input_size
        small = [np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BOX)) for picture in pictures]
        return self.reader(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 127.5 - 1)

    def judge(self, before: Image.Image, after: Image.Image, strengths: dict[str, float]) -> Judgement:
        """before and after at one camera; `strengths` names what was meant to change."""
        reading = self.read(before, after)
        change = (reading.logits[1] - reading.logits[0]) / torch.tensor(self.reader.config.logit_std)  # [A]
        changes = dict(zip(self.reader.config.attribute_names, change.tolist()))
        edited = {name: ATTRIBUTES[name] for name in strengths if name in ATTRIBUTES}
        altering = {name: a.sign * changes.pop(a.celeba) for name, a in edited.items() if a.celeba in changes}
        # What is the same thing by another name is no drift.
        for name in edited:
            if name in ("full_beard", "goatee", "moustache", "stubble"):
                changes.pop("No_Beard", None)
        worst = sorted(changes, key=lambda name: -abs(changes[name]))[:3]
        return Judgement(
            self.identity and self.identity.kept(before, after),
            altering,
            float(np.mean(np.abs(list(changes.values())))),
            {in_words(name): changes[name] for name in worst},
        )


def in_words(celeba: str) -> str:
    """The label of CelebA as it stands on the sliders, where it has one with the same sign."""
    for attribute in ATTRIBUTES.values():
        if attribute.celeba == celeba and attribute.sign == 1:
            return attribute.label.lower()
    return celeba.replace("_", " ").lower()
