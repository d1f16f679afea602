"""Figures of an evaluation -> their mean over seeds, the protocol in words, tables shaped like the paper's."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preim3d.bench import GOALS_MB, GOALS_S, OF_IT
from preim3d.directions import ATTRIBUTES
from preim3d.inversion import STEPS
from train.judging.edit_figures import EDIT_STRENGTH, EQUAL_ALTERING, EQUAL_EDITS
from train.judging.evaluation import PERSON, Evaluation
from train.judging.inversion_figures import AMONG, BANDS_DEG, TIMED
from train.judging.inversions import EDITS


class Goal(NamedTuple):
    """One line of the table of goals."""

    words: str
    path: tuple[str, ...]  # where it stands in the figures
    goal: str
    digits: int = 3

    def told(self, figures: dict) -> str:
        """The words; of FID, which shrinks with the number of pictures, that number too."""
        count = figures.get("fid_n")
        return f"{self.words} (n = {count:.0f})" if count and self.path[0].startswith("fid_") else self.words


GOALS = (
    Goal("identity distance, photo's camera", ("identity_own",), "at most 0.42"),
    Goal("identity distance, frontal view", ("identity_frontal",), "at most 0.45"),
    Goal("identity distance, strangers", ("identity_strangers",), ""),
    Goal(f"the right person is nearest among {AMONG}", (f"nearest_of_{AMONG}",), "0.90"),
    Goal("PSNR over the person, dB", ("person_psnr_db",), "21", 1),
    Goal("LPIPS-like over the person", ("lpips_like",), "", 4),
    Goal("FID, photo's camera", ("fid_ori",), "", 2),
    Goal("FID, large angles", ("fid_la",), "", 2),
    Goal("APD, rad", ("apd_rad",), "under 0.06"),
    *(
        Goal(f"{step.removeprefix(OF_IT)}, s", ("bench", "seconds", step), f"{goal:g}", 2)
        for step, goal in GOALS_S.items()
    ),
    *(Goal(f"peak memory, {of}, MB", ("bench", "peak_memory_mb", of), f"{goal}", 0) for of, goal in GOALS_MB.items()),
)
WAYS = {  # of `preim3d.inversion`, as Table 2 calls them
    "encoder": "Ours",
    "latent": "Latent optimisation",
    "pti": "Latent optimisation, then pivotal tuning (3D-Inv's way)",
    "hybrid": "Ours, then pivotal tuning (IDE-3D's way)",
    "z": "Encoder to Z (Pixel2NeRF's way)",
    "tuned": "Ours, the generator fine-tuned along (section E)",
}
TWO_POSES = {"samples": "of the generator, z drawn by lot", "photos": "inverted photos"}
INVERSION_HEAD = (
    "Method", "own camera", "grid", "20-30", f"nearest of {AMONG}", "PSNR", "APD", "KID_ori", "KID_la", "AA", "AD",
    "Time (s)",
)  # fmt: skip
EQUAL_GROUPS = 0.15  # how much worse than the mean a group may be before it must be said

PROTOCOL = """\
{n} photos of real people that neither generator nor encoder was trained on (of them {full} with hair and shoulders; \
the others, FairFace's, end at the hairline{mirrored}); {seeds}. Encoder: crop -> w{feedback}{detail} -> picture of \
256 px, 128 rays a side, before plain grey. Identity: {identity}, Euclidean distance of its embeddings of the crop as \
it is and of the picture; dlib calls two photos the same person's below .6. own: from the photo's camera (MediaPipe's \
pose); frontal; strangers: to the other photos; a-b: {views} per head, yaw uniform in [-b, -a] and [a, b], nominal \
pitch in [-20, 20] degrees (EG3D's pitch p: sin(elevation) = 2 p / pi), 0-30: {whole}. nearest_of_{among}: how often \
a reconstruction from the photo's camera is nearer to its own photo than to {rivals} others', mean over all groups \
that can be drawn. person_psnr_db: of [0, 1] RGB over the pixels inside the photo where the mask is over {person}, \
all photos together. lpips_like: distance of unit features of EfficientNet-Lite0 (all channels alike: not the \
published LPIPS) over the same pixels. APD: root mean squared error of yaw, pitch and roll in radians. {pose} reads \
yaw and pitch; roll is that of the turn which brings the photos' mean face nearest to the 120 points that it reads \
(Kabsch), which tells some three quarters of a lean. All cameras stand upright, so that the roll asked for is 0. \
apd_rad from the reconstruction at the photo's camera, against MediaPipe's pose of the photo; apd_sides_rad from the \
sides ({sides} pictures, those of 0-30), against the pose asked for; apd_of_photos_rad from the photos themselves. \
FID and KID: features of {fid}, of the square that dlib's network sees, reconstructions against photos before the \
same grey by their masks, n = {many} of each, {trained} of them photos of the training (ori: the photo's camera; sm, \
mid, la: |yaw| 15-20, 25-30, 35-40 and |pitch| 10-15, 15-20, 20-25 degrees, one view per head; first seed); they \
depend on n and on the network and cannot be compared with others'. Groups: FairFace's labels, up to {group_photos} \
photos each, held ones first, then photos of the training; first seed. two_poses: \
mean distance between two views of one head (same) and of two heads (others), each view from a camera of its own, \
|yaw| up to 30 and |pitch| up to 20 degrees; {samples} heads of the mapping network, z drawn from a normal \
distribution (samples), and the first {inverted} held photos' (photos). Time: median of {timed} runs, encode and \
generate one view."""

