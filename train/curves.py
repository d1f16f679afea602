"""AD against AA along directions of two spaces -> a picture of the curves (paper, Figures 8 and 9)."""

from PIL import Image, ImageDraw

from preim3d.film import INK, PAPER, font


PANEL_PX, MARGIN_PX = 320, 52
COLOURS = {"origin": "#c8501e", "inversion": "#1e6fc8"}
GRID = "#dddddd"


def draw_curves(
    spaces: dict,  # attribute -> space -> {"curve": {strength: {"aa", "ad"}}}, as train.edit_figures measures them
    labels: dict[str, str],  # attribute -> its title
) -> Image.Image:
    """One panel for each attribute, side by side; the lower curve edits the more precisely."""
    points = {
        key: {space: [(p["aa"], p["ad"]) for p in found["curve"].values()] for space, found in row.items()}
        for key, row in spaces.items()
    }
    every = [point for row in points.values() for curve in row.values() for point in curve]
    most_aa, most_ad = (max(1e-6, *(point[axis] for point in every)) for axis in (0, 1))
    page = Image.new("RGB", (PANEL_PX * len(points), PANEL_PX), PAPER)
    for number, (key, row) in enumerate(points.items()):
        panel = draw_panel(labels[key], row, most_aa, most_ad)
        page.paste(panel, (number * PANEL_PX, 0))
    return page


def draw_panel(title: str, curves: dict[str, list], most_aa: float, most_ad: float) -> Image.Image:
    panel = Image.new("RGB", (PANEL_PX, PANEL_PX), PAPER)
    draw, inner = ImageDraw.Draw(panel), PANEL_PX - 2 * MARGIN_PX

    def place(aa: float, ad: float) -> tuple[float, float]:
        return MARGIN_PX + inner * aa / most_aa, PANEL_PX - MARGIN_PX - inner * ad / most_ad

    for share in (0, 0.25, 0.5, 0.75, 1):
        aa, ad = share * most_aa, share * most_ad
        draw.line([place(aa, 0), place(aa, most_ad)], GRID)
        draw.line([place(0, ad), place(most_aa, ad)], GRID)
        x, y = place(aa, ad)
        draw.text((x, PANEL_PX - MARGIN_PX + 6), f"{aa:.1f}", INK, font(11), anchor="mt")
        draw.text((MARGIN_PX - 6, y), f"{ad:.2f}", INK, font(11), anchor="rm")
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
