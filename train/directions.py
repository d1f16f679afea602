r"""Labelled latents -> named directions in calibrated units (paper, 3.4 and A.2).

    python -m train.directions --weights weights/faces --reader runs/attributes/reader --latents runs/latents.npz \
        --out weights/faces/directions
    python -m train.directions --method pca --weights weights/cats --latents cats.npz --out weights/cats/directions

InterFaceGAN's protocol (Shen et al. 2020): of the labelled latents take the extremes of the classifier's score, split
70/30, fit a linear SVM; the direction is the unit normal of its plane, or the pattern behind it. Then heads are
edited, rendered and classified again: the response tells which of these edits most cleanly, which other attributes it
drags along (these are taken out where that helps; `--plain` does neither) and how far to go for strength 1 = one
standard deviation of the attribute's logit over the photos. Latents of inverted photos give directions in the
inversion manifold, latents of generated samples (`python -m train.manifold --samples N`) the original space's, for
comparison. Without a classifier `--method pca` (GANSpace, on any latents) and `--method sefa` (the generator's own
factors) give unnamed directions, in standard deviations of w. Makes OUT/ (config.json and safetensors, a pipeline
component) and OUT/../directions.json (accuracies, responses, cosines, what was left out and why).

Of the weights in weights/faces/directions: 3000 inverted photos, `--heads 12 --least-altering 0.9`."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from preim3d.directions import ATTRIBUTES, Attribute, Directions, cosines, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.pipeline import load_component
from train.arrays import open_arrays
from train.attributes import HeadReader
from train.boundaries import (
    Boundary,
    Manifold,
    closed_form_factors,
    fit_boundary,
    principal_components,
    project_out,
)
from train.calibration import EditTrial, calibrate, dependency, purify
from train.options import run_stage, stage_parser
from train.precision import settle


# What grey hair and age are learned against. All other hair is brown on average, so a plane between it and grey hair
# takes the red out of the hair, and turns black hair blue; from black hair to grey the way is lighter, not bluer.
AGAINST = {"Gray_Hair": "Black_Hair", "Young": "Black_Hair", "Bags_Under_Eyes": "Black_Hair"}
SCREENED = 4  # heads on which the planes of one attribute are compared


@dataclass
class Found:
    """One calibrated direction."""

    key: str
    label: str
    group: str
    vector: Tensor  # [num_ws,w_dim]: strength 1
    accuracy: float | None
    sigma: float  # of the latents along it
    reach: float  # strengths of -reach .. reach stay in the manifold


def reach(manifold: Manifold, vector: Tensor) -> float:
    """As many strengths as lead from one end of the manifold to the other, within what the sliders offer.

    In halves, which read well on a slider, and never less than an edit that is worth making."""
    places = manifold.along((vector / vector.norm()).numpy())
    return float(np.clip(round(2 * np.ptp(np.percentile(places, (1, 99))) / vector.norm().item()) / 2, 2.0, 4.0))


def readable(latents, column: int, least_auc: float) -> bool:
    """Whether the classifier tells this attribute on photos at all: else its direction would be of chance."""
    from sklearn.metrics import roc_auc_score

    truth = latents["labels"][:, column] > 0.5
    return 0 < truth.sum() < len(truth) and roc_auc_score(truth, latents["logits"][:, column]) >= least_auc


def planes(
    manifold: Manifold, scores: np.ndarray, names: list[str], attribute: Attribute, args: argparse.Namespace
) -> list[Boundary]:
    """The SVM's planes for one attribute, one for each C."""
    score, among = scores[:, names.index(attribute.celeba)], None
    other = AGAINST.get(attribute.celeba)
    if other in names and not args.plain:
        has = attribute.sign * score > 0
        contrast = scores[:, names.index(other)] > 0
        # Too few to learn from would be worse than the wrong colour.
        among = has | contrast if min(has.sum(), (contrast & ~has).sum()) >= 50 else None
    return [fit_boundary(manifold, score, args.seed, args.extremes, cost, among) for cost in args.costs]


