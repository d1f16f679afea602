r"""Directions of the original space against those of e4e's inversion manifold, on pictures (paper, Table 5).

    python -m train.picture_edits --weights runs/pictures --encoder runs/e4e/encoder --reader weights/reader \
        --photos dataset/real --labels fairface_label_train.csv --out runs/picture_edits --seeds 0 1

As `train.manifold`, `train.directions` and `train.evaluate --origin` compare them in three dimensions. For each seed:
latents of random z, labelled by the reader on the generator's pictures, and inverted photos, labelled as there, give
directions of either space by the same rules (`--plain`: InterFaceGAN's normals, as the paper has them); held-out
photos are inverted, edited with both and read again. AD is told at equal AA: 1.5, or what both spaces reach. Makes
OUT/figures.json (whose `spaces`, the mean of the seeds, `train.curves --flat` draws), OUT/figures.md and the latents;
killed, it goes on where it was when it is run again."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from preim3d.directions import ATTRIBUTES, fingerprint
from preim3d.files import whole_file
from preim3d.pipeline import load_component
from preim3d.reader import HeadReader
from preim3d.weights import read_json
from train.editing.calibration import EditTrial
from train.editing.directions import classified
from train.editing.manifold import Batch, Source, collect, digest, photos_source, split
from train.judging import metrics
from train.judging.attributes import read_images
from train.judging.edit_figures import EQUAL_EDITS, EQUAL_STRENGTHS, at_equal_altering
from train.judging.report import average
from train.loop.options import run_stage, stage_parser
from train.photos.real_photos import RealPhotos
from train.pictures.networks import PictureEncoder, PictureGenerator
from train.pictures.reconstructions import as_seen


SPACES = ("origin", "inversion")
BATCH = 16
CALIBRATED_ON = 8  # latents


class PictureTrial(EditTrial):
    """A few latents that are edited, shown and read again; nobody tells people apart."""

    def __init__(self, generator: PictureGenerator, reader: HeadReader, ws: Tensor, sigma: Tensor):
        self.generator, self.reader, self.ws, self.sigma, self.identity = generator, reader, ws, sigma, None
        self.logits, self.people = self.read(ws)

    @torch.no_grad()
    def read(self, ws: Tensor, styles_offset: None = None) -> tuple[Tensor, Tensor]:
        """Logits [m, A] of these w; in the place of embeddings, zeros [m, 1]."""
        device = self.generator.device
        images = [self.generator(part.to(device)).clamp(-1, 1) for part in ws.split(BATCH)]
        return read_images(self.reader, torch.cat(images)).logits, torch.zeros(len(ws), 1)


def samples_source(generator: PictureGenerator, count: int, seed: int) -> Source:
    """Latents of the original space and the pictures that the generator makes of them."""
    batches = split(np.arange(count))

    def batch(number: int) -> Batch:
        draws = torch.Generator().manual_seed(seed * 2**20 + number)
        z = torch.randn(len(batches[number]), generator.config.z_dim, generator=draws).to(generator.device)
        ws = generator.latents(z)
        return Batch(ws, generator(ws).clamp(-1, 1), {})

    return Source(len(batches), batch, digest(batches))


class Comparison:
    """The networks, the photos and what is measured with them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args

        def component(kind: type, folder: Path):
            return load_component(kind, folder, torch.float32).to(args.device).eval()

        self.generator = component(PictureGenerator, Path(args.weights) / "generator")
        self.encoder = component(PictureEncoder, Path(args.encoder))
        self.reader = component(HeadReader, Path(args.reader))
        self.names = list(self.reader.config.attribute_names)
        missing = [ATTRIBUTES[key].celeba for key in EQUAL_EDITS if ATTRIBUTES[key].celeba not in self.names]
        if missing:
            raise ValueError(f"The classifier in {args.reader} does not read {', '.join(missing)}; give another one.")
        self.photos = RealPhotos(args.photos)
        self.held = np.nonzero(self.photos.held)[0]
        if len(self.held) < 2:
            raise ValueError(f"{args.photos} has fewer than two photos that are held out: nothing to measure.")
        self.about = {
            "networks": fingerprint(self.generator, self.encoder, self.reader),
            "samples": args.samples,
            "photos": args.inverted,
            "count": min(args.count, len(self.held)),
            "plain": args.plain,
        }

    def latents(self, space: str, seed: int) -> dict[str, np.ndarray]:
        """Latents of one space and what is known of them, kept in OUT."""
        args, out = self.args, Path(self.args.out) / f"{space}-{seed}.npz"
        if space == "origin":
            network, source = self.generator, samples_source(self.generator, args.samples, seed)
        else:
            network = self.encoder
            source = photos_source(self.photos, args.labels, network, args.inverted, self.names, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        print(collect(source, self.reader, network, space, seed, out, 1, 1))
        return dict(np.load(out))

    def directions(self, space: str, seed: int) -> dict[str, Tensor]:
        """Attribute -> what strength 1 adds to w [num_ws, w_dim], where the space gave a direction."""
        latents = self.latents(space, seed)
        w = torch.from_numpy(latents["w"].astype(np.float32))
        sigma = torch.from_numpy(latents["logits"].std(0)).clamp(min=1e-3)
        rows = np.random.default_rng(seed).choice(len(w), min(CALIBRATED_ON, len(w)), replace=False)
        trial = PictureTrial(self.generator, self.reader, w[rows], sigma)
        # Whatever is found is compared, as the original space's directions are in three dimensions.
        protocol = argparse.Namespace(
            plain=self.args.plain, seed=seed, extremes=2500, costs=(10.0,), least_auc=0.0, least_accuracy=0.0,
            least_altering=-np.inf, leave_out={},
        )  # fmt: skip
        # Cleaned of one another, not of forty attributes as in three dimensions, which would take ten times as long.
        found, _, left_out = classified(latents, protocol, {}, trial, trial, EQUAL_EDITS)
        for key in EQUAL_EDITS:
            if key in left_out:
                print(f"`{key}` of {space}, seed {seed}, is left out. {left_out[key]}")
        return {one.key: one.vector for one in found}

    def measure(self, seed: int) -> dict[str, dict]:
        """Attribute -> space -> strength, AA and AD at equal AA, and the curve."""
        spaces = {space: self.directions(space, seed) for space in SPACES}
        rows = np.random.default_rng(seed).permutation(self.held)[: self.about["count"]]
        crops, _ = as_seen(self.photos, rows, self.encoder.config.input_size)
        with torch.no_grad():
            ws = torch.cat([self.encoder(part.to(self.args.device)).cpu() for part in crops.split(BATCH)])
        sigma = read_images(self.reader, self.photos.crops(rows)).logits.std(0).clamp(min=1e-3)
        trial, figures = PictureTrial(self.generator, self.reader, ws, sigma), {}
        for key in EQUAL_EDITS:
            if all(key in directions for directions in spaces.values()):
                curves = {space: self.curve(trial, key, directions[key]) for space, directions in spaces.items()}
                figures[key] = at_equal_altering(curves)
        return figures

    def curve(self, trial: PictureTrial, key: str, vector: Tensor) -> np.ndarray:
        """Rows of strength, AA and AD, from zeros on."""
        column, points = self.names.index(ATTRIBUTES[key].celeba), [(0.0, 0.0, 0.0)]
        for strength in EQUAL_STRENGTHS:
            logits, _ = trial.read(trial.ws + strength * vector)
            aa = metrics.attribute_altering(trial.logits, logits, trial.sigma, column)
            ad = metrics.attribute_dependency(trial.logits, logits, trial.sigma, column)
            points.append((strength, ATTRIBUTES[key].sign * aa, ad))
        return np.array(points)


def begun(out: Path, about: dict) -> dict[str, dict]:
    """Seed -> figures of an earlier run that measured in the same way; nothing where there is none.

    Raises ValueError where it measured otherwise."""
    if not out.is_file():
        return {}
    stored = read_json(out, *about, "seeds")
    for name, value in about.items():
        if stored[name] != value:
            raise ValueError(f"{out} was begun with another {name}; delete it or give another --out.")
    return stored["seeds"]


def compare(args: argparse.Namespace) -> None:
    comparison = Comparison(args)
    out = Path(args.out) / "figures.json"
    seeds = begun(out, comparison.about)
    for seed in args.seeds:
        if str(seed) not in seeds:
            seeds[str(seed)] = comparison.measure(seed)
            with whole_file(out) as partial:
                spaces = average(list(seeds.values()))
                spaces.pop("spread", None)  # of the seeds, which stand beside
                figures = comparison.about | {"seeds": seeds, "spaces": spaces}
                partial.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    text = table([seeds[str(seed)] for seed in args.seeds])
    with whole_file(out.with_suffix(".md")) as partial:
        partial.write_text(text + "\n")
    print(text)


def table(seeds: list[dict]) -> str:
    """Markdown: for each attribute AA, and AD of both spaces, mean over the seeds and, in brackets, each."""
    lines = ["| | AA | AD, original space | AD, inversion manifold |", "|---|---|---|---|"]
    for key in EQUAL_EDITS:
        found = [figures[key] for figures in seeds if key in figures]
        if not found:
            continue

        def cell(space: str, name: str, found: list[dict] = found) -> str:
            values = [figures[space][name] for figures in found]
            return f"{np.mean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"

        lines.append(f"| {key} | {cell('origin', 'aa')} | {cell('origin', 'ad')} | {cell('inversion', 'ad')} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.picture_edits", seed=False)
    parser.add_argument("--weights", required=True, help="folder made by `python -m train.picture_generator`")
    parser.add_argument("--encoder", required=True, help="made by `python -m train.picture_encoder` (OUT/encoder)")
    parser.add_argument("--reader", required=True, help="folder made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument("--photos", required=True, help="folder of packed photos, some of which are held back")
    parser.add_argument("--labels", help="FairFace's table of ages and sexes")
    parser.add_argument("--out", required=True, help="folder for latents and figures")
    parser.add_argument("--samples", type=int, default=3000, help="latents of the original space")
    parser.add_argument("--inverted", type=int, default=3000, help="photos that are inverted")
    parser.add_argument("--count", type=int, default=96, help="held-out photos that are edited")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="of samples, photos and fits")
    parser.add_argument("--plain", action="store_true", help="InterFaceGAN's normals as they are, not cleaned")
    return run_stage("train.picture_edits", compare, parser.parse_args(words))
