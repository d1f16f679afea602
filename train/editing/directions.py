r"""Labelled latents -> named directions in calibrated units (paper, 3.4 and A.2).

    python -m train.directions --weights weights/faces --reader runs/attributes/reader --latents runs/latents.npz \
        --pairs runs/pairs.npz --photos dataset/photos --out weights/faces/directions
    python -m train.directions --method pca --weights weights/cats --latents cats.npz --out weights/cats/directions

InterFaceGAN's protocol (Shen et al. 2020): of the labelled latents take the extremes, split 70/30, fit a linear SVM;
the direction is its boundary's unit normal, the pattern behind it, or the way from those without to those with it.
People are weighed so that age does not bring sex along, and the like. What photos have no labels for comes from pairs
of rendered heads. Then heads are edited, rendered and classified again: the response tells which candidate edits most
cleanly, which other attributes it drags along (these are taken out where that helps; `--plain` does neither), how far
to go for strength 1 = one standard deviation of the attribute's logit over the photos, and dlib's network how far one
may go before it is someone else. At last each is judged at strengths 2 and -2 on photos that were held back from all
training, and left out where it fails. Latents of inverted photos give directions in the inversion manifold, latents of
generated samples (`python -m train.manifold --samples N`) the original space's, for comparison. `--method stylespace`
(channels of S space) and `--method styleflow` (a normalising flow) learn what else the paper compares with, in folders
of their own kind, for `python -m train.editing.edit_methods`; the page does not read them. Without a classifier
`--method pca` (GANSpace, on any latents) and `--method sefa` (the generator's own factors) give unnamed directions, in
standard deviations of w. Makes OUT/ (config.json and safetensors, a pipeline component) and OUT/../directions.json
(accuracies, responses, cosines, what was left out and why)."""

import argparse
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preim3d.camera import camera_from_angles
from preim3d.directions import ATTRIBUTES, Directions, cosines, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.files import whole_file
from preim3d.generator import TriPlaneGenerator
from preim3d.identity import FaceIdentity
from preim3d.options import whole_number
from preim3d.pipeline import load_component
from preim3d.reader import HeadReader
from train.editing import styleflow, stylespace
from train.editing.boundaries import PrincipalAxes, closed_form_factors, principal_components
from train.editing.calibration import PURE_LADDER, EditTrial, calibrate, dependency, hold_identity, purify
from train.editing.candidates import find, read_pairs
from train.judging.classifier import READER_HELP, AttributeClassifier, load_reader
from train.loop.arrays import open_arrays
from train.loop.options import run_stage, stage_parser
from train.loop.precision import Precision, settle
from train.photos.real_photos import RealPhotos


SCREENED = 3  # heads on which the candidates for one attribute are compared
JUDGED_STRENGTH = 2.0
# How far, in dlib's distance, strength 2 may lead from the person: on two photos of one person it is .26, of strangers
# .8; below .6 dlib calls two faces the same. Expressions, colours and things worn leave the person alone; age, sex,
# beards and shapes are part of who it is.
MOST_DISTANCE, MOST_DISTANCE_OF_SHAPES = 0.45, 0.6
KEEPS_THE_PERSON = {"Expression", "Make-up", "Things worn"}
KEEPS_THE_PERSON_KEYS = {"black_hair", "brown_hair", "blond_hair", "grey_hair"}
SHORTER = 0.92  # of those limits on the heads that it is calibrated on: others are not quite like them


@dataclass
class Found:
    """One calibrated direction."""

    key: str
    label: str
    group: str
    vector: Tensor  # [num_ws, w_dim]: strength 1
    accuracy: float | None
    sigma: float  # of the latents along it
    reach: float  # strengths of -reach .. reach stay in the manifold


