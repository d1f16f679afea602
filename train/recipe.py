"""Every stage of train/: its command, what it needs, what it makes, and how long that takes."""

from typing import NamedTuple


# What a big GPU (about 1000 TFLOP/s in bfloat16) keeps up on networks as small as these, and what a step takes there
# at least, however small: kernels must be launched and losses read. Guesses, not measurements.
GPU_TFLOPS = 20.0
GPU_STEP_S = 0.03


class Stage(NamedTuple):
    """One stage as it was run for weights/faces."""

    command: str
    needs: str
    makes: str
    minutes: float  # on two CPU cores
    tflop: float | None = None  # of the networks, forwards and backwards; None: no GPU takes part
    steps: int = 0  # of an optimiser, or batches

    @property
    def gpu_minutes(self) -> float | None:
        """Estimated from the work alone."""
        if self.tflop is None:
            return None
        return max(self.tflop / GPU_TFLOPS, self.steps * GPU_STEP_S) / 60


# GFLOP of one forward pass: planes 2.3, a view of them 1.5 at 128 px and 6 at 256, encoder or reader .43, landmarks
# .06, identity .08. Backwards costs twice as much. The minutes are those of the bundled model's run.
STAGES = (
    Stage(
        "python -m train.heads build --mpfb mpfb2/src/mpfb/data --assets makehuman-assets/base --out heads_source.npz",
        "MPFB2's and MakeHuman's data (see train/heads)",
        "heads_source.npz",
        0.1,
    ),
    Stage(
        "python -m train.heads render --source heads_source.npz --out dataset/heads --heads 10000 --seed 3\n"
        "python -m train.heads render --source heads_source.npz --out dataset/large --heads 2000 --seed 4 --size 256\n"
        "python -m train.heads render --source heads_source.npz --out dataset/heldout --heads 300 --seed 2 --size 256",
        "heads_source.npz",
        "dataset/heads, dataset/large and dataset/heldout: pictures, cameras, depth, labels",
        36,
    ),
    Stage(
        "python -m train.generator --data dataset/heads --patch-data dataset/large --held-out dataset/heldout \\\n"
        "    --run runs/generator --minutes 369 --batch 8 --rays 288 --points 448 --patches 3 --patch-rays 32",
        "dataset/heads, dataset/large",
        "runs/generator/generator",
        369,
        tflop=21161 * 8 * 3 * 2.7e-3,
        steps=21161,
    ),
    Stage(
        "python -m train.photos PHOTOS --out dataset/real",
        "a folder of 15,000 photos",
        "dataset/real: packed crops, masks, landmarks and poses, and a list of failures",
        60,
    ),
    Stage(
        "python -m train.landmarks --photos dataset/real --data dataset/heads --out runs/landmarks",
        "packed photos, dataset/heads",
        "runs/landmarks/networks: find faces, read 120 points, angles and the person",
        15,
        tflop=995 * 96 * 3 * 0.06e-3,
        steps=995,
    ),
    Stage(
        "python -m train.encoder --data dataset/heads --generator runs/generator/generator \\\n"
        "    --reader runs/attributes/reader --out runs/encoder --minutes 227",
        "generator, reader",
        "runs/encoder/encoder",
        227,
        tflop=7950 * (40 * 3 * 0.43e-3 + 4 * 3 * 14.3e-3 / 3),
        steps=7950,
    ),
    Stage(
        "python -m train.back --source heads_source.npz --data dataset/heads --photos photos \\\n"
        "    --generator runs/generator/generator --encoder runs/encoder/encoder --out runs/back/generator",
        "generator, encoder, heads_source.npz, dataset/heads, photos",
        "runs/back/generator: the generator with a back, for train.bundle in place of the one without",
        10,
    ),
    Stage(
        "python -m train.bundle --generator runs/generator/generator --encoder runs/encoder/encoder \\\n"
        "    --landmarks runs/landmarks/networks --identity dlib_face.safetensors --reader runs/attributes/reader \\\n"
        "    --out weights/faces",
        "the networks; dlib's face network as a state dict",
        "weights/faces, without sliders so far",
        0.1,
    ),
    Stage(
        "python -m train.attributes --data dataset/heads --photos dataset/real --labels fairface_label_train.csv \\\n"
        "    --weights weights/faces --held-out dataset/heldout --body lite0.safetensors --out runs/attributes \\\n"
        "    --minutes 30",
        "dataset/heads, packed photos, FairFace's table, weights/faces, EfficientNet-Lite0's weights",
        "runs/attributes/reader: classifier and pose estimator, that edits are judged by",
        45,
        tflop=24000 * 0.14e-3 + 1500 * 48 * 3 * 0.07e-3,
        steps=3000,
    ),
    Stage(
        "python -m train.manifold --weights weights/faces --reader runs/attributes/reader --data dataset/real \\\n"
        "    --labels fairface_label_train.csv --out runs/latents.npz",
        "weights/faces, reader, packed photos, FairFace's table",
        "runs/latents.npz: the inversion manifold, labelled where anything is known",
        24,
        tflop=15000 * 0.93e-3,
        steps=470,
    ),
    Stage(
        "python -m train.pairs --source heads_source.npz --weights weights/faces --out runs/pairs.npz",
        "heads_source.npz, weights/faces",
        "runs/pairs.npz: what a head gets with glasses, a beard, grey hair ...",
        10,
    ),
    Stage(
        "python -m train.directions --weights weights/faces --reader runs/attributes/reader \\\n"
        "    --latents runs/latents.npz --pairs runs/pairs.npz --photos dataset/real --out runs/directions",
        "weights/faces, reader, latents, pairs, packed photos",
        "runs/directions and directions.json",
        10,
        tflop=2600 * 4.3e-3,
        steps=700,
    ),
    Stage(
        "python -m train.bundle --directions runs/directions --out weights/faces",
        "weights/faces, directions",
        "weights/faces: all that preim3d needs",
        0.1,
    ),
    Stage(
        "python -m train.identity --data dataset/heads --held-out dataset/heldout --out runs/identity \\\n"
        "    --minutes 16 --size 64 --units 1 1 1 1 --depths 16 32 64 192 --batch 64 --rate 2e-3",
        "dataset/heads",
        "runs/identity/identity: judges likeness; train.encoder takes one too",
        16,
        tflop=1766 * 64 * 3 * 0.08e-3,
        steps=1766,
    ),
    Stage(
        "python -m train.evaluate --weights weights/faces --reader runs/attributes/reader --data photos \\\n"
        "    --perceptual efficientnet_lite0_blocks0-10.safetensors --sheets sheets \\\n"
        "    --out weights/faces/evaluation.json",
        "weights/faces, reader, packed photos of which some are held, EfficientNet-Lite0 (see train.perceptual)",
        "evaluation.json, goals and the paper's tables in evaluation.md, contact sheets",
        15,
        tflop=1900 * 2.3e-3 + 6200 * 6e-3,
        steps=1900,
    ),
    Stage(
        "python -m train.examples --photos PACKED --rows 7 1 3 --weights weights/faces",
        "weights/faces, packed photos",
        "weights/faces/examples: what the page shows before any upload",
        1.5,
    ),
    Stage(
        "python -m train.showcase --packed PACKED --rows 7 --teaser --out weights/faces/teaser.png\n"
        "python -m train.showcase --packed PACKED --rows 7 1 3 4 --out weights/faces/photos.png",
        "weights/faces, packed photos",
        "the README's pictures; any PHOTO instead of packed ones gives a sheet to look at",
        0.7,
    ),
    Stage(
        "python -m train.bundle --out weights/faces --readme README.md",
        "evaluation.json, pictures",
        "the card, with figures and checksums; the README's figures",
        0.1,
    ),
)

