"""Makes weights/faces again, from nothing. Imports preim3d; never the other way.

    z ── heads ──> renders ──┬─────────────────────────┬── pairs ────────────┐
                             ├── faces ── sharpen ── back ── manifold ── directions ──> bundle ── feedback ──> evaluate
    photos ──> crops, poses ─┼── landmarks                          │
                             └── attributes ────────────────────────┘

`python -m train` prints the recipe: every stage, its command, what it needs, what it makes, how long it takes. Every
stage says what it takes (`--help`), prints its losses, images/s and time left, saves its state whole or not at all
(`train.checkpoint`) and goes on from there when it is run again. All run on a CPU as well as on one GPU (`--device`).
Only `train.vote` is a page: it asks people which of two results they prefer.
"""
