"""Views of a head -> what people look at: the labelled 3x3 sheet, sheets side by side, the orbit as mp4.

Pictures are PIL RGB from here on. Knows nothing of networks.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont

from preim3d.files import whole_file


GAP_PX = 2  # Between the cells of a sheet.
PAPER, INK = "white", "#202020"


def pictures(
    images: torch.Tensor,  # [B, 3, H, W] in [-1, 1]
) -> list[Image.Image]:
    """Network images -> PIL pictures."""
    assert images.ndim == 4 and images.shape[1] == 3, images.shape
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def angle_label(yaw_deg: float, pitch_deg: float) -> str:
    """What stands on a cell, such as "yaw -30°  pitch +20°"."""
    return f"yaw {yaw_deg:+.0f}°  pitch {pitch_deg:+.0f}°".replace("+0°", "0°").replace("-0°", "0°")


def labelled(picture: Image.Image, label: str) -> Image.Image:
    """A copy with the label on a dark band along the lower edge; a double space is where it may break into lines."""
    picture = picture.convert("RGB")
    width, height = picture.size
    # Sheets are usually seen at a third of their size: of 256 px cells 1/13 is then about 7 px, just large enough.
    size, lines = max(11, round(height / 13)), [label]
    if font(size).getlength(label) > 0.96 * width:
        lines = label.split("  ")
    while size > 6 and max(map(font(size).getlength, lines)) > 0.96 * width:
        size -= 1
    band = Image.new("RGB", (width, round((0.4 + 1.1 * len(lines)) * size)))
    middle = (width / 2, band.height / 2)
    ImageDraw.Draw(band).text(middle, "\n".join(lines), font=font(size), fill="white", anchor="mm", spacing=0)
    below = (0, height - band.height, width, height)
    # White letters keep their strength; behind them the picture shines through the dark.
    picture.paste(Image.fromarray(np.maximum(np.asarray(band), np.asarray(picture.crop(below)) // 3)), below)
    return picture


def pose_sheet(
    views: Sequence[Image.Image],  # row by row, all of one size
    labels: Sequence[str],  # one for each, e.g. from `angle_label`; "" leaves the cell bare
    columns: int = 3,
) -> Image.Image:
    """The views in a grid, each with its label written on it."""
    assert len(views) == len(labels) and len(views) > 0, (len(views), len(labels))
    assert len({view.size for view in views}) == 1, [view.size for view in views]
    width, height = views[0].size
    rows = -(-len(views) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP_PX) - GAP_PX, rows * (height + GAP_PX) - GAP_PX), PAPER)
    for cell, (view, label) in enumerate(zip(views, labels)):
        row, column = divmod(cell, columns)
        view = labelled(view, label) if label else view.convert("RGB")
        sheet.paste(view, (column * (width + GAP_PX), row * (height + GAP_PX)))
    return sheet


def font(size_px: int) -> ImageFont.FreeTypeFont:
    """The one that comes with Pillow (Aileron): the same letters on every machine."""
    return ImageFont.load_default(size_px)


def orbit_video(
    frames: Iterable[Image.Image],  # all of one size; taken one by one, so they may be rendered as they are asked for
    path: str | Path,  # .mp4
    fps: int = 30,
) -> None:
    """Writes an H.264 film that browsers and phones play, and that starts before it is wholly loaded.

    Raises:
        ValueError: when there is no frame.
        OSError: one sentence, when the file cannot be written.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("There is no frame to make a film of: give at least one.")
    # Colours are halved in both directions (4:2:0), so the sides must be even: the last row or column is shown twice.
    width, height = (side + side % 2 for side in first.size)

    options = {"movflags": "faststart"}
    with whole_file(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as film:
        stream = film.add_stream("libx264", rate=Fraction(fps), options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Say how RGB became YUV (BT.709, limited range), as players guess by the size of the picture otherwise.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        for picture in chain([first], frames):
            assert picture.size == first.size, (picture.size, first.size)
            pixels = np.asarray(picture.convert("RGB"))
            pixels = np.pad(pixels, [(0, height - len(pixels)), (0, width - pixels.shape[1]), (0, 0)], mode="edge")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
