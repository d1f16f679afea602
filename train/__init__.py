"""Makes weights/heads again, from nothing. Imports preim3d; never the other way. Stage by stage:

    stage                                needs                          makes                       2 CPU cores
    python -m train.heads build          MPFB2's and MakeHuman's data   heads_source.npz            5 s
    python -m train.heads render         heads_source.npz               dataset/{heads,heldout}     25 min a 10000
    python -m train.generator            dataset/heads                  runs/generator/generator    1 h (one core)
    python -m train.landmarks            dataset/heads                  weights/heads/landmarks     15 min (one core)
    python -m train.attributes           dataset/heads                  runs/attributes/reader      1 h (one core)
    python -m train.encoder              generator, reader              runs/encoder/encoder        13 min
    python -m train.manifold             encoder, reader                runs/latents.npz            1 min
    python -m train.directions           latents, generator, reader     runs/directions             4 min
    python -m train.bundle               the components                 weights/heads, its card     seconds
    python -m train.evaluate             weights/heads, dataset/heldout evaluation.json, sheets     3 min
    python -m train.showcase             weights/heads, photos          a sheet to look at          seconds

    z ── heads ──> renders ──┬── generator ───────────────┐
                             ├── attributes ──> encoder ──┴──> manifold ──> directions ──> bundle ──> evaluate
                             └── landmarks

Every stage says what it takes (`--help`), prints its losses, images/s and time left, saves its state whole or not at
all (`train.checkpoint`) and goes on from there when it is run again. All run on a CPU as well as on one GPU
(`--device`).
"""
