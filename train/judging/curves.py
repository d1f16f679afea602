"""AD against AA along directions of two spaces -> a picture of the curves (paper, Figures 8 and 9).

    python -m train.curves weights/faces/evaluation.json --out weights/faces/curves.png
    python -m train.curves weights/faces/evaluation.json --flat runs/pictures/evaluation.json --out curves.png

Figure 8 is of heads in 3D: the figures are those of `python -m train.evaluate --origin`, which draws them too where it
is given --sheets. Figure 9 is the same of flat pictures, by a 2D generator and its encoder (e4e in the paper): a JSON
that has the same `spaces` gives a second line, on the same axes."""

import argparse
import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

from preim3d.directions import ATTRIBUTES
from preim3d.files import whole_file
from preim3d.film import INK, PAPER, font
from train.loop.command import command_parser, run_command


PANEL_PX, MARGIN_PX = 320, 52
COLOURS = {"origin": "#c8501e", "inversion": "#1e6fc8"}
GRID = "#dddddd"
MOST_TICKS = 5


def draw_curves(
    lines: dict[str, dict],  # what a line is of -> attribute -> space -> {"curve": {strength: {"aa", "ad"}}}
) -> Image.Image:
    """A line of panels for each figure, one for each attribute, all on the same axes; the lower curve edits the more
    precisely. An attribute that one line lacks is left empty there."""
    points = {
        title: {
            key: {space: [(p["aa"], p["ad"]) for p in found["curve"].values()] for space, found in row.items()}
            for key, row in spaces.items()
        }
        for title, spaces in lines.items()
    }
    keys = list(dict.fromkeys(key for line in points.values() for key in line))
    every = [point for line in points.values() for row in line.values() for curve in row.values() for point in curve]
    aa_ticks, ad_ticks = (ticks(max(1e-6, *(point[axis] for point in every))) for axis in (0, 1))
    page = Image.new("RGB", (PANEL_PX * len(keys), PANEL_PX * len(points)), PAPER)
    for down, (title, line) in enumerate(points.items()):
        for across, key in enumerate(keys):
            if key in line:
                label = ATTRIBUTES[key].label if key in ATTRIBUTES else key
                label = f"{label} ({title})" if len(points) > 1 else label
                page.paste(draw_panel(label, line[key], aa_ticks, ad_ticks), (across * PANEL_PX, down * PANEL_PX))
    return page


def ticks(most: float) -> list[float]:
    """Round numbers at equal steps from 0 to `most` or a little beyond."""
    power = 10.0 ** math.floor(math.log10(most / MOST_TICKS))
    step = next(power * digit for digit in (1, 2, 5, 10) if most <= MOST_TICKS * power * digit * (1 + 1e-9))
    return [number * step for number in range(math.ceil(most / step - 1e-9) + 1)]


def draw_panel(title: str, curves: dict[str, list], aa_ticks: list[float], ad_ticks: list[float]) -> Image.Image:
    panel = Image.new("RGB", (PANEL_PX, PANEL_PX), PAPER)
    draw, inner = ImageDraw.Draw(panel), PANEL_PX - 2 * MARGIN_PX

    def place(aa: float, ad: float) -> tuple[float, float]:
        return MARGIN_PX + inner * aa / aa_ticks[-1], PANEL_PX - MARGIN_PX - inner * ad / ad_ticks[-1]

    for aa in aa_ticks:
        draw.line([place(aa, 0), place(aa, ad_ticks[-1])], GRID)
        draw.text((place(aa, 0)[0], PANEL_PX - MARGIN_PX + 6), f"{aa:g}", INK, font(11), anchor="mt")
    for ad in ad_ticks:
        draw.line([place(0, ad), place(aa_ticks[-1], ad)], GRID)
        draw.text((MARGIN_PX - 6, place(0, ad)[1]), f"{ad:g}", INK, font(11), anchor="rm")
    draw.text((PANEL_PX / 2, 16), title, INK, font(15), anchor="mm")
    draw.text((PANEL_PX / 2, PANEL_PX - 12), "AA", INK, font(12), anchor="mm")
    draw.text((6, MARGIN_PX - 14), "AD", INK, font(12), anchor="lm")
    for number, (space, curve) in enumerate(curves.items()):
        places = [place(*point) for point in curve]
        draw.line(places, COLOURS[space], 2)
        for x, y in places:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], COLOURS[space])
        draw.text((MARGIN_PX + 6, MARGIN_PX + 6 + 15 * number), space, COLOURS[space], font(12))
    return panel


def read_spaces(path: Path) -> dict:
    """The curves in an evaluation. Raises OSError where it cannot be read, ValueError where it has none."""
    try:
        spaces = json.loads(path.read_text()).get("spaces")
    except (ValueError, AttributeError):
        spaces = None
    if not spaces:
        raise ValueError(f"{path} has no curves of two spaces: make it with python -m train.evaluate --origin.")
    return spaces


def draw(args: argparse.Namespace) -> None:
    lines = {"3D": read_spaces(args.evaluation)}
    if args.flat:
        lines["2D"] = read_spaces(args.flat)
    picture = draw_curves(lines)
    with whole_file(args.out) as partial:
        picture.save(partial, format="PNG")


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.curves")
    parser.add_argument("evaluation", type=Path, help="the JSON of train.evaluate")
    parser.add_argument("--flat", type=Path, help="the JSON of a 2D generator's figures, for a second line (Figure 9)")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    return run_command("train.curves", draw, parser.parse_args(words))
