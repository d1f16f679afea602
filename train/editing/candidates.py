"""Labelled latents, and pairs of rendered heads -> for each attribute the directions in W+ that may move it.

`train.directions` tries them all on heads and takes the one that edits most cleanly."""

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from preim3d.directions import ATTRIBUTES, Attribute
from train.editing.boundaries import Boundary, PrincipalAxes, fit_boundary
from train.editing.calibration import LADDER
from train.loop.arrays import open_arrays


# What grey hair is learned against where nothing but a classifier tells it. All other hair is brown on average, so a
# boundary between it and grey hair takes the red out of the hair, and turns black hair blue; from black hair to grey
# the way is lighter, not bluer.
AGAINST = {"Gray_Hair": "Black_Hair", "Bags_Under_Eyes": "Black_Hair"}
# What goes together in people but must not in directions: those with an attribute are weighed to be as often men,
# young and smiling, and of the same ancestries, as those without it.
BALANCED = ("Male", "Young", "Smiling")
LEAST_KNOWN = 100  # labels below which the classifier's scores are the better guide
# Strength 1 in lengths of a pair's offset: of what changes much, and of what is subtle (a shorter offset than that).
# Beyond, eyeglasses turn dark and beards into masks.
PAIR_LADDER, SUBTLE_LADDER, SUBTLE = (0.25, 0.45, 0.65), (0.4, 0.8, 1.4), 11.5


@dataclass
class Candidate:
    """One way to move an attribute."""

    unit: np.ndarray  # [num_ws, w_dim], unit length, towards more of what is on the slider
    spread: float  # the length that the ladder counts in
    ladder: tuple[float, ...]
    origin: str  # where it comes from
    boundary: Boundary | None  # that it is taken from


def read_pairs(path: Path | str | None, network: str) -> dict[str, tuple[np.ndarray, float]]:
    """Offsets and their agreement by name, of a file of `train.pairs`; none without a path.

    Raises ValueError where it was made with another encoder."""
    if path is None:
        return {}
    stored = open_arrays(path, ("names", "offsets", "agreement", "network"), "python -m train.pairs")
    if str(stored["network"]) != network:
        raise ValueError(f"{path} was made with another encoder; run `python -m train.pairs` again.")
    return {
        str(name): (offset, float(agreement))
        for name, offset, agreement in zip(stored["names"], stored["offsets"], stored["agreement"])
    }


def find(
    latents: NpzFile,
    principal: PrincipalAxes,
    pairs: dict[str, tuple[np.ndarray, float]],
    args: argparse.Namespace,
    keys: Collection[str] = tuple(ATTRIBUTES),
) -> tuple[dict[str, list[Candidate]], dict[str, str]]:
    """Attribute -> candidates, and attribute -> why it has none; of those in `keys`."""
    names = [str(name) for name in latents["attribute_names"]]
    logits = latents["logits"].astype(np.float32)
    labels = latents["labels"] if "labels" in latents else np.full_like(logits, np.nan)
    groups = latents["groups"] if "groups" in latents else np.zeros(len(logits), int)
    candidates, left_out = {}, {}
    for key, attribute in ATTRIBUTES.items():
        if key not in keys or attribute.celeba not in names:
            continue
        column = names.index(attribute.celeba)
        known = ~np.isnan(labels[:, column])
        labelled = enough(known)
        if labelled and not readable(labels[known, column], logits[known, column], args.least_auc):
            left_out[key] = f"The classifier cannot read it on photos (AUC below {args.least_auc})."
            continue
        found, reason = [], "There are no photos and no pairs to learn it from."
        if key in pairs and not args.plain:
            offset, _ = pairs[key]
            length = float(np.linalg.norm(offset))
            ladder = SUBTLE_LADDER if length < SUBTLE else PAIR_LADDER
            found.append(Candidate(offset / length, length, ladder, "pairs", None))
        else:
            score = scores(labels[:, column], logits[:, column])
            try:
                boundaries = fit_boundaries(principal, score, labels, logits, groups, names, attribute, args)
            except ValueError as error:
                boundaries, reason = [], str(error)
            good = [boundary for boundary in boundaries if boundary.accuracy >= args.least_accuracy]
            if good:
                found += from_boundaries(
                    principal, good, attribute.sign, args.plain, "labels" if labelled else "classifier"
                )
            elif boundaries:
                best = max(boundary.accuracy for boundary in boundaries)
                reason = f"Validation accuracy {best:.4f} is below {args.least_accuracy}."
        if found:
            candidates[key] = found
        else:
            left_out[key] = reason
    return candidates, left_out


def enough(known: np.ndarray) -> bool:
    """Whether so many labels are known [N] that they are the better guide."""
    return known.sum() >= min(LEAST_KNOWN, len(known))


def scores(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """How much of an attribute each has [N], above 0 = has it, NaN where nobody knows; of labels [N] in [0, 1], NaN
    where there is none, and the classifier's logits [N]."""
    # The labels' order, and among equals the classifier's, tells which are the extremes.
    return labels - 0.5 + 1e-3 * np.tanh(logits) if enough(~np.isnan(labels)) else logits


def readable(labels: np.ndarray, logits: np.ndarray, least_auc: float) -> bool:
    """Whether the classifier tells this attribute on photos at all: else nothing could be calibrated by it."""
    from sklearn.metrics import roc_auc_score

    truth = labels > 0.5
    return 0 < truth.sum() < len(truth) and roc_auc_score(truth, logits) >= least_auc


def fit_boundaries(
    principal: PrincipalAxes,
    score: np.ndarray,  # [N], NaN: unknown
    labels: np.ndarray,  # [N, A] in [0, 1], NaN: unknown
    logits: np.ndarray,  # [N, A]
    groups: np.ndarray,  # [N] int: what else must be as frequent on either side
    names: list[str],
    attribute: Attribute,
    args: argparse.Namespace,
) -> list[Boundary]:
    """The SVM's boundaries for one attribute, one for each C."""
    among = ~np.isnan(score)
    strata = np.zeros(len(score), int)
    if not args.plain:
        strata = groups * 2 ** len(BALANCED)
        for place, name in enumerate(name for name in BALANCED if name in names and name != attribute.celeba):
            column = names.index(name)
            other = np.where(np.isnan(labels[:, column]), logits[:, column], labels[:, column] - 0.5)
            strata += (other > 0) << place
        contrast = AGAINST.get(attribute.celeba)
        if contrast in names:
            has, against = attribute.sign * score > 0, logits[:, names.index(contrast)] > 0
            # Too few to learn from would be worse than the wrong colour.
            if min(has.sum(), (against & ~has).sum()) >= 50:
                among = among & (has | against)
    return [fit_boundary(principal, score, args.seed, args.extremes, cost, among, strata) for cost in args.costs]


def from_boundaries(
    principal: PrincipalAxes, boundaries: list[Boundary], sign: int, plain: bool, origin: str
) -> list[Candidate]:
    """What shows of the best boundary: its pattern, and the way between the means. (Its normal is `--plain`'s; of
    latents with as few axes as an encoder's it mostly cancels what else varies.)"""
    best = max(boundaries, key=lambda boundary: boundary.accuracy)
    units = [best.normal] if plain else [best.pattern, best.offset / np.linalg.norm(best.offset)]
    return [Candidate(sign * unit, float(principal.along(unit).std()), LADDER, origin, best) for unit in units]
