r"""Labelled latents -> named directions in calibrated units: linear SVMs in the inversion manifold (paper, 3.4 and
A.2).

    python -m train.directions --weights weights/heads --reader dataset/attributes/reader --latents latents.npz \
        --out weights/heads/directions

InterFaceGAN's protocol (Shen et al. 2020): of the labelled latents take the extremes of the classifier's score, split
70/30, fit a linear SVM; the direction is the unit normal of its plane. Then heads are edited, rendered and classified
again: the response to each direction tells which others it drags along (these are projected out where that helps,
section 3.4's conditional form) and how far to go for strength 1 = one standard deviation of the attribute's logit
over the photos. Makes OUT/ (config.json and safetensors, a pipeline component) and OUT/../directions.json
(accuracies, responses, cosines).

Of weights/heads/directions: 3000 inverted photos, `--heads 12 --least-altering 0.5`. Then, by hand: `mouth_open` was
fitted again with C = .03 in place of .003, and `big_nose` and `big_lips`, which the classifier cannot read, dropped;
`--least-accuracy` and `--least-auc` now leave such out."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from preim3d.directions import ATTRIBUTES, Directions, fingerprint
from preim3d.encoder import PortraitEncoder
from preim3d.generator import TriPlaneGenerator
from train.attributes import HeadReader, read_images
from train.batches import render_views


# Attributes that go together by definition: their labels share a cause, so moving one without the other is
# meaningless.
ALLIED = (
    {"Full_Beard", "Goatee", "Mustache", "No_Beard", "Sideburns", "5_o_Clock_Shadow"},
    {"Black_Hair", "Brown_Hair", "Blond_Hair", "Gray_Hair"},
    {
        "Bald",
        "Black_Hair",
        "Brown_Hair",
        "Blond_Hair",
        "Gray_Hair",
        "Bangs",
        "Long_Hair",
        "Straight_Hair",
        "Wavy_Hair",
    },
    {"Bald", "Receding_Hairline"},
    {"Wearing_Hat", "Bangs", "Receding_Hairline"},
    {"Smiling", "High_Cheekbones"},
    {"Chubby", "Double_Chin"},
    {"Eyeglasses", "Sunglasses"},
    {"Pale_Skin", "Dark_Skin"},
    {"Big_Nose", "Pointy_Nose"},
    {"Young", "Bags_Under_Eyes"},
)


@dataclass
class Boundary:
    """The plane between an attribute's extremes in W+."""

    normal: np.ndarray  # [num_ws,w_dim], unit length over all entries; towards more of the attribute
    accuracy: float  # on the 30 % that the SVM did not see
    sigma: float  # standard deviation of the latents along the normal
    correlation: float  # between the latents' place along the normal and the score
    taken: int  # latents that the SVM was fitted and validated on


class Manifold:
    """Latents [N,num_ws,w_dim] in their principal axes: the rows of one latent hardly differ, so that a few hundred
    numbers say all of it."""

    def __init__(self, w: np.ndarray, kept: float = 0.9999):  # share of the variance that the axes hold
        self.shape = w.shape[1:]
        flat = w.reshape(len(w), -1).astype(np.float64)
        flat -= flat.mean(0)
        variance, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
        variance, vectors = variance[::-1], vectors[:, ::-1]
        count = int(np.searchsorted(np.cumsum(variance) / variance.sum(), kept)) + 1
        self.axes = vectors[:, :count].T  # [q,num_ws*w_dim]
        self.coordinates = flat @ self.axes.T  # [N,q]


