"""Makes weights/heads again, from nothing. Imports preim3d; never the other way. Stage by stage:

    stage                                needs                          makes                       2 CPU cores
    python -m train.heads build          MPFB2's and MakeHuman's data   heads_source.npz            seconds
    python -m train.heads render         heads_source.npz               dataset/{heads,heldout}     25 min a 10000
    python -m train.generator            dataset/heads                  weights/heads/generator     2 h
    python -m train.landmarks            heads_source.npz               weights/heads/landmarks     1 h
    python -m train.attributes           dataset/heads                  dataset/attributes/reader   1 h
    python -m train.encoder              all of the above               dataset/encoder/encoder     30 min
    python -m train.manifold             encoder, reader                latents.npz                 5 min
    python -m train.directions           latents.npz, generator         weights/heads/directions    15 min
    python -m train.bundle               the components                 weights/heads, its card     seconds
    python -m train.evaluate             weights/heads, dataset/heldout evaluation.json, sheets     5 min

    z ── heads ──> renders ──┬── generator ───────────────┐
                             ├── attributes ──> encoder ──┴──> manifold ──> directions ──> bundle ──> evaluate
                             └── landmarks

Every stage says what it takes (`--help`), prints its losses, images/s and time left, saves its state whole or not at
all (`train.checkpoint`) and goes on from there when it is run again. All run on a CPU as well as on one GPU
(`--device`).
"""
