"""Pictures of heads -> attributes, head features and camera: the classifier that edits are judged by, and the
encoder's first body.

    python -m train.attributes --data dataset/heads --held-out dataset/heldout --out dataset/attributes --minutes 60

One small IR-SE body learns from photo-like renders and from plain ones, so that it reads photos as well as generated
images. The paper takes a ResNet-50 trained on CelebA as classifier (A.2) and starts its encoder from a face
recognition body; here both come from known labels. Needs a dataset of `train.heads render`; makes OUT/checkpoint.pt
(to resume), OUT/reader/ (the network) and OUT/report.json (accuracy per attribute on held-out heads).

Of the weights in weights/reader: `--minutes 181 --threads 1`, seed 0, 5224 steps, on a core that was shared with other
work most of the time: on 5323 of 10000 heads of seed 1 up to step 2945, on all of them up to 4698, then on 8748 of
seed 3. All these heads were broader than today's: see weights/reader/README.md for what that costs."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preim3d.camera import angles_from_camera
from preim3d.reader import ANGLE_SCALE, HeadReader, Reading
from train import augment, checkpoint
from train.batches import draw_photos, draw_plain, to_float
from train.heads.dataset import BACKGROUND, HeadsDataset
from train.options import check_budget, run_stage, training_parser
from train.picture_metric import code_loss, picture_metric
from train.precision import autocast, settle
from train.progress import Progress, cosine_rate


METRIC_PICTURE = 32  # Side of the pictures that weigh the features,
METRIC_HEADS = 3000  # and how many heads they show: many times the number of features.


def frontal_pictures(
    dataset: HeadsDataset, heads: np.ndarray, size: int = METRIC_PICTURE
) -> tuple[np.ndarray, Tensor]:
    """The most frontal plain view of each of `heads`, where it is near enough -> which heads, pictures
    [n,3,size,size]."""
    cameras = torch.as_tensor(np.asarray(dataset.cameras[heads]), dtype=torch.float32)
    yaw, pitch = angles_from_camera(cameras.flatten(0, 1))
    tilt = (yaw.square() + pitch.square()).sqrt().reshape(cameras.shape[:2])
    nearest, view = tilt.min(1)
    near = (nearest < 0.3).numpy()
    heads, view = heads[near], view.numpy()[near]
    pictures = []
    for start in range(0, len(heads), 64):
        span = slice(start, start + 64)
        images = augment.plain(to_float(dataset.images[heads[span], view[span]]), BACKGROUND)
        pictures.append(F.interpolate(images, (size, size), mode="area"))
    return heads, torch.cat(pictures)


def reading_loss(
    reading: Reading,
    attributes: Tensor,  # [B,A] in [0, 1]
    features: Tensor,  # [B,F]
    angles: Tensor,  # [B,2] radians
    metric: Tensor,  # [F,F]
) -> dict[str, Tensor]:
    """The three terms, each about 1 for a network that knows nothing."""
    return {
        "attributes": F.binary_cross_entropy_with_logits(reading.logits.float(), attributes),
        "features": code_loss(reading.features, features, metric),
        "angles": (reading.angles.float() - angles).square().mean() / ANGLE_SCALE**2,
    }


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    draws = torch.Generator().manual_seed(args.seed)
    device = torch.device(args.device)
    out = Path(args.out)

    dataset = HeadsDataset(args.data)
    learned = dataset.ready
    features = torch.as_tensor(np.asarray(dataset.features), dtype=torch.float32, device=device)
    attributes = torch.as_tensor(np.asarray(dataset.attributes), dtype=torch.float32, device=device)
    reader = HeadReader(
        input_size=args.size,
        units=tuple(args.units),
        depths=tuple(args.depths),
        embedding_size=args.embedding,
        attribute_names=tuple(dataset.attribute_names),
        feature_count=features.shape[1],
    ).to(device)
    optimizer = torch.optim.AdamW(reader.parameters(), args.rate, weight_decay=0.01)
    parts = {"reader": reader, "optimizer": optimizer}
    state = {"step": 0, "seconds": 0.0}
    if (out / "checkpoint.pt").exists():
        state = checkpoint.load(out / "checkpoint.pt", parts, rng=rng, device=device)
        draws.set_state(state["notes"]["draws"])
        print(f"Resumed {out / 'checkpoint.pt'} at step {state['step']}.")

    near, pictures = frontal_pictures(dataset, learned[:METRIC_HEADS])
    metric = picture_metric(features[near].cpu(), pictures).to(device)
    size = reader.config.input_size
    precision = settle(args.precision, reader, torch.zeros(args.batch, 3, size, size, device=device))

    def save() -> None:
        checkpoint.save(
            out / "checkpoint.pt",
            parts,
            step=progress.step,
            seconds=progress.seconds,
            rng=rng,
            notes={"draws": draws.get_state()},
        )

    progress = Progress(args.minutes, args.steps, step=state["step"], seconds=state["seconds"])
    saved_at = progress.seconds
    reader.train()
    while not progress.done:
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(progress.share, args.rate)
        heads = rng.choice(learned, args.batch)
        photos = int(args.batch * args.photo_share)
        rgba, theta, camera = draw_photos(dataset, heads[:photos], rng, device)
        images, _ = augment.photo_like(rgba, draws, theta=theta, size=size)
        rgba, plain_camera, _ = draw_plain(dataset, heads[photos:], rng, device)
        images = torch.cat([images, augment.generator_like(rgba, BACKGROUND, draws)])
        angles = torch.stack(angles_from_camera(torch.cat([camera, plain_camera])), 1)

        with autocast(device, precision):
            reading = reader(images)
        terms = reading_loss(reading, attributes[heads], features[heads], angles, metric)
        loss = 2 * terms["attributes"] + terms["features"] + 0.3 * terms["angles"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        optimizer.step()
        progress.advance(args.batch, **{name: term.item() for name, term in terms.items()})
        if progress.seconds - saved_at > args.save_seconds:
            checkpoint.attempt(save, out / "checkpoint.pt", progress.step)
            saved_at = progress.seconds
            learned = dataset.ready  # a dataset may still be rendering: its heads join in as they come
    save()
    reader.eval().save_pretrained(out / "reader")
    if not args.held_out:
        return
    report = evaluate(reader, HeadsDataset(args.held_out), args.seed)
    # The unit in which changes are told, wherever the network is used.
    reader.register_to_config(logit_std=report["photos"].pop("logit_std"))
    reader.save_config(out / "reader")
    report["trained"] = {"steps": progress.step, "minutes": round(progress.seconds / 60, 1), "heads": len(learned)}
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    accuracy = {kind: report[kind]["mean_balanced_accuracy"] for kind in ("photos", "plain")}
    print(
        f"Balanced accuracy on held-out heads: {accuracy['photos']} on photos, {accuracy['plain']} on plain renders."
    )


@torch.no_grad()
def read_images(reader: HeadReader, images: Tensor, batch: int = 32) -> Reading:
    """`reader` over many images [N,3,H,W], in batches, float32."""
    readings = [reader(part.to(reader.device)) for part in images.split(batch)]
    return Reading(*(torch.cat(column).float().cpu() for column in zip(*readings)))


def evaluate(reader: HeadReader, dataset: HeadsDataset, seed: int) -> dict:
    """AUC and balanced accuracy per attribute, R2 of the features, angle errors in degrees, on photo-like and plain
    renders."""
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    held_out = dataset.ready
    report = {"n": len(held_out), "seed": seed}
    for kind in ("photos", "plain"):
        readings, angles = [], []
        for heads in np.array_split(held_out, -(-len(held_out) // 32)):
            if kind == "photos":
                rgba, theta, camera = draw_photos(dataset, heads, rng)
                pictures, _ = augment.photo_like(rgba, draws, theta=theta, size=reader.config.input_size)
            else:
                rgba, camera, _ = draw_plain(dataset, heads, rng)
                pictures = augment.plain(rgba, BACKGROUND)
            readings.append(read_images(reader, pictures))
            angles.append(torch.stack(angles_from_camera(camera), 1))
        reading = Reading(*(torch.cat(column) for column in zip(*readings)))
        report[kind] = score(reading, dataset, held_out, torch.cat(angles))
    return report


def score(reading: Reading, dataset: HeadsDataset, heads: np.ndarray, angles: Tensor) -> dict:
    """The figures of one kind of images; an attribute with fewer than three heads of either class has none (null)."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    labels = np.asarray(dataset.attributes[heads]) > 0.5
    by_name = {}
    for i, name in enumerate(map(str, dataset.attribute_names)):
        truth, logit = labels[:, i], reading.logits[:, i].numpy()
        scored = 3 <= truth.sum() <= len(truth) - 3
        by_name[name] = {
            "auc": round(float(roc_auc_score(truth, logit)), 4) if scored else None,
            "balanced_accuracy": round(float(balanced_accuracy_score(truth, logit > 0)), 4) if scored else None,
            "positives": int(truth.sum()),
        }
    features = torch.as_tensor(np.asarray(dataset.features[heads]), dtype=torch.float32)
    # Features that never vary would divide by nothing.
    r2 = 1 - (reading.features - features).square().mean(0) / features.var(0).clamp(min=1e-3)
    known = [row["balanced_accuracy"] for row in by_name.values() if row["balanced_accuracy"] is not None]
    return {
        "mean_balanced_accuracy": round(float(np.mean(known)), 4) if known else None,
        "mean_feature_r2": round(r2.mean().item(), 4),
        "feature_r2": [round(value, 3) for value in r2.tolist()],
        "angle_error_deg": [round(v, 2) for v in torch.rad2deg((reading.angles - angles).abs()).mean(0).tolist()],
        "logit_std": [round(value, 4) for value in reading.logits.std(0).tolist()],
        "attributes": by_name,
    }


def main(words: list[str] | None = None) -> int:
    parser = training_parser(__doc__, "train.attributes")
    parser.add_argument("--data", required=True, help="folder made by `python -m train.heads render`")
    parser.add_argument("--out", required=True, help="folder for the checkpoint, the network and its report")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures read")
    parser.add_argument("--units", type=int, nargs=4, default=(2, 2, 2, 2), help="residual units of the four stages")
    parser.add_argument(
        "--depths", type=int, nargs=4, default=(32, 64, 128, 256), help="their channels, multiples of 16"
    )
    parser.add_argument("--embedding", type=int, default=384)
    parser.add_argument("--photo-share", type=float, default=0.7, help="of a batch; the rest are plain renders")
    parser.add_argument("--held-out", help="another such folder, for the report")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    return run_stage("train.attributes", train, check_budget(parser, parser.parse_args(words)))


if __name__ == "__main__":
    sys.exit(main())
