"""Two pictures of a head -> what an edit did: identity kept, the attribute's change (AA), the others' drift (AD).

Figures as in the paper, section 4.2, of one head: changes of a classifier's logits in standard deviations."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from preim3d.directions import ATTRIBUTES
from preim3d.pipeline import load_component
from preim3d.reader import HeadReader


class Judgement(NamedTuple):
    """What an edit did, as far as the judging network sees it."""

    identity: float  # cosine of the embeddings before and after, in [-1, 1]
    altering: dict[str, float]  # of each edited attribute, towards more of it (AA)
    dependency: float  # mean absolute change of the other attributes (AD)
    drifts: dict[str, float]  # the three others that changed most, by the classifier's name in words


class Judge:
    """Reads pictures with the network of a folder made by `train.attributes`."""

    def __init__(self, folder: Path):
        self.reader = load_component(HeadReader, folder, torch.float32)

    @torch.no_grad()
    def read(self, *pictures: Image.Image):
        side = self.reader.config.input_size
        small = [np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BOX)) for picture in pictures]
        return self.reader(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 127.5 - 1)

    def identity(self, first: Image.Image, second: Image.Image) -> float:
        """Cosine of the embeddings of two pictures, in [-1, 1]."""
        embedding = self.read(first, second).embedding
        return F.cosine_similarity(embedding[:1], embedding[1:]).item()

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
            F.cosine_similarity(reading.embedding[:1], reading.embedding[1:]).item(),
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
