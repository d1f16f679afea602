"""Figures of an evaluation -> their mean over seeds, the protocol in words, tables shaped like the paper's."""

from pathlib import Path

from preim3d.directions import ATTRIBUTES
from train.evaluation import EDIT_STRENGTH, EQUAL_ALTERING, TIMED, Evaluation


PROTOCOL = """\
{n} {subjects} that no network ever saw; {seeds}. {generator}Encoder: one photo each{photo} -> w -> image at the \
photo's camera, against {truth} (PSNR of [0, 1] RGB, mean over images; lpips_like: distance of the reader's \
features){plain}. Identity network: {identity}. ID_a-b: mean cosine between the photo and {views} views per head, \
yaw uniform in [-b, -a] and [a, b], nominal pitch in [-20, 20] degrees (EG3D's pitch p: sin(elevation) = 2 p / pi); \
ID: mean of the bands 0-10, 10-20 and 20-30. id_other: the same with the views of another person; match_of_10: how \
often a view at 20-30 degrees is nearest to its own photo among ten. APD: root mean squared error of yaw and pitch \
(no roll) in radians that {pose} reads from the same views; apd_of_truth: from the true pictures. FID and KID: \
features of {fid}, reconstructions against {truth}, n = {n} of each (ori: the photo's camera; sm, mid, la: |yaw| \
15-20, 25-30, 35-40 and |pitch| 10-15, 15-20, 20-25 degrees, one view per head); they depend on n and on the network \
and cannot be compared with others'. AA and AD: {edited} inverted photos, frontal view, strength {strength:+.0f}, \
logits of {classifier} over their standard deviation on the photos; AD is the mean over the other {others} \
attributes; ID of edited heads: one view in each band. Time: median of {timed} runs, encode and generate one \
view.{optimised}{origin}"""

SPACES = ("origin", "inversion")
READER = (
    "train.attributes' network (a small IR-SE, {kind}trained on synthetic heads only; the encoder started from it)"
)


def protocol(evaluation: Evaluation) -> str:
    """The card: networks used, views, pitch convention, strengths, n."""
    args, rendered = evaluation.args, evaluation.dataset is not None
    named = {kind: READER.format(kind=kind) for kind in ("", "its embedding, ")}
    seeds = ", ".join(map(str, args.seeds))
    return PROTOCOL.format(
        n=len(evaluation.ws),
        subjects="synthetic heads" if rendered else "photos",
        seeds=f"seed {seeds}" if len(args.seeds) == 1 else f"seeds {seeds}, mean; +-: largest less smallest",
        generator="Generator: 3 of each head's frontal views (yaw within 45, nominal pitch within 32 degrees) from "
        "the head's true features, against the renders, at their size. "
        if rendered
        else "",
        photo=" (random light, random background, aligned by its true five points, no other augmentation)"
        if rendered
        else "",
        truth="the render of the same head from there in the generator's light" if rendered else "the photo",
        plain="; encoder_plain: the same with that render as input" if rendered else "",
        identity=identity_words(args.identity) if args.identity else named["its embedding, "],
        views=args.views,
        pose=named[""],
        fid=f"{Path(args.fid_network).name} (given by the user)" if args.fid_network else named["its embedding, "],
        edited=min(args.edited, len(evaluation.ws)),
        strength=EDIT_STRENGTH,
        classifier=named[""],
        others=len(evaluation.reader.config.attribute_names) - 1,
        timed=TIMED,
        optimised=f" Optimisation: {args.optimised} heads, w found by 300 steps of Adam from the mean w on L2 + .8 "
        "lpips_like at the input camera, one head at a time; it and the encoder are given the same picture, the photo "
        "and, where there is one, that in the generator's light."
        if args.optimised
        else "",
        origin=f" Spaces: directions of either space at the strength, up to 5, that gives AA {EQUAL_ALTERING} on "
        "these heads, or the most that both reach."
        if args.origin
        else "",
    )


def identity_words(path: str) -> str:
    """An identity network in the words of the card."""
    if Path(path).is_dir():
        return "train.identity's (ArcFace on synthetic heads only)"
    return f"{Path(path).name} (given by the user)"


