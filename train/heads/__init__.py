"""Synthetic portraits with known shape, pose, light and attributes: z ~ N(0, I) -> person -> RGBA, depth, points.

    z [Z_DIM] ── sampler ──> Person ── geometry ──> HeadMesh ── renderer ──> RGBA, depth, points
                                └── features (the generator's z), attributes (named as in CelebA)

The raw material is public and CC0 1.0; it is not part of this project:

* the base mesh, morph targets, UV masks of MPFB2: https://github.com/makehumancommunity/mpfb2, folder `src/mpfb/data`;
* hair and hats of MakeHuman: https://github.com/makehumancommunity/makehuman-assets, folder `base`.

    python -m train.heads build --mpfb mpfb2/src/mpfb/data --assets makehuman-assets/base --out heads_source.npz
    python -m train.heads render --source heads_source.npz --out dataset/heads --heads 10000 --seed 1
    python -m train.heads sheet --source heads_source.npz --out sheet.png
    python -m train.heads portrait --source heads_source.npz --out portrait.png --seed 3
"""