EDITS_PROTOCOL = """\
AA and AD: {edited} held photos, frontal view, strength {strength:+.0f}, logits of {classifier} over their standard \
deviation on the held photos; AD is the mean over the other {others} attributes; identity_edited: distance between \
the frontal views before and after."""

SPACES_PROTOCOL = """\
Spaces: directions of either space at the strength, up to 3, that gives AA {altered}, or the most that both reach; \
{n} photos, {trained} of them of the encoder's training but not of the directions', {seeds}, one view each, |yaw| up \
to 30 and |pitch| up to 20 degrees."""

COMPARED_PROTOCOL = "Ablation: {n} held photos, {seeds}, the same views of all encoders, identity as above."

SPACES = ("origin", "inversion")
PARTS = ("edits", "spaces", "compared")  # of the figures, with a protocol each: they can be measured apart


def protocol(evaluation: Evaluation) -> str:
    """The card: networks used, views, pitch convention, strengths, n."""
    args, subjects = evaluation.args, evaluation.subjects
    count = len(evaluation.heads.ws)
    return PROTOCOL.format(
        n=count,
        full=int(subjects.photos.full[subjects.held].sum()),
        feedback=""
        if evaluation.feedback is None
        else f" -> {evaluation.feedback.config.steps} x feedback (train.feedback; camera and person as the face mesh "
        "network sees them)",
        detail="" if evaluation.detail is None else ", planes tuned in one pass (train.detail)",
        seeds=about_seeds(args),
        identity=f"{Path(args.identity).name} (given by the user)" if args.identity else "dlib's network",
        mirrored=f"; {count // 2} photos, and each of them mirrored, compared with other mirrored ones"
        if args.mirror
        else "",
        views=f"{args.views} views" if args.views else "one view",
        whole=f"{args.views} more views per head, yaw uniform in [-30, 30]"
        if args.views
        else "mean of the three bands",
        sides=count * (args.views or len(BANDS_DEG)),
        samples=args.two_poses,
        inverted=min(args.two_poses, count),
        among=AMONG,
        rivals=AMONG - 1,
        person=PERSON,
        pose="The network of train.landmarks (learned from MediaPipe's poses)",
        fid=f"{Path(args.fid_network).name} (given by the user)"
        if args.fid_network
        else "EfficientNet-Lite0 (pooled, 1/16)",
        many=len(subjects.many),
        trained=len(subjects.many) - len(subjects.held),
        group_photos=args.group_photos,
        timed=TIMED,
    )