def average(by_seed: list[dict]) -> dict:
    """Figures of one seed as they are (rounded); of several, their mean, and under `spread` largest less smallest."""

    def over(values: list, combine) -> object:
        first = values[0]
        if isinstance(first, dict):
            return {key: over([value[key] for value in values], combine) for key in first}
        if any(not isinstance(value, int | float) for value in values):
            return first  # null: could not be measured
        return round(combine(values), 4)

    figures = over(by_seed, lambda values: sum(values) / len(values))
    if len(by_seed) > 1:
        figures["spread"] = over(by_seed, lambda values: max(values) - min(values))
    return figures


def tables(figures: dict, accuracies: dict[str, float | None]) -> str:
    """Tables 2, 3, 4, 5 and 7 of the paper and one of all sliders; what was not measured is a dash.

    `accuracies`: of the linear classifiers behind the sliders."""
    spread = figures.get("spread", {})

    def cell(*path: str, digits: int = 3) -> str:
        value, range_ = figures, spread
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
            range_ = range_.get(key) if isinstance(range_, dict) else None
        if not isinstance(value, int | float):
            return "-"
        return f"{value:.{digits}f}" + (f" ± {range_:.{digits}f}" if isinstance(range_, int | float) else "")

    rows_2 = [["Ours", cell("id"), cell("id_20_30"), cell("apd", digits=5), cell("time_s")]]
    rows_2 += [
        [
            f"{name} (n = {figures[part]['n']:.0f}, {of})",
            cell(part, key, "id"),
            cell(part, key, "id_20_30"),
            "-",
            cell(part, "time_s") if key == "optimised" else cell("time_s"),
        ]
        for part, of in (("optimisation", "photos"), ("optimisation_plain", "in the generator's light"))
        if part in figures
        for name, key in (("Latent optimisation, 300 steps", "optimised"), ("Ours, on the same", "encoder"))
    ]
    edits = ("age", "smile", "eyeglasses")
    rows_3 = [
        [metric, *(cell(path, key, digits=digits) for key in edits)]
        for metric, path, digits in (("ID", "id_edited", 3), ("AA", "aa", 2), ("AD", "ad", 2))
    ]
    bands = ("id_0_10", "id_10_20", "id_20_30", "id")
    rows_4 = [[name, *(cell("compared", name, band) for band in bands)] for name in figures.get("compared", {})] + [
        ["full", *(cell(band) for band in bands)]
    ]
    spaces = figures.get("spaces", {})
    rows_5 = [
        [key, *(cell("spaces", key, space, metric, digits=2) for metric in ("aa", "ad") for space in SPACES)]
        for key in spaces
    ]
    if spaces:
        averages = [
            sum(row[space][metric] for row in spaces.values()) / len(spaces)
            for metric in ("aa", "ad")
            for space in SPACES
        ]
        rows_5.append(["mean", *(f"{value:.2f}" for value in averages)])
    columns_7 = ("fid_ori", "fid_sm", "fid_mid", "fid_la", "kid_la")
    rows_7 = [["Ours", *(cell(c, digits=4 if c == "kid_la" else 1) for c in columns_7)]]
    rows_all = [
        [
            ATTRIBUTES[key].label,
            f"{accuracies[key]:.3f}" if accuracies.get(key) else "-",
            *(cell(m, key, digits=2) for m in ("aa", "ad", "ad_per_aa")),
        ]
        for key in figures["aa"]
    ]
    parts = [
        ("Inversion (shaped like Table 2)", ("Method", "ID", "ID_20-30", "APD", "Time (s)"), rows_2),
        ("Editing (Table 3)", ("Metric", "Age", "Smile", "Eyeglasses"), rows_3),
        ("Ablation (Table 4)", ("", "ID_0-10", "ID_10-20", "ID_20-30", "ID"), rows_4),
        (
            "Original space and inversion manifold at equal AA (Table 5)",
            ("", "AA origin", "AA inversion", "AD origin", "AD inversion"),
            rows_5,
        ),
        ("FID and KID (Table 7)", ("Method", "FID_ori", "FID_sm", "FID_mid", "FID_la", "KID_la"), rows_7),
        ("All sliders", ("slider", "accuracy", "AA", "AD", "AD / AA"), rows_all),
    ]
    text = [f"### {title}\n\n{table(head, rows)}" for title, head, rows in parts if rows]
    return "\n\n".join([*text, f"Protocol: {figures['protocol']}"])


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
