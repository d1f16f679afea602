"""Makes weights/faces again, from nothing. Imports preim3d; never the other way.

    z ── heads ──> renders ──┬─────────────────────────────┬── pairs ────────────┐
                             ├── faces ── sharpen ── back ─┼── manifold ── directions ──┐
    photos ──> crops, poses ─┼── landmarks                 │       │                    ├── fronts ──> evaluate
                             │                             └── feedback ── detail ──────┘
                             └── attributes ───────────────────────┘

`python -m train` prints all of it: every stage, its command, what it needs, what it makes, how long it takes. Every
stage says what it takes (`--help`), prints its losses, images/s and time left, saves its state whole or not at all
and goes on from there when it is run again. All run on a CPU; what gains by a GPU takes one as well (`--device`).
Only `train.vote` is a page: it asks people which of two results they prefer.

Stages live in rooms; `train/STAGE.py` only runs one, so that commands stay what they are. A room imports from itself
and from those to its left:

    loop <- heads <- photos <- model <- inversion <- judging <- editing <- pictures <- publishing

    loop/        what every stage runs on: options, files of arrays, precision, processes; a run, logged and resumed
    heads/       synthetic portraits with known shape, pose, light, identity and attributes
    photos/      real photos: packed or posed crops, their labels, the networks that find faces in them
    model/       generator and encoder: trained together, then sharpened, given a back, a feedback step, and detail
    inversion/   the paper's encoder for any EG3D-shaped generator
    judging/     the reader, the paper's metrics, people's votes (directions are calibrated by the reader)
    editing/     the inversion manifold and the directions in it; what edits draw into the planes
    pictures/    e4e in two dimensions: a small StyleGAN2 of photos, its encoder, directions of both spaces
    publishing/  weights/faces as it is published: files, card, checksums, examples, pictures
"""

import preim3d  # noqa: F401  before torch: it says how threads wait
