"""AD against AA along directions of two spaces -> a picture of the curves (paper, Figures 8 and 9).

    python -m train.curves weights/faces/evaluation.json --out weights/faces/curves.png

The figures are those of `python -m train.evaluate --origin`, which draws them too where it is given --sheets."""

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
    spaces: dict,  # attribute -> space -> {"curve": {strength: {"aa", "ad"}}}, as edit_figures.py measures them
    labels: dict[str, str],  # attribute -> its title
) -> Image.Image:
    """One panel for each attribute, side by side; the lower curve edits the more precisely."""
    points = {
        key: {space: [(p["aa"], p["ad"]) for p in found["curve"].values()] for space, found in row.items()}
        for key, row in spaces.items()
    }
    every = [point for row in points.values() for curve in row.values() for point in curve]
    aa_ticks, ad_ticks = (ticks(max(1e-6, *(point[axis] for point in every))) for axis in (0, 1))
    page = Image.new("RGB", (PANEL_PX * len(points), PANEL_PX), PAPER)
    for number, (key, row) in enumerate(points.items()):
        panel = draw_panel(labels[key], row, aa_ticks, ad_ticks)
        page.paste(panel, (number * PANEL_PX, 0))
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
    spaces = read_spaces(args.evaluation)
    picture = draw_curves(spaces, {key: ATTRIBUTES[key].label for key in spaces})
    with whole_file(args.out) as partial:
        picture.save(partial, format="PNG")


def main(words: list[str] | None = None) -> int:
    parser = command_parser(__doc__, "train.curves")
    parser.add_argument("evaluation", type=Path, help="the JSON of train.evaluate")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    return run_command("train.curves", draw, parser.parse_args(words))