def edits_protocol(evaluation: Evaluation) -> str:
    """How edits were measured: alone, or with the rest."""
    args = evaluation.args
    return EDITS_PROTOCOL.format(
        edited=min(args.edited, len(evaluation.subjects.held)),
        strength=EDIT_STRENGTH,
        classifier=f"{Path(args.reader).name} (a ResNet-50, given by the user)"
        if Path(args.reader).is_file()
        else "train.attributes' network",
        others=len(evaluation.reader.config.attribute_names) - 1,
    )


def spaces_protocol(evaluation: Evaluation) -> str:
    """How two spaces were compared."""
    args, photos = evaluation.args, evaluation.subjects.photos
    rows = evaluation.subjects.many[: args.origin_photos]
    trained = int((~photos.held[rows]).sum())
    return SPACES_PROTOCOL.format(altered=EQUAL_ALTERING, n=len(rows), trained=trained, seeds=about_seeds(args))


def compared_protocol(evaluation: Evaluation) -> str:
    """How other encoders were compared."""
    return COMPARED_PROTOCOL.format(n=len(evaluation.subjects.held), seeds=about_seeds(evaluation.args))


def about_seeds(args: argparse.Namespace) -> str:
    seeds = ", ".join(map(str, args.seeds))
    return f"seed {seeds}" if len(args.seeds) == 1 else f"seeds {seeds}, mean; +-: largest less smallest"


def average(by_seed: list[dict]) -> dict:
    """Figures of one seed as they are (rounded); of several, their mean, and under `spread` largest less smallest."""

    def over(values: list, combine) -> object:
        first = values[0]
        if isinstance(first, dict):
            return {key: over([value[key] for value in values if key in value], combine) for key in first}
        if any(not isinstance(value, int | float) for value in values):
            return first  # null: could not be measured
        return round(combine(values), 4)

    # A count that is the same for all seeds stays a whole number.
    figures = over(by_seed, lambda values: values[0] if len(set(values)) == 1 else sum(values) / len(values))
    if len(by_seed) > 1:
        # What is long to measure is measured once, and has none.
        often = [{key: found[key] for key in by_seed[0] if key in by_seed[-1]} for found in by_seed]
        figures["spread"] = over(often, lambda values: max(values) - min(values))
    return figures


def worst_group(groups: dict) -> dict | None:
    """The group with the least likeness, and by what share its distance is above the mean of the groups."""
    if not groups:
        return None
    name = max(groups, key=lambda name: groups[name]["identity_own"])
    mean = float(np.mean([group["identity_own"] for group in groups.values()]))
    return {"name": name, "mean": round(mean, 4), "above_mean": round(groups[name]["identity_own"] / mean - 1, 4)}


def compared_before(earlier: dict, figures: dict) -> dict:
    """The figures of earlier weights for the table of goals; FID only if it was measured on as many photos, APD only
    if of as many angles."""
    names = {goal.path[0] for goal in GOALS}
    if earlier.get("pose_angles") != figures.get("pose_angles"):
        names -= {"apd_rad"}
    if earlier.get("fid_n") != figures["fid_n"]:
        names -= {"fid_ori", "fid_la"}
    return {name: value for name, value in earlier.items() if name in names}


def number_at(figures: dict, path: tuple[str, ...]) -> float | None:
    for key in path:
        figures = figures.get(key) if isinstance(figures, dict) else None
    return figures if isinstance(figures, int | float) else None


