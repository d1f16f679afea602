"""The page with its first example, one edit made, as a picture: weights/faces/page.jpg of the README.

python tests/screenshot.py --out weights/faces/page.jpg"""

import argparse
import io
import tempfile
from pathlib import Path

from browsing import chromium, set_slider, visiting, wait_for_change
from PIL import Image
from running import running_page


PAGE = {"viewport": {"width": 1360, "height": 1330}}
QUALITY = 75  # of the JPEG


def take(weights: str | None, edit: tuple[str, str], out: Path) -> None:
    flags = ("--weights", weights) if weights else ()
    name, strength = edit
    with tempfile.TemporaryDirectory() as folder, running_page(Path(folder), *flags) as server:
        # The picture is to show the mesh, which a browser without a card draws slowly.
        with chromium() as browser, visiting(browser, server.address, **PAGE) as page:
            mesh = wait_for_change(page, "model", None)
            page.wait_for_timeout(5_000)  # the example is there at once, before the page listens to its sliders
            if page.locator(f"#slider-{name}").count():
                set_slider(page, name, strength)
                wait_for_change(page, "model", mesh)
                page.locator("#verdict").get_by_text("The edit").wait_for()
            page.wait_for_selector("#model canvas")
            page.wait_for_timeout(15_000)  # until all frames of the orbit have come and the mesh is drawn
            shot = page.screenshot()
    Image.open(io.BytesIO(shot)).convert("RGB").save(out, quality=QUALITY, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a folder in pipeline layout; default: the bundled one")
    parser.add_argument("--edit", default="smile=1.5", help="of the example; no edit where the weights do not know it")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    name, _, strength = args.edit.partition("=")
    take(args.weights, (name, strength), args.out)
    print(f"Wrote {args.out}.")


if __name__ == "__main__":
    main()