def classified(latents, args: argparse.Namespace, generator: TriPlaneGenerator) -> tuple[list[Found], dict, dict]:
    """Directions by SVM, a report of each, and name -> reason of those left out."""
    reader = load_component(HeadReader, Path(args.reader), torch.float32).to(args.device).eval()
    names = [str(name) for name in latents["attribute_names"]]
    if names != list(reader.config.attribute_names):
        raise ValueError(f"{args.latents} was labelled by another classifier than {args.reader}; make it again.")
    w, logits = latents["w"].astype(np.float32), latents["logits"].astype(np.float32)
    scores = latents["labels"] - 0.5 + 1e-3 * logits if args.scores == "labels" else logits
    rng = np.random.default_rng(args.seed)
    heads = torch.from_numpy(w[rng.choice(len(w), min(args.heads, len(w)), replace=False)])
    sample = heads[:8].to(args.device).requires_grad_()  # the measurement goes backwards too
    precision = settle(args.precision, generator.backbone.synthesis, sample)
    # A logit that never varies must not divide by nothing.
    sigma = torch.from_numpy(logits.std(0)).clamp(min=1e-3)
    trial = EditTrial(generator, reader, heads, sigma, precision)
    manifold = Manifold(w)

    left_out, candidates = {}, {}
    for key, attribute in ATTRIBUTES.items():
        if attribute.celeba not in names:
            continue
        if "labels" in latents and not readable(latents, names.index(attribute.celeba), args.least_auc):
            left_out[key] = f"The classifier cannot read it on photos (AUC below {args.least_auc})."
            continue
        fitted = planes(manifold, scores, names, attribute, args)
        good = [plane for plane in fitted if plane.accuracy >= args.least_accuracy]
        if good:
            candidates[key] = good
        else:
            best = max(plane.accuracy for plane in fitted)
            left_out[key] = f"Validation accuracy {best:.4f} is below {args.least_accuracy}."

    vectors, responses, chosen = {}, {}, {}
    protected = protections(args.protect, candidates)
    for key, fitted in tqdm(candidates.items(), desc="directions"):
        attribute = ATTRIBUTES[key]
        column = names.index(attribute.celeba)
        # Strong regularisation joins the class means, weak finds the thinnest wall between them, the pattern is what
        # shows of it: which of them edits more cleanly is measured, not guessed.
        best = max(fitted, key=lambda plane: plane.accuracy)
        screened = [(plane, plane.normal) for plane in fitted] + [(best, best.pattern)]
        units = [(best, best.normal)] if args.plain else screened
        tried = []
        for plane, unit in units:
            unit = project_out(unit, protected[key]) if key in protected else unit
            spread = float(manifold.along(unit).std())
            unit = torch.from_numpy(unit).float() * attribute.sign
            response = trial.response(2 * spread * unit, SCREENED)
            gain = attribute.sign * response[column].item()
            tried.append((min(gain, 0.5), -dependency(response, column), plane, unit, spread))
        *_, chosen[key], unit, spread = max(tried, key=lambda row: row[:2])
        vectors[attribute.celeba], responses[attribute.celeba] = calibrate(trial, unit, spread, column, attribute.sign)

    found, report = [], {}
    for key, plane in tqdm(chosen.items(), desc="purifying"):
        attribute = ATTRIBUTES[key]
        name, column = attribute.celeba, names.index(attribute.celeba)
        vector, response = vectors[name], responses[name]
        plain_ad = dependency(response, column)
        purer = vector if args.plain else purify(vectors, responses, names, name)
        if not torch.equal(purer, vector):
            unit = purer / purer.norm()
            spread = float(manifold.along(unit.numpy()).std())
            purer, purer_response = calibrate(trial, unit, spread, column, attribute.sign)
            if dependency(purer_response, column) < plain_ad and attribute.sign * purer_response[column] > 0.7:
                vector, response = purer, purer_response
        altering = attribute.sign * response[column].item()
        report[key] = {
            "attribute": name,
            "accuracy": round(plane.accuracy, 4),
            "taken": plane.taken,
            "sigma_w": round(float(manifold.along((vector / vector.norm()).numpy()).std()), 5),
            "step": round(vector.norm().item(), 5),
            "aa": round(altering, 3),
            "ad": round(dependency(response, column), 3),
            "ad_plain": round(plain_ad, 3),
            "reach": reach(manifold, vector),
        }
        if altering < args.least_altering:
            left_out[key] = (
                f"Strength 1 moves the logit by {altering:.2f} deviations, less than {args.least_altering}."
            )
            continue
        spread, limit = report[key]["sigma_w"], report[key]["reach"]
        found.append(Found(key, attribute.label, attribute.group, vector, plane.accuracy, spread, limit))
    if not found:
        raise ValueError("No direction is good enough: train encoder and generator longer, or lower --least-accuracy.")
    return found, report, left_out


def protections(words: list[str], candidates: dict[str, list[Boundary]]) -> dict[str, list[np.ndarray]]:
    """`["age=grey_hair,eyeglasses"]` -> attribute -> normals that its direction must not move along."""
    protected = {}
    for word in words:
        key, _, others = word.partition("=")
        unknown = [name for name in (key, *others.split(",")) if name not in candidates]
        if unknown:
            raise ValueError(
                f"--protect {word}: there is no plane for `{unknown[0]}`; write NAME=OTHER,OTHER with names among"
                f" {', '.join(candidates)}."
            )
        # The most accurate plane of each: what reads the attribute best is what must stay.
        protected[key] = [max(candidates[name], key=lambda p: p.accuracy).normal for name in others.split(",")]
    return protected


def unlabelled(w: np.ndarray, args: argparse.Namespace, generator: TriPlaneGenerator) -> list[Found]:
    """Principal components or the generator's factors; strength 1 = one standard deviation of the latents."""
    manifold = Manifold(w)
    if args.method == "pca":
        units, _ = principal_components(w, args.components)
    else:
        units = closed_form_factors(generator.cpu(), args.components).numpy()
    found = []
    for number, unit in enumerate(units, 1):
        sigma = float(manifold.along(unit).std())
        label = f"{'Component' if args.method == 'pca' else 'Factor'} {number}"
        vector = torch.from_numpy(unit * sigma).float()
        found.append(Found(f"{args.method}_{number}", label, "Unnamed", vector, None, sigma, 3.0))
    return found