def tables(figures: dict, accuracies: dict[str, float | None]) -> str:
    """Goals; Tables 2, 3, 4, 5 and 7 of the paper; groups of people; all sliders. What was not measured is a dash.

    `accuracies`: of the linear classifiers behind the sliders."""
    spread = figures.get("spread", {})

    def cell(*path: str, digits: int = 3) -> str:
        value, range_ = number_at(figures, path), number_at(spread, path)
        if value is None:
            return "-"
        return f"{value:.{digits}f}" + (f" ± {range_:.{digits}f}" if range_ is not None else "")

    before = figures.get("before", {})
    rows_goals = []
    for goal in GOALS:
        earlier = number_at(before, goal.path)
        told = "-" if earlier is None else f"{earlier:.{goal.digits}f}"
        rows_goals.append([goal.told(figures), told, cell(*goal.path, digits=goal.digits), goal.goal or "-"])
    columns_2 = ("identity_own", "identity_0_30", "identity_20_30")
    rows_2 = [["Ours", *(cell(c) for c in columns_2), cell("apd_sides_rad"), cell("time_s")]]
    edits = ("age", "smile", "eyeglasses")
    rows_3 = [
        [metric, *(cell(path, key, digits=digits) for key in edits)]
        for metric, path, digits in (("identity distance", "identity_edited", 3), ("AA", "aa", 2), ("AD", "ad", 2))
    ]
    columns_4 = ("identity_own", "identity_0_10", "identity_10_20", "identity_20_30", "identity_0_30")
    rows_4 = [[name, *(cell("compared", name, c) for c in columns_4)] for name in figures.get("compared", {})]
    spaces = figures.get("spaces", {})
    rows_5 = [
        [key, *(cell("spaces", key, space, metric, digits=2) for metric in ("aa", "ad") for space in SPACES)]
        for key in spaces
        if key in EQUAL_EDITS  # the others are for Figure 8 only
    ]
    if rows_5:
        averages = [
            sum(spaces[row[0]][space][metric] for row in rows_5) / len(rows_5)
            for metric in ("aa", "ad")
            for space in SPACES
        ]
        rows_5.append(["mean", *(f"{value:.2f}" for value in averages)])
    columns_7 = ("fid_ori", "fid_sm", "fid_mid", "fid_la", "kid_la")
    rows_7 = [["Ours", *(cell(c, digits=4 if c == "kid_la" else 2) for c in columns_7)]]
    rows_poses = [
        [words, f"{row['n']:.0f}", cell("two_poses", name, "same"), cell("two_poses", name, "others")]
        for name, words in TWO_POSES.items()
        if (row := figures.get("two_poses", {}).get(name))
    ]
    rows_ways = [
        line
        for way, found in figures.get("inversions", {}).items()
        for line in (
            inversion_row(f"{WAYS[way]} (n = {found['n']:.0f})", ("inversions", way), cell),
            *(
                [inversion_row("Ours, on the same", ("inversions", way, "encoder"), cell)]
                if "encoder" in found
                else []
            ),
        )
    ]
    rows_groups = [
        [name, f"{group['n']:.0f}", f"{group['held']:.0f}", cell("groups", name, "identity_own")]
        for name, group in figures.get("groups", {}).items()
    ]
    rows_all = [
        [
            ATTRIBUTES[key].label if key in ATTRIBUTES else key,
            f"{accuracies[key]:.3f}" if accuracies.get(key) else "-",
            *(cell(m, key, digits=2) for m in ("aa", "ad", "ad_per_aa", "identity_edited")),
        ]
        for key in figures.get("identity_edited", figures["aa"])
    ]
    parts = [
        ("Goals", ("measure", "before", "these weights", "goal"), rows_goals),
        (
            "Inversion (shaped like Table 2; distances: less is better)",
            ("Method", "own camera", "0-30", "20-30", "APD", "Time (s)"),
            rows_2,
        ),
        ("Ways of inversion (Tables 2, 3 and 7; distances: less is better)", INVERSION_HEAD, rows_ways),
        ("Editing (Table 3)", ("Metric", "Age", "Smile", "Eyeglasses"), rows_3),
        (
            "Ablation (Table 4; distances; encoders alone, without feedback and detail)",
            ("", "own camera", "0-10", "10-20", "20-30", "0-30"),
            rows_4,
        ),
        (
            "Two views of one head, from two cameras drawn by lot (section 4.3; distances)",
            ("heads", "n", "same head", "two heads"),
            rows_poses,
        ),
        (
            "Original space and inversion manifold at equal AA (Table 5)",
            ("", "AA origin", "AA inversion", "AD origin", "AD inversion"),
            rows_5,
        ),
        (fid_title(figures), ("Method", "FID_ori", "FID_sm", "FID_mid", "FID_la", "KID_la"), rows_7),
        ("Likeness by group (FairFace's labels)", ("group", "photos", "of them held", "own camera"), rows_groups),
        ("All sliders", ("slider", "accuracy", "AA", "AD", "AD / AA", "identity distance"), rows_all),
    ]
    text = [f"### {title}\n\n{table(head, rows)}" for title, head, rows in parts if rows]
    # Evaluations of before have one protocol for all.
    told = f"Protocol: {figures['protocol']}", *(figures.get(f"{part}_protocol") for part in PARTS)
    about = [*about_groups(figures), *about_reader(figures), *filter(None, told)]
    # Figures measured before ways had a protocol each have one for all.
    of_all = figures.get("inversions_protocol", "")
    about += dict.fromkeys(found.get("protocol", of_all) for found in figures.get("inversions", {}).values())
    return "\n\n".join([*text, *about])


