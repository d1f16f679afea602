"""MPFB2 and MakeHuman files -> one compact npz of everything that a head needs (2 MB), and the class that reads it.

Units are MakeHuman's decimetres, x to the head's left, y up, z forward. Vertices below the shoulders are dropped.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from train.loop.arrays import open_arrays


HAIR_MESHES = (
    "short01", "short02", "short03", "short04", "bob01", "bob02", "long01", "ponytail01", "braid01", "afro01",
)  # fmt: skip
HAT_MESHES = ("fedora",)
TARGET_FOLDERS = ("cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "head", "mouth", "neck", "nose", "asym")
ANCESTRIES = ("caucasian", "asian", "african")
MASKS = ("lips", "ears", "eyelids", "inside-mouth", "face")

BUST_BOTTOM_DM = 4.9  # the lowest vertex kept: just below the shoulders
BUST_HALF_WIDTH_DM = 2.35
MIN_OFFSET_DM = 1e-4  # a vertex that a morph target moves less than this is not stored


@dataclass
class Garment:
    """A mesh bound to the base mesh: vertex = sum(weights * base[triangle]) + offset * scale (the .mhclo rule)."""

    triangle: np.ndarray  # [N, 3] base vertices
    weights: np.ndarray  # [N, 3]
    offset: np.ndarray  # [N, 3]
    scale: np.ndarray  # [3, 3] per axis: base vertex a, base vertex b, reference distance
    faces: np.ndarray  # [F, 3]

    def follow(self, base: np.ndarray) -> np.ndarray:
        """Vertices [N, 3] of the garment on a morphed base mesh [V, 3]."""
        scale = [
            abs(base[int(a), axis] - base[int(b), axis]) / reference
            for axis, (a, b, reference) in enumerate(self.scale)
        ]
        return (base[self.triangle] * self.weights[..., None]).sum(1) + self.offset * np.asarray(scale, np.float32)


class HeadSource:
    """The compact raw material, as written by `build_source`."""

    def __init__(self, path: Path | str):
        fields = [f"{name}/{field}" for name in HAIR_MESHES + HAT_MESHES for field in Garment.__dataclass_fields__]
        stored = open_arrays(path, ("vertices", *fields), "python -m train.heads build")
        self.vertices = stored["vertices"]
        self.masks = stored["masks"]  # [V, 5] in [0, 1], see MASKS
        self.body, self.teeth, self.tongue = (stored[k].astype(np.int64) for k in ("body", "teeth", "tongue"))
        self.left_eye, self.right_eye = (stored[k].astype(np.int64) for k in ("left_eye", "right_eye"))
        self.garments = {
            name: Garment(*(stored[f"{name}/{field}"] for field in Garment.__dataclass_fields__))
            for name in HAIR_MESHES + HAT_MESHES
        }
        self._targets = {str(name): i for i, name in enumerate(stored["target_names"])}
        self._start = stored["target_start"]
        self._index = stored["target_index"].astype(np.int64)
        self._offset = stored["target_offset"].astype(np.float32)

    def __contains__(self, target: str) -> bool:
        return target in self._targets

    def morph(self, weights: dict[str, float]) -> np.ndarray:
        """Base vertices [V, 3] moved by the named targets; unknown names are a programmer's error."""
        vertices = self.vertices.copy()
        for name, weight in weights.items():
            if weight == 0:
                continue
            target = self._targets[name]
            span = slice(self._start[target], self._start[target + 1])
            vertices[self._index[span]] += np.float32(weight) * self._offset[span]
        return vertices


