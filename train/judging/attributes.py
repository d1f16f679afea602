r"""Pictures of heads -> attributes, head features and camera: the classifier that edits are judged by.

    python -m train.attributes --data dataset/heads --photos dataset/photos --labels fairface_label_train.csv \
        --weights weights/faces --held-out dataset/heldout --body lite0.safetensors --out runs/attributes \
        --minutes 30

One small network (EfficientNet-Lite0, or an IR-SE from nothing) learns from real photos (age and sex from FairFace's
table, expressions and shapes from their landmarks), from rendered heads (all labels), and from the generator's
pictures of inverted photos, so that it reads photos as well as generated images; what is not known of a picture takes
no part in the loss. The paper takes a ResNet-50 trained on CelebA as classifier (A.2). Makes OUT/checkpoint.pt (to
resume), OUT/events, OUT/reconstructions.npz, OUT/reader/ (the network) and OUT/report.json (accuracy per attribute on
photos and heads that it did not learn from).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preim3d.efficientnet import EfficientNetLite0
from preim3d.reader import ANGLE_SCALE, HeadReader, Reading
from train.heads.dataset import HeadsDataset
from train.judging.reader_batches import Examples, PhotoSource, Reconstructions, RenderedHeads, reconstruct
from train.loop.options import budget, check_budget, run_stage, training_parser
from train.loop.precision import autocast, settle
from train.loop.progress import cosine_rate
from train.loop.training import Training, descend, set_rate
from train.photos.photo_labels import LABELS
from train.photos.real_photos import RealPhotos


SHARES = (0.5, 0.1, 0.25)  # of a batch: photos, reconstructions, photo-like renders; the rest are plain renders
HEADS_RATE, HEADS_BATCH, HEADS_EPOCHS = 2e-3, 256, 12
CLIP = 5.0


def reading_loss(reading: Reading, truth: Examples) -> dict[str, Tensor]:
    """The three terms, each about 1 for a network that knows nothing."""
    return {
        "attributes": known_mean(
            F.binary_cross_entropy_with_logits(
                reading.logits.float(), truth.labels.nan_to_num(), reduction="none"
            ),
            truth.labels,
        ),
        "features": known_mean((reading.features.float() - truth.features.nan_to_num()).square(), truth.features),
        "angles": (reading.angles.float() - truth.angles).square().mean() / ANGLE_SCALE**2,
    }  # fmt: skip


def known_mean(losses: Tensor, truth: Tensor) -> Tensor:
    """Mean over what is known of each picture, then over those of which anything is: a photo's few labels weigh as
    much as a render's many."""
    known = ~truth.isnan()
    some = known.any(1)
    each = (losses * known).sum(1) / known.sum(1).clamp(min=1)
    return each.sum() / some.sum().clamp(min=1)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    draws = torch.Generator().manual_seed(args.seed)
    device, out = torch.device(args.device), Path(args.out)

    dataset = HeadsDataset(args.data)
    names = [*dataset.attribute_names, *(name for name in LABELS if name not in dataset.attribute_names)]
    features = dataset.features.shape[1]
    photos = RealPhotos(args.photos)
    heads = RenderedHeads(dataset, names, args.size)
    people = PhotoSource(photos, args.labels, names, features, args.size)
    made = reconstruct(
        photos, Path(args.weights), args.reconstructions, args.seed, args.size, out / "reconstructions.npz"
    )
    pictures = Reconstructions(*made, people)

    reader = HeadReader(
        input_size=args.size,
        units=tuple(args.units),
        depths=tuple(args.depths),
        pool=4 if args.body else args.size // 32,  # the side of what the body gives
        embedding_size=args.embedding,
        attribute_names=tuple(names),
        feature_count=features,
        backbone="lite0" if args.body else "irse",
    )
    if args.body:
        reader.body.load_state_dict(EfficientNetLite0.load(args.body).state_dict())
    reader.to(device)
    optimizer = torch.optim.AdamW(reader.parameters(), args.rate, weight_decay=0.01)
    parts = {"reader": reader, "optimizer": optimizer}

    def join_in() -> None:
        heads.learned = dataset.ready  # a dataset may still be rendering: its heads join in as they come

    training = Training(out, parts, device, rng=rng, draws=draws, also_save=join_in)
    if args.body and not training.step:
        fit_heads(reader, lambda: draw_batch(args.batch, people, pictures, heads, rng, draws), args.seen, draws)
    # What was measured once holds for the whole run.
    sample = torch.zeros(args.batch, 3, args.size, args.size, device=device)
    precision = training.notes.get("precision") or settle(args.precision, reader, sample)
    training.notes["precision"] = precision

    def step(number: int, share: float) -> dict[str, Tensor]:
        set_rate(optimizer, cosine_rate(share, args.rate))
        reader.train()
        if args.body:
            reader.body.eval()  # its statistics are of many more pictures than there is time for
        batch = draw_batch(args.batch, people, pictures, heads, rng, draws)
        batch = Examples(*(column.to(device) for column in batch))
        with autocast(device, precision):
            reading = reader(batch.images)
        terms = reading_loss(reading, batch)
        values = {name: term.detach() for name, term in terms.items()}
        descend(number, total_loss(terms), values, [optimizer], CLIP)
        return values

    training.run(step, args.batch, **budget(args))
    training.save()
    training.log.close()
    reader.eval()
    held_out = HeadsDataset(args.held_out) if args.held_out else None
    report = evaluate(reader, people, pictures, held_out, args.seed)
    # The unit in which changes are told, wherever the network is used.
    reader.register_to_config(logit_std=report["real"].pop("logit_std"))
    save_halved(reader, out / "reader")
    report["trained"] = {
        "steps": training.progress.step,
        "minutes": round(training.progress.seconds / 60, 1),
        "heads": len(heads.learned),
        "photos": len(people.learned),
        "reconstructions": len(pictures.learned),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    for kind in ("real", "reconstructed", "photos", "plain"):
        if kind in report:
            print(f"Balanced accuracy, {kind}: {report[kind]['mean_balanced_accuracy']} of {report[kind]['n']}.")


def draw_batch(
    count: int,
    people: PhotoSource,
    pictures: Reconstructions,
    heads: RenderedHeads,
    rng: np.random.Generator,
    draws: torch.Generator,
) -> Examples:
    counts = [round(count * share) for share in SHARES]
    return join([
        people.draw(counts[0], rng, draws),
        pictures.draw(counts[1], rng, draws),
        heads.draw(counts[2], rng, draws, photo_like=True),
        heads.draw(count - sum(counts), rng, draws, photo_like=False),
    ])  # fmt: skip


def fit_heads(reader: HeadReader, draw: Callable[[], Examples], count: int, draws: torch.Generator) -> None:
    """What `count` pictures look like to a body that has learned to see is kept; the rest of the network learns from
    that alone, many times over, for a small part of what training the body costs."""
    seen, known = [], []
    reader.eval()
    with torch.no_grad(), tqdm(total=count, desc="pictures", mininterval=10) as bar:
        while bar.n < count:
            batch = draw()
            seen.append(reader.see(batch.images.to(reader.device)).half().cpu())
            known.append(batch._replace(images=torch.zeros(len(batch.images), 0)))  # no longer needed
            bar.update(len(batch.images))
    learn_heads(reader, torch.cat(seen), join(known), draws)


def learn_heads(reader: HeadReader, seen: Tensor, known: Examples, draws: torch.Generator) -> None:
    """The layers after the body, from what it saw of pictures [n, K] and what is known of them."""
    parameters = [p for name, p in reader.named_parameters() if not name.startswith("body.")]
    optimizer = torch.optim.AdamW(parameters, HEADS_RATE, weight_decay=0.05)
    reader.output_layer.train()
    steps = HEADS_EPOCHS * (len(seen) // HEADS_BATCH + 1)
    for step in tqdm(range(steps), desc="heads", mininterval=10):
        set_rate(optimizer, cosine_rate(step / steps, HEADS_RATE))
        rows = torch.randint(len(seen), (HEADS_BATCH,), generator=draws)
        reading = reader.judge(seen[rows].float().to(reader.device))
        terms = reading_loss(reading, Examples(*(column[rows].to(reader.device) for column in known)))
        descend(step, total_loss(terms), terms, [optimizer])


def total_loss(terms: dict[str, Tensor]) -> Tensor:
    return 2 * terms["attributes"] + 0.2 * terms["features"] + 0.3 * terms["angles"]


def join(parts: list[Examples]) -> Examples:
    return Examples(*(torch.cat(column) for column in zip(*parts)))


def save_halved(reader: HeadReader, folder: Path) -> None:
    """In half precision, but for the running statistics of batch norms: variances may pass its largest number."""
    statistics = {name: tensor.float() for name, tensor in reader.state_dict().items() if "running_" in name}
    halved = HeadReader.from_config(reader.config).half()
    halved.load_state_dict(reader.state_dict())
    for name, tensor in statistics.items():
        module, _, buffer = name.rpartition(".")
        setattr(halved.get_submodule(module), buffer, tensor)
    halved.save_pretrained(folder)
    reader.save_config(folder)  # a network made of a configuration forgets what was registered later


@torch.no_grad()
def read_images(reader: HeadReader, images: Tensor, batch: int = 32) -> Reading:
    """`reader` over many images [N, 3, H, W], in batches, float32."""
    readings = [reader(part.to(reader.device)) for part in images.split(batch)]
    return Reading(*(torch.cat(column).float().cpu() for column in zip(*readings)))


def evaluate(
    reader: HeadReader,
    people: PhotoSource,
    pictures: Reconstructions,
    held_out: HeadsDataset | None,
    seed: int,
) -> dict:
    """AUC and balanced accuracy per attribute and angle errors in degrees, on photos that were kept out, on
    reconstructions of such photos, and on photo-like and plain renders of held-out heads."""
    names = list(reader.config.attribute_names)
    parts = {
        "real": (people.examples, np.nonzero(people.kept_out)[0]),
        "reconstructed": (pictures.examples, np.nonzero(people.kept_out[pictures.rows])[0]),
    }
    if held_out is not None:
        rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        heads = RenderedHeads(held_out, names, reader.config.input_size)
        parts["photos"] = (lambda rows: heads.examples(rows, rng, draws, photo_like=True), held_out.ready)
        parts["plain"] = (lambda rows: heads.examples(rows, rng, draws, photo_like=False, plain=True), held_out.ready)
    report = {"seed": seed}
    for kind, (examples, rows) in parts.items():
        if not len(rows):
            continue
        found = [examples(part) for part in np.array_split(rows, -(-len(rows) // 32))]
        readings = [read_images(reader, part.images) for part in found]
        reading = Reading(*(torch.cat(column) for column in zip(*readings)))
        report[kind] = score(reading, join(found), names)
    return report


def score(reading: Reading, truth: Examples, names: list[str]) -> dict:
    """The figures of one kind of pictures; an attribute with fewer than three of either class has none (null)."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    by_name = {}
    for i, name in enumerate(names):
        known = ~truth.labels[:, i].isnan().numpy()
        label, logit = truth.labels[known, i].numpy() > 0.5, reading.logits[known, i].numpy()
        if label.size == 0:
            continue
        scored = 3 <= label.sum() <= len(label) - 3
        by_name[name] = {
            "auc": round(float(roc_auc_score(label, logit)), 4) if scored else None,
            "balanced_accuracy": round(float(balanced_accuracy_score(label, logit > 0)), 4) if scored else None,
            "positives": int(label.sum()),
            "n": len(label),
        }
    accuracies = [row["balanced_accuracy"] for row in by_name.values() if row["balanced_accuracy"] is not None]
    errors = torch.rad2deg((reading.angles - truth.angles).abs()).mean(0)
    return {
        "n": len(reading.logits),
        "mean_balanced_accuracy": round(float(np.mean(accuracies)), 4) if accuracies else None,
        "angle_error_deg": [round(error, 2) for error in errors.tolist()],
        "logit_std": [round(value, 4) for value in reading.logits.std(0).tolist()],
        "attributes": by_name,
    }


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.attributes")
    parser.add_argument("--data", required=True, help="folder made by `python -m train.heads render`")
    parser.add_argument("--photos", required=True, help="folder of packed photos, made by `python -m train.photos`")
    parser.add_argument("--labels", help="FairFace's table of ages and sexes (fairface_label_train.csv)")
    parser.add_argument("--weights", required=True, help="pipeline folder with encoder/ and generator/")
    parser.add_argument("--out", required=True, help="folder for the checkpoint, the network and its report")
    parser.add_argument("--held-out", help="another folder of rendered heads, for the report")
    parser.add_argument("--reconstructions", type=int, default=1000, help="inverted photos to learn from too")
    parser.add_argument("--body", help="EfficientNet-Lite0's weights (safetensors), to start from; default: nothing")
    parser.add_argument(
        "--seen", type=int, default=28000, help="pictures from which, with --body, the heads learn first"
    )
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--size", type=int, default=96, help="side of the pictures read")
    parser.add_argument("--units", type=int, nargs=4, default=(2, 2, 2, 2), help="residual units of the four stages")
    parser.add_argument(
        "--depths", type=int, nargs=4, default=(32, 48, 96, 160), help="their channels, multiples of 16"
    )
    parser.add_argument("--embedding", type=int, default=176)
    parser.add_argument("--rate", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    return run_stage("train.attributes", train, check_budget(parser, parser.parse_args(words)))
