"""Real photos -> what is known of each: FairFace's age and sex, and what its landmarks measure.

The measures are taken in a face that is turned to the front and scaled to one size, so that they say what a face does
and how it is shaped, not how it is held."""

import csv
import zlib
from pathlib import Path

import numpy as np
from scipy.special import expit

from train.photos.real_photos import RealPhotos


FAIRFACE = "ff/"  # names of FairFace's photos start with it; their number follows
# Middle of each of FairFace's groups, in years. A spreadsheet has turned two of them into dates.
AGE_YEARS = {
    "0-2": 1, "3-9": 6, "03-Sep": 6, "9-Mar": 6, "10-19": 15, "Oct-19": 15, "20-29": 25, "30-39": 35, "40-49": 45,
    "50-59": 55, "60-69": 65, "more than 70": 75,
}  # fmt: skip
YOUNG_YEARS, YOUNG_SOFTNESS = 42, 2.5  # where `Young` ends in synthetic heads (train.heads.sampler)
MEASURED = (
    "Smiling", "Mouth_Slightly_Open", "Raised_Eyebrows", "Narrow_Eyes", "Wide_Face", "Big_Nose", "Big_Lips",
)  # fmt: skip
LABELS = ("Male", "Young", *MEASURED)


def photo_labels(photos: RealPhotos, table: Path | str | None) -> np.ndarray:
    """Soft labels [N, len(LABELS)] in [0, 1], NaN where nobody knows; `table`: FairFace's CSV of ages and sexes.

    Raises OSError where the table cannot be read, ValueError where it is another one."""
    people = fairface(photos, table) if table else np.full((len(photos), 2), np.nan)
    measured = face_measures(photos.landmarks, photos.pose)
    # A logistic of the standard score: what lies near the middle is neither the one nor the other.
    return np.concatenate([people, expit(3 * measured)], 1).astype(np.float32)


def kept_out(photos: RealPhotos) -> np.ndarray:
    """[N] bool: the photos that nothing here learns from: those that were held back from all training, and one in
    twenty of the others, chosen by name."""
    return photos.held | np.array([zlib.crc32(name.encode()) % 20 == 0 for name in photos.names])


def fairface(photos: RealPhotos, table: Path | str) -> np.ndarray:
    """[N, 2] whether a man, and whether young; NaN for photos that are not FairFace's."""
    with open(table, newline="") as file:
        rows = {row.get("file"): row for row in csv.DictReader(file)}
    labels = np.full((len(photos), 2), np.nan)
    for place, name in enumerate(photos.names):
        row = rows.get(f"train/{name.removeprefix(FAIRFACE)}.jpg") if name.startswith(FAIRFACE) else None
        if row:
            labels[place] = row["gender"] == "Male", expit((YOUNG_YEARS - AGE_YEARS[row["age"]]) / YOUNG_SOFTNESS)
    if np.isnan(labels).all():
        raise ValueError(f"{table} knows none of these photos; give FairFace's table (columns file, age, gender).")
    return labels


def ancestries(photos: RealPhotos, table: Path | str | None) -> np.ndarray:
    """[N] int: FairFace's group of each photo, 0 where nobody knows. Only for weighing people evenly."""
    groups = np.zeros(len(photos), int)
    if table:
        with open(table, newline="") as file:
            rows = {row["file"]: row["race"] for row in csv.DictReader(file)}
        known = sorted(set(rows.values()))
        for place, name in enumerate(photos.names):
            found = rows.get(f"train/{name.removeprefix(FAIRFACE)}.jpg") if name.startswith(FAIRFACE) else None
            groups[place] = known.index(found) + 1 if found else 0
    return groups


def face_measures(
    landmarks: np.ndarray,  # [N, 120, 3] every fourth point of MediaPipe's face mesh
    pose: np.ndarray,  # [N, 2] radians
) -> np.ndarray:
    """Standard scores [N, len(MEASURED)]; the pose, and from shapes the expression, are regressed out."""
    face = to_front(landmarks.astype(np.float64), pose)

    def across(*points):  # mean place towards the face's left
        return face[:, [point // 4 for point in points], 0].mean(1)

    def down(*points):
        return face[:, [point // 4 for point in points], 1].mean(1)

    # Numbers are those of the whole mesh; of the usual points the nearest that are multiples of four.
    mouth_open = down(88) - down(80)
    smile = across(292) - across(76) + 2 * (down(12, 16) - down(76, 292))
    # From both lids: an eye that shuts must not look like a brow that rises.
    brows = down(160, 384, 144, 380) - down(52, 296)
    narrow = down(160, 384) - down(144, 380)
    width = (across(288, 356) - across(132, 172)) / (down(152) - down(8) - mouth_open)
    nose = across(344, 360) - across(48, 64)
    lips = down(12) - down(0) + down(84) - down(88)

    turns = np.concatenate([pose, pose**2], 1)
    expressions = np.stack([residual(column, turns) for column in (smile, mouth_open, brows, narrow)], 1)
    shapes = [residual(column, np.concatenate([turns, expressions], 1)) for column in (width, nose, lips)]
    columns = np.concatenate([expressions, np.stack(shapes, 1)], 1)
    # By rank, not by deviation: gaping mouths are few and far out.
    return np.stack([standard_scores(column) for column in columns.T], 1)


def to_front(landmarks: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """[N, 120, 3] turned, moved and scaled onto the mean frontal face by the points that expressions leave alone; its
    eyes' outer points are about 1 apart."""
    centred = landmarks - landmarks.mean(1, keepdims=True)
    centred /= np.sqrt(np.square(centred).mean((1, 2), keepdims=True))
    order = np.argsort(np.abs(pose).sum(1))
    reference = centred[order[: max(1, len(order) // 10)]].mean(0)
    reference /= np.abs(reference[356 // 4, 0] - reference[132 // 4, 0])
    still = reference[:, 1] < reference[4 // 4, 1]  # above the tip of the nose
    target = reference[still] - reference[still].mean(0)
    middle = centred[:, still].mean(1, keepdims=True)
    source = centred[:, still] - middle
    # Kabsch and Umeyama: the rotation and the scale that bring each face nearest to the reference.
    u, sizes, v = np.linalg.svd(np.einsum("npi,pj->nij", source, target))
    signs = np.ones_like(sizes)
    signs[:, 2] = np.sign(np.linalg.det(u @ v))
    scale = (sizes * signs).sum(1) / np.square(source).sum((1, 2))
    return scale[:, None, None] * (centred - middle) @ ((u * signs[:, None]) @ v)


def residual(values: np.ndarray, explained_by: np.ndarray) -> np.ndarray:
    """values [N] less what a linear fit on columns [N, K] explains."""
    columns = np.concatenate([np.ones((len(values), 1)), explained_by], 1)
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


def standard_scores(values: np.ndarray) -> np.ndarray:
    """[N] -> the normal distribution's quantiles of their ranks."""
    from scipy.special import ndtri

    return ndtri((np.argsort(np.argsort(values)) + 0.5) / len(values))
