"""The text of a bundled model's README; `train.bundle` fills in checksums, size and figures."""

CARD = """\
---
license: cc0-1.0
library_name: diffusers
pipeline_tag: image-to-3d
tags: [3d, face, editing, gan-inversion]
---

# heads: a small editable 3D head model

The model that `preim3d` uses unless told otherwise: {size_mb:.1f} MB, made to run on a laptop's processor. One
photo in, a head in 3D out, with sliders. It is small and **learned from synthetic people only**: expect the
likeness of an avatar (hair, skin, roughly the shape of the face and a smile), not of a portrait.
Whatever light and background a photo has, the head comes back in one soft light before plain grey.

![A photo that comes with scikit-image, its head from two sides, and eight edits](photos.png)
![A synthetic portrait, its head from two sides, and eight edits](teaser.png)

| folder | what it is |
|---|---|
| `generator/` | EG3D-shaped: W+ of {w_size} -> tri-planes {planes} -> {rays} rays -> {pixels} pixels |
| `encoder/` | IR-SE encoder: 128 x 128 crop -> W+ |
| `directions/` | named directions in the encoder's inversion manifold, in standard deviations of the logit |
| `origin_directions/` | the same learned in the generator's original space, to compare with |
| `landmarks/` | finds faces, aligns them by 120 points, reads the photo's camera and where the person is |
| `examples/` | a portrait made by the project, and what `python -m preim3d edit` made of it |
| `evaluation.json` | figures, written by `python -m train.evaluate` |

## Source and licence

Every tensor here was trained by this project, from nothing, on pictures that this project rendered from CC0 1.0
data: the base mesh, morph targets and masks of [MPFB2](https://github.com/makehumancommunity/mpfb2) and the
hair and hats of [makehuman-assets](https://github.com/makehumancommunity/makehuman-assets). No photo of a real
person, no third party's weights and no output of a third party's model took part. The weights, the examples and
this folder are given to the public domain under [CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/);
commercial use is fine.

What the makers of the data thought a face can look like is what this model knows: four age keys, two sexes with
everything between, three ancestries mixed, ten hair styles. Labels such as `gender` or `chubby` are those of
that data, named as in CelebA; they say nothing about a person.

## How it was made

`python -m train` prints the recipe; each stage's file says what was run to make the files here.

## Figures

{figures}

## Checksums (sha256)

```
{checksums}
```
"""