def fit_boundary(
    manifold: Manifold,
    score: np.ndarray,  # [N] the classifier's logit, or the label less .5: above 0 = has the attribute
    seed: int,
    extremes: int = 1500,  # At most so many of either end of the score.
    cost: float = 1.0,  # SVM's C on latents scaled to unit variance in the mean.
) -> Boundary:
    """Linear SVM between the highest and the lowest scores."""
    from sklearn.svm import LinearSVC

    order = np.argsort(score, kind="stable")
    # Rare attributes have fewer heads than `extremes`: never call a head without it one with it.
    most, least = (int(np.clip(n, 8, min(extremes, len(order) // 2))) for n in ((score > 0).sum(), (score < 0).sum()))
    chosen = np.concatenate([order[:least], order[-most:]])
    truth = np.concatenate([np.zeros(least, bool), np.ones(most, bool)])
    mixed = np.random.default_rng(seed).permutation(len(chosen))
    cut = int(0.7 * len(mixed))
    x, y = manifold.coordinates[chosen[mixed]] / manifold.coordinates.std(), truth[mixed]
    svm = LinearSVC(C=cost / len(x), loss="squared_hinge", dual=False, class_weight="balanced", intercept_scaling=10.0)
    svm.fit(x[:cut], y[:cut])
    accuracy = float((svm.predict(x[cut:]) == y[cut:]).mean())
    normal = svm.coef_[0] / np.linalg.norm(svm.coef_)
    places = manifold.coordinates @ normal
    correlation = float(np.corrcoef(places, score)[0, 1])
    return Boundary(
        (normal @ manifold.axes).reshape(manifold.shape), accuracy, float(places.std()), correlation, len(x)
    )


class EditTrial:
    """A few heads that are edited, rendered from the front and read again."""

    def __init__(self, generator: TriPlaneGenerator, reader: HeadReader, ws: Tensor, sigma: Tensor):
        self.generator, self.reader, self.ws = generator, reader, ws
        self.sigma = sigma  # [A] standard deviation of each logit over the photos
        self.camera = generator.frontal_camera()
        self.before = self.logits(ws)  # [M,A]

    def logits(self, ws: Tensor) -> Tensor:
        return read_images(self.reader, render_views(self.generator, ws, self.camera)).logits

    def response(self, offset: Tensor) -> Tensor:
        """Mean change of each logit [A], in standard deviations, when all heads move by `offset` [num_ws,w_dim]."""
        return self.changes(offset).mean(0)

    def changes(self, offset: Tensor) -> Tensor:
        """The same for each head, [M,A]."""
        return (self.logits(self.ws + offset) - self.before) / self.sigma


def calibrate(
    trial: EditTrial,
    normal: Tensor,  # [num_ws,w_dim], unit length
    sigma_w: float,  # spread of the latents along it
    start: float,  # first guess of the step
    attribute: int,
    sign: int = 1,  # -1: the direction is to lower the logit
    rounds: int = 2,
    furthest: float = 6.0,  # steps longer than so many spreads leave the manifold
) -> tuple[Tensor, Tensor]:
    """The step [num_ws,w_dim] along the normal that moves the mean logit by one standard deviation (secant search),
    and the response to it [A]."""
    step = float(np.clip(start, 0.1 * sigma_w, furthest * sigma_w))
    below, gain_below = 0.0, 0.0
    for turn in range(rounds):
        response = trial.response(step * normal)
        gain = sign * response[attribute].item()
        if abs(gain - 1) < 0.05 or turn == rounds - 1:
            break
        slope = (gain - gain_below) / (step - below)
        below, gain_below = step, gain
        # A flat or falling response gives no secant: go on in doubles.
        following = step + (1 - gain) / slope if slope > 1e-3 / sigma_w else 2 * step
        step = float(np.clip(following, 0.1 * sigma_w, furthest * sigma_w))
    return step * normal, response


def allied(first: str, second: str) -> bool:
    return any(first in group and second in group for group in ALLIED)


def purify(
    vectors: dict[str, Tensor],  # CelebA name -> calibrated direction
    responses: dict[str, Tensor],  # CelebA name -> response to it [A]
    names: list[str],  # the A names of the response
    name: str,
    most: int = 3,
    least: float = 0.15,  # a drag below this is left alone
) -> Tensor:
    """The direction less those of the attributes that it drags along most, each in the measured amount."""

    def drag(other: str) -> float:
        column = names.index(other)
        own = responses[other][column].item()
        # A direction that hardly moves its own attribute must not be taken in large amounts.
        return responses[name][column].item() * np.sign(own) / max(abs(own), 0.5)

    drags = {other: drag(other) for other in vectors if other != name and not allied(name, other)}
    worst = sorted((other for other in drags if abs(drags[other]) > least), key=lambda other: -abs(drags[other]))
    return vectors[name] - sum(drags[other] * vectors[other] for other in worst[:most])


def readable(latents, column: int, least_auc: float) -> bool:
    """Whether the classifier tells this attribute on photos at all: else its direction would be of chance."""
    from sklearn.metrics import roc_auc_score

    truth = latents["labels"][:, column] > 0.5
    return 0 < truth.sum() < len(truth) and roc_auc_score(truth, latents["logits"][:, column]) >= least_auc


def along(w: np.ndarray, unit: Tensor) -> np.ndarray:
    """Places [N] of latents [N,num_ws,w_dim] along a unit direction [num_ws,w_dim]."""
    return np.einsum("nkd,kd->n", w, unit.numpy())


def dependency(response: Tensor, attribute: int) -> float:
    """Mean absolute response of the other attributes, per unit of the edited one: AD at AA = 1."""
    others = torch.arange(len(response)) != attribute
    return (response[others].abs().mean() / response[attribute].abs().clamp(min=0.1)).item()


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    weights, out = Path(args.weights), Path(args.out)
    encoder = PortraitEncoder.from_pretrained(weights / "encoder").float().to(args.device).eval()
    generator = TriPlaneGenerator.from_pretrained(weights / "generator").float().to(args.device).eval()
    reader = HeadReader.from_pretrained(args.reader).float().to(args.device).eval()
    latents = np.load(args.latents)
    names = [str(name) for name in latents["attribute_names"]]
    w, logits = latents["w"].astype(np.float32), latents["logits"].astype(np.float32)
    scores = latents["labels"] - 0.5 + 1e-3 * logits if args.scores == "labels" else logits
    sigma = torch.from_numpy(logits.std(0))
    rng = np.random.default_rng(args.seed)
    heads = torch.from_numpy(w[rng.choice(len(w), args.heads, replace=False)])
    trial = EditTrial(generator, reader, heads, sigma)

    wanted = {key: attribute for key, attribute in ATTRIBUTES.items() if attribute.celeba in names}
    if "labels" in latents:
        wanted = {key: a for key, a in wanted.items() if readable(latents, names.index(a.celeba), args.least_auc)}
    manifold = Manifold(w)
    boundaries, vectors, responses = {}, {}, {}
    for attribute in tqdm(wanted.values(), desc="directions"):
        name, column = attribute.celeba, names.index(attribute.celeba)
        tried = []
        for cost in args.costs:
            boundary = fit_boundary(manifold, scores[:, column], args.seed, cost=cost)
            normal = torch.from_numpy(boundary.normal).float() * attribute.sign
            # On the photos themselves a logit moves by correlation * sigma for each spread of the latents.
            guess = boundary.sigma / max(boundary.correlation, 0.3)
            vector, response = calibrate(trial, normal, boundary.sigma, guess, column, attribute.sign)
            # Strong regularisation joins the class means, weak finds the thinnest wall between them: which of them
            # edits more cleanly is measured, not guessed.
            reached = min(attribute.sign * response[column].item(), 0.8)
            tried.append((reached, -dependency(response, column), boundary, vector, response))
        *_, boundaries[name], vectors[name], responses[name] = max(tried, key=lambda row: row[:2])

    report, kept = {}, []
    for key, attribute in tqdm(wanted.items(), desc="purifying"):
        name, column, boundary = attribute.celeba, names.index(attribute.celeba), boundaries[attribute.celeba]
        vector, response = vectors[name], responses[name]
        plain_ad = dependency(response, column)
        purer = purify(vectors, responses, names, name) if args.purify else vector
        if not torch.equal(purer, vector):
            unit = purer / purer.norm()
            spread = along(w, unit).std()
            purer, purer_response = calibrate(trial, unit, spread, purer.norm().item(), column, attribute.sign)
            if dependency(purer_response, column) < plain_ad and attribute.sign * purer_response[column] > 0.7:
                vector, response = purer, purer_response
        places = along(w, vector / vector.norm())
        # As many strengths as lead from one end of the manifold to the other, within what the sliders offer.
        # In halves, which read well on a slider, and never less than an edit that is worth making.
        reach = float(np.clip(round(2 * np.ptp(np.percentile(places, (1, 99))) / vector.norm().item()) / 2, 2.0, 4.0))
        report[key] = {
            "attribute": name,
            "accuracy": round(boundary.accuracy, 4),
            "taken": boundary.taken,
            "sigma_logit": round(sigma[column].item(), 4),
            "sigma_w": round(boundary.sigma, 5),
            "step": round(vector.norm().item(), 5),
            "aa": round(attribute.sign * response[column].item(), 3),
            "ad": round(dependency(response, column), 3),
            "ad_plain": round(plain_ad, 3),
            "reach": round(reach, 2),
        }
        if boundary.accuracy >= args.least_accuracy and report[key]["aa"] >= args.least_altering:
            kept.append((key, attribute, vector, boundary.accuracy, (-reach, reach)))
        else:
            print(f"`{key}` is left out: accuracy {boundary.accuracy:.2f}, altering {report[key]['aa']:.2f}.")

    if not kept:
        raise SystemExit("No direction is good enough: train encoder and generator longer, or lower --least-accuracy.")
    directions = Directions(
        names=[key for key, *_ in kept],
        labels=[attribute.label for _, attribute, *_ in kept],
        groups=[attribute.group for _, attribute, *_ in kept],
        accuracies=[round(accuracy, 4) for *_, accuracy, _ in kept],
        safe_range=[[round(x, 2) for x in reach] for *_, reach in kept],
        num_ws=w.shape[1],
        w_dim=w.shape[2],
        space="inversion",
        fingerprint=fingerprint(encoder, generator),
    )
    directions.vectors.copy_(torch.stack([vector for _, _, vector, *_ in kept]))
    directions.half().save_pretrained(out)
    units = torch.stack([vector.flatten() / vector.norm() for _, _, vector, *_ in kept])
    for (key, *_), row in zip(kept, units @ units.T):
        cosines = {other: round(value, 3) for (other, *_), value in zip(kept, row.tolist()) if other != key}
        report[key]["cosines"] = dict(sorted(cosines.items(), key=lambda item: -abs(item[1]))[:5])
    summary = {
        "space": "inversion",
        "scores": args.scores,
        "latents": len(w),
        "heads": args.heads,
        "seed": args.seed,
        "fingerprint": directions.config.fingerprint,
        "left_out": sorted(set(wanted) - {key for key, *_ in kept}),
        "directions": report,
    }
    out.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{len(kept)} directions in {out}; mean AD per unit {np.mean([report[k]['ad'] for k, *_ in kept]):.3f}.")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="pipeline folder with encoder/ and generator/")
    parser.add_argument("--reader", required=True, help="folder made by `python -m train.attributes` (OUT/reader)")
    parser.add_argument("--latents", required=True, help="made by `python -m train.manifold`")
    parser.add_argument("--out", required=True, help="the pipeline's directions/ folder")
    parser.add_argument(
        "--scores",
        choices=("classifier", "labels"),
        default="classifier",
        help="what sorts the latents: the classifier's logits on the photos, as in the paper, or the true labels",
    )
    parser.add_argument(
        "--costs", type=float, nargs="+", default=(0.003, 0.1, 1.0),
        help="the SVM's C over the number of latents; of several, the one whose edits are cleanest is taken",
    )  # fmt: skip
    parser.add_argument("--heads", type=int, default=16, help="heads that are edited and rendered to calibrate")
    parser.add_argument("--purify", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--least-auc", type=float, default=0.8, help="of the classifier against the true labels")
    parser.add_argument("--least-accuracy", type=float, default=0.7, help="directions below are left out")
    parser.add_argument(
        "--least-altering", type=float, default=0.6, help="likewise, standard deviations at strength 1"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args(words))


if __name__ == "__main__":
    main()