def fid_title(figures: dict) -> str:
    count = figures.get("fid_n")
    return "FID and KID (Table 7)" + (f", n = {count:.0f} reconstructions against as many photos" if count else "")


def inversion_row(name: str, path: tuple[str, ...], cell: Callable[..., str]) -> list[str]:
    figures = ("identity_own", "identity_grid", "identity_20_30", f"nearest_of_{AMONG}", "person_psnr_db")
    parts = [cell(*path, figure, digits=1 if figure == "person_psnr_db" else 3) for figure in figures]
    parts += [cell(*path, "apd_sides_rad"), cell(*path, "kid_ori", digits=4), cell(*path, "kid_la", digits=4)]
    edits = [" / ".join(cell(*path, kind, edit, digits=2) for edit in EDITS) for kind in ("aa", "ad")]
    return [name, *parts, *edits, cell(*path, "time_s", digits=1)]


def inversions_protocol(args: argparse.Namespace) -> str:
    """How the ways of inversion were measured."""
    seeds = ", ".join(map(str, args.seeds))
    ways = ", ".join(way.method for way in args.inversion)
    optimised = any(way.folder is None and way.method != "encoder" for way in args.inversion)
    steps = (
        f" Steps: {STEPS['latent']} of latent, {STEPS['hybrid']} of tuning, which asks for dlib's identity itself:"
        " these distances are no judgement of a network that took no part."
    )
    learned = " z and tuned: networks of their own, see train/HISTORY.md."
    return (
        f"Ways of inversion ({ways}): {f'the first {args.photos} ' if args.photos else ''}held photos, evenly from all"
        f" sets, seed {seeds}; {args.threads} threads of"
        f" {args.device}, median seconds a photo from the crop on.{steps if optimised else ''}"
        f"{learned if any(way.folder for way in args.inversion) else ''}"
        " grid: the nine views; APD: of yaw, pitch and roll; AA and AD: age / smile / eyeglasses at"
        f" {EDIT_STRENGTH:+.0f}; KID against the same photos, n, whose number is small."
    )


def about_groups(figures: dict) -> list[str]:
    worst = figures.get("worst_group")
    if not worst:
        return []
    verdict = "within" if worst["above_mean"] <= EQUAL_GROUPS else "**beyond**"
    return [
        f"Least alike by group: {worst['name']}, {worst['above_mean']:.0%} above the mean of the groups"
        f" ({worst['mean']:.3f}), {verdict} the {EQUAL_GROUPS:.0%} aimed at."
    ]


def about_reader(figures: dict) -> list[str]:
    found = figures.get("reader_accuracy")
    if not found:
        return []
    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    return [f"The classifier's balanced accuracy on the held-out photos, by FairFace's labels: {told}."]


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