def reach(principal: PrincipalAxes, vector: Tensor) -> float:
    """As many strengths as lead from one end of the manifold to the other, within what the sliders offer.

    In halves, which read well on a slider, and never less than an edit that is worth making."""
    places = principal.along((vector / vector.norm()).numpy())
    return float(np.clip(round(2 * np.ptp(np.percentile(places, (1, 99))) / vector.norm().item()) / 2, 2.0, 4.0))


def limit(key: str) -> float:
    keeps = ATTRIBUTES[key].group in KEEPS_THE_PERSON or key in KEEPS_THE_PERSON_KEYS
    return MOST_DISTANCE if keeps else MOST_DISTANCE_OF_SHAPES


def cameras_of(generator: TriPlaneGenerator, angles: np.ndarray | None, count: int) -> Tensor:
    """[count, 25]: the photos' own, or from the front."""
    if angles is None:
        return generator.frontal_camera().cpu().expand(count, -1)
    return camera_from_angles(*torch.from_numpy(angles).float().T)


def training_trial(latents, args: argparse.Namespace, generator: TriPlaneGenerator) -> EditTrial:
    """`--heads` of the latents, on which edits are tried."""
    reader = load_reader(args.reader, args.device)
    identity = None  # of weights that do not say who is who, as those of cats
    if (Path(args.weights) / "identity").is_dir():
        identity = load_component(FaceIdentity, Path(args.weights) / "identity", torch.float32).to(args.device).eval()
    if [str(name) for name in latents["attribute_names"]] != list(reader.config.attribute_names):
        raise ValueError(f"{args.latents} was labelled by another classifier than {args.reader}; make it again.")
    w = latents["w"].astype(np.float32)
    # A logit that never varies must not divide by nothing.
    sigma = torch.from_numpy(latents["logits"].astype(np.float32).std(0)).clamp(min=1e-3)
    rows = np.random.default_rng(args.seed).choice(len(w), min(args.heads, len(w)), replace=False)
    sample = torch.from_numpy(w[rows[:8]]).to(args.device).requires_grad_()  # the measurement goes backwards too
    precision = settle(args.precision, generator.backbone.synthesis, sample)
    cameras = cameras_of(generator, latents["angles"][rows] if "angles" in latents else None, len(rows))
    return EditTrial(generator, reader, torch.from_numpy(w[rows]), sigma, precision, cameras, identity)


