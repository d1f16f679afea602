"""Who an evaluation is about: packed photos that were kept out of training, others where it takes many, and the groups
of people that FairFace's labels tell apart."""

import csv
from pathlib import Path

import numpy as np

from train.judging.pose import upright_face
from train.photos.photo_labels import AGE_YEARS, FAIRFACE, YOUNG_YEARS, kept_out
from train.photos.real_photos import CROP_PX, RealPhotos


LABELS = (
    "fairface_label_train.csv"  # of Karkkainen and Joo, WACV 2021; taken from the photos' folder where it is there
)
SEXES = {"Female": "female", "Male": "male"}
SHEET_PHOTOS = 8  # of either kind: whole photos, and photos that end at the hairline


class WithMirrored:
    """Packed photos, and after them each of them with left and right exchanged; as `RealPhotos`, but for landmarks."""

    def __init__(self, photos: RealPhotos):
        self.photos, self.count = photos, len(photos)
        self.pose = np.concatenate([photos.pose, photos.pose * np.float32([-1, 1])])
        # The other way around the photo, so that they are still in order.
        mirrored = (photos.corners * np.float32([-1, 1]) + np.float32([CROP_PX, 0]))[:, ::-1]
        self.corners = np.concatenate([photos.corners, mirrored])
        self.full, self.held, self.names = (np.tile(x, 2) for x in (photos.full, photos.held, photos.names))

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """RGBA uint8 [B, 256, 256, 4] of rows [B]."""
        pixels = self.photos.pixels(rows % self.count)
        pixels[rows >= self.count] = pixels[rows >= self.count, :, ::-1]
        return pixels


class Subjects:
    """Rows of `photos`, as arrays of integers: `held`, kept out of training; `many`, the held ones and others;
    `groups`, by name, likewise; `shown`, of the held ones, for sheets. `labels` [N] are FairFace's, by column;
    `upright_face` [K, 3] is the mean of their landmarks.

    Of mirrored photos `held` and `many` have each person's a second time, behind all others; `alone` has the places in
    `held` of the ones and of the others."""

    def __init__(
        self,
        folder: Path | str,
        labels: Path | str | None,  # FairFace's CSV; None: that in the folder, if it is there
        held: int | None,  # at most, from the first on
        many: int,  # at least as many as are held
        group_photos: int,  # of each group, at most
        rng: np.random.Generator,  # draws the others
        mirror: bool = False,  # take each photo a second time, mirrored
    ):
        """Raises OSError for a folder or a table that cannot be read, ValueError where nothing is held out."""
        self.photos = RealPhotos(folder)
        self.upright_face, count = upright_face(self.photos), len(self.photos)
        self.held = np.flatnonzero(self.photos.held)[:held]
        if len(self.held) < 2:
            raise ValueError(f"{folder} has fewer than two photos that are held out of training: nothing to measure.")
        # Photos that neither directions nor reader learned from come first.
        others = rng.permutation(np.flatnonzero(~self.photos.held))
        others = others[np.argsort(~kept_out(self.photos)[others], kind="stable")]
        order = np.concatenate([self.held, others])
        self.many = order[: max(many, len(self.held))]
        full = self.photos.full[self.held]
        self.shown = np.concatenate([self.held[full][:SHEET_PHOTOS], self.held[~full][:SHEET_PHOTOS]])
        table = Path(labels) if labels else Path(folder) / LABELS
        self.labels = fairface_labels(self.photos.names, table) if labels or table.is_file() else {}
        self.groups = {
            name: order[member[order]][:group_photos] for name, member in group_members(self.labels).items()
        }
        if not group_photos:
            self.groups = {}
        self.alone = [slice(0, len(self.held))]
        if mirror:
            self.alone.append(slice(len(self.held), 2 * len(self.held)))
            self.held, self.many = (np.concatenate([rows, rows + count]) for rows in (self.held, self.many))
            self.photos = WithMirrored(self.photos)
            self.labels = {name: np.tile(column, 2) for name, column in self.labels.items()}


def fairface_labels(names: np.ndarray, table: Path) -> dict[str, np.ndarray]:
    """`age`, `gender` and `race` [N] of photos by their names, "" where FairFace has none.

    Raises:
        OSError: there is no such table.
        ValueError: it is another one.
    """
    columns = ("age", "gender", "race")
    with open(table, newline="", errors="replace") as file:
        rows = {row.get("file"): row for row in csv.DictReader(file)}
    if not all({"file", *columns} <= set(row) for row in rows.values()) or not rows:
        raise ValueError(f"{table} is not FairFace's table of labels (columns file, age, gender, race).")
    found = [
        rows.get(f"train/{name.removeprefix(FAIRFACE)}.jpg") if name.startswith(FAIRFACE) else None for name in names
    ]
    return {column: np.array([row[column] if row else "" for row in found]) for column in columns}


def group_members(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name -> who belongs to it, [N] bool: the two sexes and the ancestries, each that anybody has."""
    if not labels:
        return {}
    members = {word: labels["gender"] == value for value, word in SEXES.items()}
    members |= {str(race): labels["race"] == race for race in np.unique(labels["race"]) if race}
    return {name: member for name, member in members.items() if member.any()}


def known_attributes(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CelebA's name -> [N] 1, 0, or -1 where nobody knows: what FairFace's labels say of it."""
    if not labels:
        return {}
    known = labels["gender"] != ""
    return {
        "Male": np.where(known, labels["gender"] == "Male", -1),
        "Young": np.where(known, [AGE_YEARS.get(age, 0) < YOUNG_YEARS for age in labels["age"]], -1),
    }
