"""An evaluation's reconstructions -> what directions do to them: AA, AD, the way from the person, and both spaces at
equal AA (paper, Tables 3 and 5, Figure 8)."""

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from preim3d.directions import ATTRIBUTES
from preim3d.film import labelled, pictures
from train.judging import metrics
from train.judging.attributes import read_images
from train.judging.evaluation import Evaluation, Heads, resized, sheet
from train.judging.subjects import known_attributes
from train.model.batches import READ_RAYS
from train.photos.real_photos import CROP_PX


EDIT_STRENGTH = 2.0
EQUAL_ALTERING = 1.5  # AA at which directions of two spaces are compared; about the paper's (Table 5)
EQUAL_STRENGTHS = (1.0, 2.0, 3.0)  # tried for it
EQUAL_EDITS = ("age", "smile", "gender", "eyeglasses")  # of Table 5
CURVE_EDITS = ("goatee", "lipstick", "grey_hair", "wavy_hair", "gender")  # of Figures 8 and 9 (C)
SIDES_DEG = ((0, 30), (0, 20))  # yaw and pitch of the views that Table 5 is read from
SHEET_HEADS = 8


def reader_figures(evaluation: Evaluation) -> dict:
    """How often the classifier agrees with FairFace's labels on the photos that were held out, both classes
    counting alike."""
    from sklearn.metrics import balanced_accuracy_score

    names, accuracies = list(evaluation.reader.config.attribute_names), {}
    for name, truth in known_attributes(evaluation.subjects.labels).items():
        truth = truth[evaluation.subjects.held]
        known = truth >= 0
        if name in names and len(np.unique(truth[known])) == 2:
            logits = evaluation.photo_logits[:, names.index(name)].numpy()
            accuracies[name] = float(balanced_accuracy_score(truth[known], logits[known] > 0))
    return {"reader_accuracy": accuracies}


def edit_figures(evaluation: Evaluation) -> dict:
    """AA, AD and the way from the person, at +2, of every direction that the reader knows."""
    # Drawn apart, so that they are the same photos when edits are measured alone.
    drawn = np.random.default_rng(evaluation.seed).permutation(evaluation.subjects.held)
    heads = evaluation.invert(drawn[: evaluation.args.edited])
    front = evaluation.generator.frontal_camera().expand(len(heads.ws), 1, -1)

    def seen(heads: Heads) -> Tensor:
        return evaluation.views(heads, front, lambda images: (images,))[0][:, 0]

    plain = seen(heads)
    before, person = read_images(evaluation.reader, plain).logits, evaluation.embed(plain)
    aa, ad, moved, lines = {}, {}, {}, [edit_line("before", plain)]
    for key in tqdm(evaluation.directions.names, desc="edits"):
        images = seen(heads.edited(evaluation.directions, key, EDIT_STRENGTH))
        moved[key] = metrics.distances(person, evaluation.embed(images)).mean().item()
        lines.append(edit_line(key, images))
        if is_read(evaluation, key):
            aa[key], ad[key] = altered(evaluation, key, before, read_images(evaluation.reader, images).logits)
    evaluation.sheets["edits"] = sheet(lines)
    return {
        "edit_strength": EDIT_STRENGTH,
        "identity_edited": moved,
        "aa": aa,
        "ad": ad,
        "ad_per_aa": {key: ad[key] / max(aa[key], 0.1) for key in aa},
        "mean_aa": float(np.mean(list(aa.values()))) if aa else None,
        "mean_ad": float(np.mean(list(ad.values()))) if aa else None,
    }


def is_read(evaluation: Evaluation, key: str) -> bool:
    return key in ATTRIBUTES and ATTRIBUTES[key].celeba in evaluation.reader.config.attribute_names


def edit_line(label: str, images: Tensor) -> list[Image.Image]:
    first, *rest = pictures(resized(images[:SHEET_HEADS], CROP_PX))
    return [labelled(first, label), *rest]


def altered(evaluation: Evaluation, key: str, before: Tensor, after: Tensor) -> tuple[float, float]:
    """AA and AD of an edit, from logits [N, A]; their unit is the spread over the photos."""
    column = list(evaluation.reader.config.attribute_names).index(ATTRIBUTES[key].celeba)
    sigma = evaluation.photo_logits.std(0)
    aa = ATTRIBUTES[key].sign * metrics.attribute_altering(before, after, sigma, column)
    return aa, metrics.attribute_dependency(before, after, sigma, column)


def space_figures(evaluation: Evaluation) -> dict:
    """AD along directions of the original space and of the inversion manifold at equal AA: 1.5, or what both
    spaces reach; and the curves (Table 5, Figure 8)."""
    figures, spaces = {}, {"origin": evaluation.origin, "inversion": evaluation.directions}
    rows = evaluation.subjects.many[: evaluation.args.origin_photos]
    heads = evaluation.invert(rows)
    cameras = evaluation.cameras_between(len(rows), *SIDES_DEG)[:, None]

    def read(heads: Heads) -> Tensor:
        def look(images: Tensor) -> tuple[Tensor]:
            return (read_images(evaluation.reader, images).logits,)

        return evaluation.views(heads, cameras, look, READ_RAYS)[0][:, 0]

    before = read(heads)
    for key in dict.fromkeys(EQUAL_EDITS + CURVE_EDITS):
        if not is_read(evaluation, key) or any(key not in directions.names for directions in spaces.values()):
            continue
        curves = {}
        for space, directions in spaces.items():
            points = [
                (strength, *altered(evaluation, key, before, read(heads.edited(directions, key, strength))))
                for strength in tqdm(EQUAL_STRENGTHS, desc=f"{key}, {space}")
            ]
            curves[space] = np.array([(0.0, 0.0, 0.0), *points])
        figures[key] = at_equal_altering(curves)
    return {"spaces": figures, "origin_photos": len(rows)}


def at_equal_altering(curves: dict[str, np.ndarray]) -> dict[str, dict]:
    """By space, of curves (rows of strength, AA and AD, from zeros on): strength, AA and AD where AA is 1.5, or what
    all spaces reach; and the curve."""
    level = min(EQUAL_ALTERING, *(curve[:, 1].max() for curve in curves.values()))
    return {
        space: at_altering(curve, level)
        | {"curve": {f"{strength:g}": {"aa": aa, "ad": ad} for strength, aa, ad in curve.tolist()}}
        for space, curve in curves.items()
    }


def at_altering(curve: np.ndarray, level: float) -> dict[str, float]:
    """Where a curve, rows of strength, AA, AD and perhaps distance from zeros on, first has an AA of `level`; straight
    between."""
    reached = int(np.argmax(curve[:, 1] >= level))
    point = curve[reached]
    if reached:
        before = curve[reached - 1]
        point = before + (level - before[1]) / (point[1] - before[1]) * (point - before)
    return dict(zip(("strength", "aa", "ad", "distance"), point.tolist()))