def train(args: argparse.Namespace) -> None:
    weights, out = Path(args.weights), Path(args.out)
    if args.method == "svm" and not args.reader:
        raise ValueError("--method svm needs --reader, the classifier that labelled the latents.")
    encoder = load_component(PortraitEncoder, weights / "encoder", torch.float32)
    generator = load_component(TriPlaneGenerator, weights / "generator", torch.float32).to(args.device).eval()
    named = ("logits", "attribute_names") if args.method == "svm" else ()
    latents = open_arrays(args.latents, ("w", *named), "python -m train.manifold")
    if args.scores == "labels" and "labels" not in latents:
        raise ValueError(f"--scores labels needs latents of labelled photos; those of {args.latents} have no labels.")
    w = latents["w"].astype(np.float32)
    space = str(latents["space"]) if "space" in latents else "inversion"
    kind, network = ("encoder", encoder) if space == "inversion" else ("generator", generator)
    if "network" in latents and str(latents["network"]) != fingerprint(network):
        raise ValueError(f"{args.latents} was made with another {kind}; run `python -m train.manifold` again.")
    report, left_out = {}, {}
    if args.method == "svm":
        found, report, left_out = classified(latents, args, generator)
    else:
        found = unlabelled(w, args, generator)

    vectors = torch.stack([one.vector for one in found])
    between = [[round(value, 3) for value in row] for row in cosines(vectors).tolist()]
    directions = Directions(
        names=[one.key for one in found],
        labels=[one.label for one in found],
        groups=[one.group for one in found],
        accuracies=[one.accuracy and round(one.accuracy, 4) for one in found],
        safe_range=[[-one.reach, one.reach] for one in found],
        num_ws=w.shape[1],
        w_dim=w.shape[2],
        space=space,
        fingerprint=fingerprint(encoder, generator),
        sigmas=[round(one.sigma, 5) for one in found],
        cosines=between,
        left_out=left_out,
    )
    directions.vectors.copy_(vectors)
    directions.half().save_pretrained(out)
    for one, row in zip(found, between):
        nearest = sorted(zip(row, directions.names), key=lambda pair: -abs(pair[0]))
        report.setdefault(one.key, {})["cosines"] = {name: value for value, name in nearest if name != one.key}
    summary = {
        "method": args.method,
        "space": space,
        "scores": args.scores,
        "latents": len(w),
        "heads": args.heads,
        "seed": args.seed,
        "fingerprint": directions.config.fingerprint,
        "left_out": left_out,
        "directions": report,
    }
    with whole_file(out.with_suffix(".json")) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    for key, reason in left_out.items():
        print(f"`{key}` is left out. {reason}")
    print(f"{len(found)} directions in {out} ({space}, {args.method}).")


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.directions")
    parser.add_argument("--weights", required=True, help="pipeline folder with encoder/ and generator/")
    parser.add_argument("--reader", help="folder made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument("--latents", required=True, help="made by `python -m train.manifold`")
    parser.add_argument("--out", required=True, help="the pipeline's directions/ folder")
    parser.add_argument(
        "--method", choices=("svm", "pca", "sefa"), default="svm", help="the last two need no classifier"
    )
    parser.add_argument("--components", type=int, default=10, help="directions of --method pca or sefa")
    parser.add_argument(
        "--scores",
        choices=("classifier", "labels"),
        default="classifier",
        help="what sorts the latents: the classifier's logits on the photos, as in the paper, or the true labels",
    )
    parser.add_argument("--extremes", type=int, default=1000, help="latents taken from either end of the score")
    parser.add_argument(
        "--costs", type=float, nargs="+", default=(0.1, 1.0, 10.0),
        help="the SVM's C over the number of latents; of several, the one whose edits are cleanest is taken",
    )  # fmt: skip
    parser.add_argument("--heads", type=int, default=16, help="heads that are edited and rendered to calibrate")
    parser.add_argument(
        "--plain", action="store_true",
        help="the paper's protocol and no more: the most accurate normals, not screened, nothing taken out",
    )  # fmt: skip
    parser.add_argument(
        "--protect", nargs="*", default=[], metavar="NAME=OTHER,OTHER",
        help="conditional projection: the direction of NAME leaves the others' scores alone, e.g. age=eyeglasses",
    )  # fmt: skip
    parser.add_argument("--least-auc", type=float, default=0.8, help="of the classifier against the true labels")
    parser.add_argument(
        "--least-accuracy", type=float, default=0.9, help="of the plane on held-out latents; others are left out"
    )
    parser.add_argument(
        "--least-altering", type=float, default=0.6, help="likewise, standard deviations at strength 1"
    )
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the trials")
    return run_stage("train.directions", train, parser.parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