def build_source(mpfb: Path, assets: Path, out: Path) -> None:
    """Write the compact npz from MPFB2's `data` folder and makehuman-assets' `base` folder.

    Raises `FileNotFoundError` naming the first file that is missing.
    """
    mpfb, assets = Path(mpfb), Path(assets)
    vertices, texture, groups = _read_obj(_existing(mpfb / "3dobjs/base.obj"))

    def is_head(face):
        return all(vertices[v, 1] > BUST_BOTTOM_DM and abs(vertices[v, 0]) < BUST_HALF_WIDTH_DM for v, _ in face)

    body, body_uv = _triangles([face for face in groups["body"] if is_head(face)])
    teeth = np.concatenate([_triangles(groups[f"helper-{jaw}-teeth"])[0] for jaw in ("upper", "lower")])
    tongue = _triangles(groups["helper-tongue"])[0]
    eyes = {side: np.unique([v for face in groups[f"helper-{side}-eye"] for v, _ in face]) for side in "lr"}

    uv = np.zeros((len(vertices), 2))
    uv[body.ravel()] = texture[body_uv.ravel()]
    masks = np.stack([_sample_mask(_existing(mpfb / f"textures/mpfb_{name}.jpg"), uv) for name in MASKS], 1)

    garments = {name: _read_garment(_existing(assets / f"hair/{name}/{name}.mhclo")) for name in HAIR_MESHES}
    garments |= {name: _read_garment(_existing(assets / f"clothes/fedora01/{name}.mhclo")) for name in HAT_MESHES}

    kept = [body, teeth, tongue, eyes["l"], eyes["r"]]
    for garment in garments.values():
        kept += [garment.triangle, garment.scale[:, :2].astype(int)]
    keep = np.unique(np.concatenate([k.ravel() for k in kept]))
    new_index = np.full(len(vertices), -1)
    new_index[keep] = np.arange(len(keep))

    names, index, offset = [], [], []
    for name, path in _target_files(mpfb / "targets"):
        moved = _read_target(path, len(vertices))[keep]
        rows = np.nonzero(np.abs(moved).max(1) > MIN_OFFSET_DM)[0]  # none: a target of the body only, kept as a name
        names.append(name)
        index.append(rows)
        offset.append(moved[rows])

    stored = {
        "vertices": vertices[keep].astype(np.float32),
        "masks": masks[keep].astype(np.float32),
        "body": new_index[body].astype(np.int16),
        "teeth": new_index[teeth].astype(np.int16),
        "tongue": new_index[tongue].astype(np.int16),
        "left_eye": new_index[eyes["l"]].astype(np.int16),
        "right_eye": new_index[eyes["r"]].astype(np.int16),
        "target_names": np.array(names),
        "target_start": np.cumsum([0] + [len(rows) for rows in index]),
        "target_index": np.concatenate(index).astype(np.int16),
        "target_offset": np.concatenate(offset).astype(np.float16),
    }
    for name, garment in garments.items():
        garment.triangle = new_index[garment.triangle]
        garment.scale[:, :2] = new_index[garment.scale[:, :2].astype(int)]
        stored |= {f"{name}/{field}": getattr(garment, field) for field in Garment.__dataclass_fields__}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **stored)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; `--mpfb` is MPFB2's src/mpfb/data, `--assets` is makehuman-assets' base."
        )
    return path


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, list]]:
    """Vertices [V, 3], texture coordinates [T, 2], and per group the faces as lists of (vertex, texture) pairs."""
    vertices, texture, groups, group = [], [], {}, ""
    for line in path.read_text().splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in fields[:3]])
        elif kind == "vt":
            texture.append([float(x) for x in fields[:2]])
        elif kind == "g":
            group = fields[0]
        elif kind == "f":
            groups.setdefault(group, []).append(
                [tuple(int(i) - 1 for i in corner.split("/")[:2]) for corner in fields]
            )
    return np.array(vertices), np.array(texture), groups


def _triangles(faces: list) -> tuple[np.ndarray, np.ndarray]:
    """Fans of polygons: vertex indices [F, 3] and texture indices [F, 3]."""
    corners = np.array([(face[0], face[k], face[k + 1]) for face in faces for k in range(1, len(face) - 1)])
    return corners[..., 0], corners[..., 1]


def _sample_mask(path: Path, uv: np.ndarray) -> np.ndarray:
    mask = np.asarray(Image.open(path).convert("L"), np.float32) / 255
    height, width = mask.shape
    x = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    y = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    return mask[y, x]


def _read_garment(path: Path) -> Garment:
    binding, scale, obj, in_vertices = [], {}, "", False
    for line in path.read_text().splitlines():
        key, *fields = line.split() or ["#"]
        if key in ("x_scale", "y_scale", "z_scale"):
            scale[key[0]] = [int(fields[0]), int(fields[1]), float(fields[2])]
        elif key == "obj_file":
            obj = fields[0]
        elif key in ("verts", "delete_verts"):
            in_vertices = key == "verts"
        elif in_vertices and key.lstrip("-").isdigit():  # a `material` line may stand among the vertices: skipped
            numbers = [float(x) for x in (key, *fields)]
            binding.append(numbers if len(numbers) == 9 else [numbers[0]] * 3 + [1, 0, 0, 0, 0, 0])
    binding = np.array(binding)
    vertices, _, groups = _read_obj(_existing(path.parent / obj))
    assert len(binding) == len(vertices), (path, len(binding), len(vertices))
    faces, faces_uv = _triangles([face for group in groups.values() for face in group])
    # One vertex per (position, texture coordinate) pair: where the makers cut it open, it is not shaded smoothly.
    pairs, corner = np.unique(np.stack([faces.ravel(), faces_uv.ravel()], 1), axis=0, return_inverse=True)
    binding = binding[pairs[:, 0]]
    return Garment(
        triangle=binding[:, :3].astype(np.int32),
        weights=binding[:, 3:6].astype(np.float32),
        offset=binding[:, 6:9].astype(np.float32),
        scale=np.array([scale[axis] for axis in "xyz"]),
        faces=corner.reshape(-1, 3).astype(np.int32),
    )


def _target_files(folder: Path):
    """(name, path) of every morph target that may touch a head; expressions are `expression/<ancestry>/<unit>`."""
    for sub in ("macrodetails", *TARGET_FOLDERS):
        for path in sorted(_existing(folder / sub).glob("*.target.gz")):
            yield f"{sub}/{path.name.removesuffix('.target.gz')}", path
    for ancestry in ANCESTRIES:
        for path in sorted(_existing(folder / "expression/units" / ancestry).glob("*.target.gz")):
            yield f"expression/{ancestry}/{path.name.removesuffix('.target.gz')}", path


def _read_target(path: Path, count: int) -> np.ndarray:
    moved = np.zeros((count, 3), np.float32)
    with gzip.open(path, "rt") as lines:
        for line in lines:
            fields = line.split()
            if len(fields) == 4 and not fields[0].startswith("#"):
                moved[int(fields[0])] = [float(x) for x in fields[1:]]
    return moved