def classified(
    latents,
    args: argparse.Namespace,
    pairs: dict[str, tuple[np.ndarray, float]],  # of `read_pairs`
    trial: EditTrial,  # of some of the latents: what calibrates
    judge: EditTrial,  # of photos that were held back, or the same
    keys: Collection[str] = tuple(ATTRIBUTES),
) -> tuple[list[Found], dict, dict]:
    """Directions of `keys` by SVM or from pairs, a report of each, and name -> reason of those left out."""
    identity = trial.identity
    names = [str(name) for name in latents["attribute_names"]]
    principal = PrincipalAxes(latents["w"].astype(np.float32))
    candidates, left_out = find(latents, principal, pairs, args, keys)

    vectors, responses, chosen = {}, {}, {}
    for key, found in tqdm(candidates.items(), desc="directions", mininterval=5):
        attribute = ATTRIBUTES[key]
        column = names.index(attribute.celeba)
        tried = []
        for candidate in found if len(found) > 1 else []:
            # Each at about the length that it would be used with: of what moves as much, the cleanest is taken.
            unit = torch.from_numpy(candidate.unit).float()
            response = trial.effect(candidate.ladder[1] * candidate.spread * unit, SCREENED).response
            gain = attribute.sign * response[column].item()
            tried.append((min(gain, 0.8), -dependency(response, column)))
        best = candidates[key][max(range(len(tried)), key=tried.__getitem__)] if tried else found[0]
        chosen[key] = best
        unit = torch.from_numpy(best.unit).float()
        vectors[attribute.celeba], responses[attribute.celeba] = calibrate(
            trial, unit, best.spread, column, attribute.sign, best.ladder
        )

    kept, report = [], {}
    for key, candidate in tqdm(chosen.items(), desc="purifying", mininterval=5):
        attribute = ATTRIBUTES[key]
        name, column = attribute.celeba, names.index(attribute.celeba)
        vector, response = vectors[name], responses[name]
        plain_ad = dependency(response, column)
        # Pairs are clean by making: what seems to be dragged along is mostly the classifier's confusion.
        dirty = candidate.origin != "pairs" and not args.plain
        purer = purify(vectors, responses, names, name) if dirty else vector
        if not torch.equal(purer, vector):
            length = purer.norm().item()
            purer, purer_response = calibrate(trial, purer / length, length, column, attribute.sign, PURE_LADDER)
            gain = attribute.sign * response[column].item()
            enough = attribute.sign * purer_response[column].item() > min(0.7, 0.9 * gain)
            if enough and dependency(purer_response, column) < plain_ad:
                vector, response = purer, purer_response
        if identity and not args.plain:
            vector = hold_identity(trial, vector, SHORTER * limit(key))
        boundary = candidate.boundary
        report[key] = {
            "attribute": name,
            "learned_from": candidate.origin,
            "accuracy": boundary and round(boundary.accuracy, 4),
            "taken": boundary and boundary.taken,
            "sigma_w": round(float(principal.along((vector / vector.norm()).numpy()).std()), 5),
            "step": round(vector.norm().item(), 5),
            "aa": round(attribute.sign * response[column].item(), 3),
            "ad": round(dependency(response, column), 3),
            "ad_plain": round(plain_ad, 3),
            "reach": reach(principal, vector),
        }
        accuracy = boundary and boundary.accuracy
        spread, far = report[key]["sigma_w"], report[key]["reach"]
        kept.append(Found(key, attribute.label, attribute.group, vector, accuracy, spread, far))

    found = []
    for one in tqdm(kept, desc="judging", mininterval=5):
        attribute = ATTRIBUTES[one.key]
        column = names.index(attribute.celeba)
        figures = judged(judge, one.vector, column, attribute.sign)
        if not args.plain and figures.get("distance_plus", 0) > limit(one.key):
            # These people leave themselves sooner than those that it was calibrated on.
            one.vector = one.vector * (SHORTER * limit(one.key) / figures["distance_plus"])
            figures = judged(judge, one.vector, column, attribute.sign)
        report[one.key] |= figures | {"step": round(one.vector.norm().item(), 5)}
        reason = args.leave_out.get(one.key) or failing(one.key, report[one.key], args)
        if reason:
            left_out[one.key] = reason
        else:
            found.append(one)
    if not found:
        raise ValueError("No direction is good enough: train encoder and generator longer, or lower --least-altering.")
    return found, report, left_out


def held_trial(
    photos: RealPhotos,
    count: int,
    encoder: PortraitEncoder,
    generator: TriPlaneGenerator,
    reader: HeadReader | AttributeClassifier,
    sigma: Tensor,
    precision: Precision,
    identity: FaceIdentity | None,
    cameras: Tensor | None = None,  # [N, 25]; None = the photos' own
) -> EditTrial:
    """Photos that were held back from all training, as many whole ones as windows."""
    rows = held_rows(photos, count)
    size = encoder.config.input_size
    with torch.no_grad():
        crops = F.interpolate(photos.crops(rows), (size, size), mode="area").to(encoder.device)
        ws = torch.cat([encoder(part) for part in crops.split(8)]).cpu()
    cameras = cameras_of(generator, photos.pose[rows], len(rows)) if cameras is None else cameras
    return EditTrial(generator, reader, ws, sigma, precision, cameras, identity)