# Not on the way to weights/faces.
ASIDE = (
    Stage(
        "python -m train.manifold --weights weights/faces --reader runs/attributes/reader --samples 3000 \\\n"
        "    --data dataset/heads --out runs/origin.npz\n"
        "python -m train.directions --weights weights/faces --reader runs/attributes/reader \\\n"
        "    --latents runs/origin.npz --photos dataset/real --least-accuracy 0 --least-altering -9 \\\n"
        "    --out runs/origin\n"
        "python -m train.evaluate ... --origin runs/origin --seeds 0 1",
        "as for manifold, directions and evaluate",
        "directions of the original space, compared with ours (Table 5)",
        17,
        tflop=3000 * 4.3e-3 + 1900 * 4.3e-3 + 2 * 11,
        steps=3500,
    ),
    Stage(
        "python -m train.encoder --recipe paper --data dataset/heads --generator runs/generator/generator \\\n"
        "    --reader runs/attributes/reader --schedule-scale 0.003 --steps 600 --out runs/paper\n"
        "python -m train.encoder ... --without surround --out runs/one_view\n"
        "python -m train.encoder ... --without surround alternating --out runs/photos_only\n"
        "python -m train.evaluate ... --compare paper=runs/paper/encoder one_view=runs/one_view/encoder \\\n"
        "    photos_only=runs/photos_only/encoder --seeds 0 1",
        "as for encoder and evaluate",
        "the paper's ablation (Table 4), with equal training",
        150,
        tflop=3 * 600 * 8 * 5 * 3 * 4.3e-3,
        steps=1800,
    ),
    Stage(
        "python -m train.prepare PHOTOS --out dataset/photos",
        "a folder of 1000 raw photos",
        "dataset/photos: posed crops for train.encoder, train.manifold and train.evaluate, and a list of failures",
        4,
    ),
)


def recipe() -> str:
    """What `python -m train` prints."""
    lines = []
    for title, stages in (
        ("Makes weights/faces, from nothing:", STAGES),
        ("Besides (here the CPU minutes are estimates too):", ASIDE),
    ):
        lines += [title, ""]
        for stage in stages:
            gpu = stage.gpu_minutes
            estimate = "no use for a GPU" if gpu is None else f"GPU (estimate): {gpu:.1f} min"
            lines += [f"  {line}" for line in stage.command.splitlines()]
            lines += [f"      needs {stage.needs}", f"      makes {stage.makes}"]
            lines += [f"      2 CPU cores: {stage.minutes:g} min; {estimate}", ""]
    total = sum(stage.minutes for stage in STAGES)
    gpu = sum(stage.gpu_minutes or stage.minutes for stage in STAGES)
    lines += [
        f"In all {total / 60:.1f} h of 2 CPU cores; with one big GPU (estimate) {gpu:.0f} min, most of it rendering.",
        f"GPU minutes are estimates, never measured: the larger of the networks' FLOPs at {GPU_TFLOPS:g} TFLOP/s and"
        f" of {1000 * GPU_STEP_S:g} ms a step.",
    ]
    return "\n".join(lines)