def held_rows(photos: RealPhotos, count: int) -> np.ndarray:
    """As many whole photos as windows, drawn from those that were held back."""
    rng = np.random.default_rng(0)
    whole, windows = (rng.permutation(np.nonzero(photos.held & kind)[0]) for kind in (photos.full, ~photos.full))
    return np.concatenate([whole[: count - count // 2], windows[: count // 2]])


def judged(judge: EditTrial, vector: Tensor, column: int, sign: int) -> dict[str, float]:
    """What strengths of 2 and -2 do: AA, AD, dlib's distance from the person."""
    figures = {}
    for side, strength in (("plus", JUDGED_STRENGTH), ("minus", -JUDGED_STRENGTH)):
        response, distance = judge.effect(strength * vector)
        others = torch.arange(len(response)) != column
        figures[f"aa_{side}"] = round(np.sign(strength) * sign * response[column].item(), 3)
        figures[f"ad_{side}"] = round(response[others].abs().mean().item(), 3)
        if judge.identity:
            figures[f"distance_{side}"] = round(distance, 3)
    return figures


def failing(key: str, figures: dict, args: argparse.Namespace) -> str | None:
    """Why the slider does not do what it says; None if it does."""
    # Who has it already can only lose it.
    altering = max(figures["aa_plus"], (figures["aa_plus"] + figures["aa_minus"]) / 2)
    if altering < args.least_altering:
        return f"Strength 2 moves the logit by {altering:.2f} deviations, less than {args.least_altering}."
    if figures.get("distance_plus", 0) > limit(key) and not args.plain:
        return f"Strength 2 makes it another person (dlib's distance {figures['distance_plus']:.2f})."
    return None


def unlabelled(w: np.ndarray, args: argparse.Namespace, generator: TriPlaneGenerator) -> list[Found]:
    """Principal components or the generator's factors; strength 1 = one standard deviation of the latents."""
    principal = PrincipalAxes(w)
    if args.method == "pca":
        units, _ = principal_components(w, args.components)
    else:
        units = closed_form_factors(generator.cpu(), args.components).numpy()
    found = []
    for number, unit in enumerate(units, 1):
        sigma = float(principal.along(unit).std())
        label = f"{'Component' if args.method == 'pca' else 'Factor'} {number}"
        vector = torch.from_numpy(unit * sigma).float()
        found.append(Found(f"{args.method}_{number}", label, "Unnamed", vector, None, sigma, 3.0))
    return found


def train(args: argparse.Namespace) -> None:
    weights, out = Path(args.weights), Path(args.out)
    if args.method in ("svm", "stylespace") and not args.reader:
        raise ValueError(f"--method {args.method} needs --reader, the classifier that labelled the latents.")
    encoder = load_component(PortraitEncoder, weights / "encoder", torch.float32)
    generator = load_component(TriPlaneGenerator, weights / "generator", torch.float32).to(args.device).eval()
    named = () if args.method in ("pca", "sefa") else ("logits", "attribute_names")
    latents = open_arrays(args.latents, ("w", *named), "python -m train.manifold")
    space = str(latents["space"]) if "space" in latents else "inversion"
    kind, network = ("encoder", encoder) if space == "inversion" else ("generator", generator)
    if "network" in latents and str(latents["network"]) != fingerprint(network):
        raise ValueError(f"{args.latents} was made with another {kind}; run `python -m train.manifold` again.")
    about = {"space": space, "fingerprint": fingerprint(encoder, generator)}
    left_out = {}
    if args.method == "stylespace":
        trial = training_trial(latents, args, generator)
        learned, report, left_out = stylespace.learn(latents, trial, generator, args.attributes, about)
        learned = learned.half()
    elif args.method == "styleflow":
        # In full precision: the solver goes back the way it came.
        learned, report = styleflow.learn(latents, args.attributes, args.steps, args.seed, about)
    else:
        learned, report, left_out = linear(latents, args, encoder, generator, about)
    learned.save_pretrained(out)
    summary = {
        "method": args.method,
        "space": space,
        "latents": len(latents["w"]),
        "heads": args.heads,
        "seed": args.seed,
        "fingerprint": about["fingerprint"],
        "left_out": left_out,
        "directions": report,
    }
    with whole_file(out.with_suffix(".json")) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    for key, reason in left_out.items():
        print(f"`{key}` is left out. {reason}")
    print(f"{len(learned.names)} directions in {out} ({space}, {args.method}).")


def linear(
    latents, args: argparse.Namespace, encoder: PortraitEncoder, generator: TriPlaneGenerator, about: dict[str, str]
) -> tuple[Directions, dict, dict]:
    """Directions in w, a report of each, and name -> reason of those left out."""
    w = latents["w"].astype(np.float32)
    report, left_out = {}, {}
    if args.method == "svm":
        pairs = read_pairs(args.pairs, fingerprint(encoder))
        judge = trial = training_trial(latents, args, generator)
        if args.photos:
            networks = trial.reader, trial.sigma, trial.precision, trial.identity
            judge = held_trial(RealPhotos(args.photos), args.judged, encoder, generator, *networks)
        found, report, left_out = classified(latents, args, pairs, trial, judge)
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
        sigmas=[round(one.sigma, 5) for one in found],
        cosines=between,
        left_out=left_out,
        **about,
    )
    directions.vectors.copy_(vectors)
    for one, row in zip(found, between):
        nearest = sorted(zip(row, directions.names), key=lambda pair: -abs(pair[0]))
        report.setdefault(one.key, {})["cosines"] = {name: value for value, name in nearest if name != one.key}
    return directions.half(), report, left_out


def main(words: list[str] | None = None) -> int:
    parser = stage_parser(__doc__, "train.directions")
    parser.add_argument("--weights", required=True, help="pipeline folder with encoder/ and generator/")
    parser.add_argument("--reader", help=READER_HELP)
    parser.add_argument("--latents", required=True, help="made by `python -m train.manifold`")
    parser.add_argument("--out", required=True, help="the pipeline's directions/ folder")
    parser.add_argument(
        "--method", choices=("svm", "stylespace", "styleflow", "pca", "sefa"), default="svm",
        help="the last two need no classifier",
    )  # fmt: skip
    parser.add_argument(
        "--attributes", nargs="+", metavar="NAME",
        help="of --method stylespace or styleflow; default: the first 8 or 17 that the classifier knows",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=whole_number(1), help="of training, with --method styleflow; default: 20 times through"
    )
    parser.add_argument("--components", type=int, default=10, help="directions of --method pca or sefa")
    parser.add_argument("--extremes", type=int, default=2500, help="latents taken from either end of the score")
    parser.add_argument(
        "--costs", type=float, nargs="+", default=(0.1, 10.0),
        help="the SVM's C over the number of latents; of several, the one whose edits are cleanest is taken",
    )  # fmt: skip
    parser.add_argument("--heads", type=int, default=8, help="heads that are edited and rendered to calibrate")
    parser.add_argument(
        "--plain", action="store_true",
        help="the paper's protocol and no more: the most accurate normals, not screened, nothing taken out",
    )  # fmt: skip
    parser.add_argument("--pairs", help="offsets of rendered pairs, made by `python -m train.pairs`")
    parser.add_argument("--photos", help="folder of packed photos: directions are judged on those that are held back")
    parser.add_argument("--judged", type=int, default=16, help="how many of them")
    parser.add_argument(
        "--leave-out", nargs="*", default=[], metavar="NAME=REASON",
        help="directions that a person who looked at them found wanting",
    )  # fmt: skip
    parser.add_argument("--least-auc", type=float, default=0.65, help="of the classifier against the true labels")
    parser.add_argument(
        "--least-accuracy", type=float, default=0.57, help="of the boundary on held-out latents; others are left out"
    )
    parser.add_argument(
        "--least-altering", type=float, default=0.35, help="likewise, standard deviations of the logit at strength 2"
    )
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the trials")
    args = parser.parse_args(words)
    args.leave_out = dict(
        word.split("=", 1) if "=" in word else (word, "It was looked at.") for word in args.leave_out
    )
    return run_stage("train.directions", train, args)
