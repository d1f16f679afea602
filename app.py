"""The page: a portrait photo in; its head from nine sides, sliders that edit it, and a GLB to turn and to take out.

python app.py --port 7860
"""

import spaces  # first: on ZeroGPU it must see torch being imported  # isort: skip
import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the server would call home as gradio is imported
import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from preim3d.align import Face, crop_face
from preim3d.directions import ATTRIBUTES, MAIN_ATTRIBUTES
from preim3d.film import font
from preim3d.mesh import mesh_bytes
from preim3d.photo import PhotoError, load_photo
from preim3d.pipeline import Preim3DPipeline, as_array, grid_sheet
from preim3d.weights import WeightsError, find_weights, read_json


FORGET_S = 3600  # how long files and latents are kept
QUEUE_SIZE = 30  # visitors who may wait; the next one is told so at once

parser = argparse.ArgumentParser(description="The page of Preim3D.")
parser.add_argument("--weights", metavar="DIR", help="a folder in pipeline layout; default: the bundled one")
parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
parser.add_argument("--port", type=int, help="default: the first free one from 7860")
parser.add_argument("--share", action="store_true", help="also open a public address at gradio.live")
options = parser.parse_args(None if __name__ == "__main__" else [])

try:
    weights = find_weights(options.weights)
    pipeline = Preim3DPipeline.from_pretrained(weights.folder).to("cuda" if torch.cuda.is_available() else "cpu")
except WeightsError as error:
    sys.exit(f"preim3d: {error}")
print(weights.source)


def find_example(folder: Path) -> Path | None:
    """What `python -m preim3d edit` made of a portrait with just these weights, to be shown before any upload."""
    for result in sorted(folder.glob("examples/*/result.json")):
        if read_json(result, "weights")["weights"] == pipeline.directions.config.fingerprint:
            return result.parent
        print(f"The example {result.parent} was made with other weights and is not shown; make it again.")
    return None


def read_latent(result: Path) -> np.ndarray:
    return np.array(read_json(result / "result.json", "w")["w"], dtype=np.float32)


example = find_example(weights.folder)


# ----------------------------------------------------------------------------
# What runs on the GPU, where there is one. Numbers and pictures go in and out, never tensors.


@spaces.GPU(duration=15)
def reconstruct(crop: Image.Image) -> Iterator[np.ndarray | Image.Image | bytes]:
    """crop -> w [num_ws, w_dim], then the pose grid, then the GLB: each as soon as it is there."""
    w = pipeline.encode(crop)
    yield as_array(w)
    yield from pictures_of(w, {})


@spaces.GPU(duration=10)
def rerender(w: np.ndarray, strengths: dict[str, float]) -> Iterator[Image.Image | bytes]:
    """w [num_ws, w_dim], edited -> the pose grid, then the GLB."""
    yield from pictures_of(w, strengths)


def pictures_of(w, strengths: dict[str, float]) -> Iterator[Image.Image | bytes]:
    head = pipeline.head(pipeline.edit(w, strengths))
    yield grid_sheet(pipeline.views(head))
    yield mesh_bytes(pipeline.mesh(head), "glb", {"strengths": strengths})


# ----------------------------------------------------------------------------
# What happens on the page.


def show_photo(file: str | None, face: int | None, progress=gr.Progress()) -> Iterator[dict]:
    """A new photo, or another face of the same one: finds the face, then shows the head bit by bit."""
    cleared = {session: None, found: None, crop: None, grid: None, edited: None, model: None}
    cleared |= {download: gr.DownloadButton(interactive=False), **{slider: 0 for slider in sliders.values()}}
    if file is None:
        yield {**cleared, status: PROMPT, picker: gr.Radio(visible=False)}
        return
    progress(0.1, "Finding the face")
    try:
        photo = load_photo(file)
        faces = pipeline.aligner.faces(photo)
        chosen = pipeline.aligner.choose(photo, (face or 1) - 1, faces)
    except PhotoError as error:
        gr.Warning(str(error))
        yield {**cleared, status: f"**{error}**", picker: gr.Radio(visible=False)}
        return
    picture = crop_face(photo, chosen)
    choices = [(f"Face {number}", number) for number in range(1, len(faces) + 1)]
    yield {
        **cleared,
        found: draw_faces(photo, faces, (face or 1) - 1),
        crop: picture,
        picker: gr.Radio(choices=choices, value=face or 1, visible=len(faces) > 1),
        status: f"{len(faces)} faces were found; choose one below." if len(faces) > 1 else "",
    }
    progress(0.3, "Reconstructing")
    steps = reconstruct(picture)
    w = next(steps)
    yield {session: {"w": w}}
    progress(0.5, "Rendering nine views")
    sheet = next(steps)
    yield {grid: sheet, edited: sheet}
    progress(0.8, "Making the mesh")
    yield from show_mesh(next(steps))


def show_edit(current: dict | None, file: str | None, *values: float) -> Iterator[dict]:
    """The head of the session, edited by the sliders."""
    if current is None:
        gr.Warning("Drop in a photo first; then the sliders edit its head.")
        return
    if file is not None and current.get("example"):
        raise gr.Error("This session was an hour old and has ended; drop the photo in again.", print_exception=False)
    steps = rerender(current["w"], dict(zip(sliders, values)))
    yield {edited: next(steps)}
    yield from show_mesh(next(steps))


def show_mesh(glb: bytes) -> Iterator[dict]:
    # Gradio takes a copy into its cache, which is emptied after FORGET_S; ours goes as soon as that is done.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.glb")
        path.write_bytes(glb)
        yield {model: str(path), download: gr.DownloadButton(value=str(path), interactive=True)}
    # Gradio sends what came last once more; the viewer would stay blank if it got the same file twice.
    yield {model: gr.skip()}


def draw_faces(photo: Image.Image, faces: list[Face], chosen: int) -> Image.Image:
    """The photo, small, with a box around each face; the chosen one stands out, and they are numbered if several."""
    small = ImageOps.contain(photo, (480, 480))
    scale = small.width / photo.width
    draw = ImageDraw.Draw(small)
    for number, face in enumerate(faces):
        color = (255, 196, 0) if number == chosen else (230, 230, 230)
        box = [scale * side for side in face.box_px]
        draw.rectangle(box, outline=color, width=4 if number == chosen else 2)
        if len(faces) > 1:
            corner = (box[0] + 4, box[1])
            draw.text(corner, str(number + 1), fill=color, font=font(22), stroke_width=2, stroke_fill="black")
    return small


def reset_sliders() -> list[float]:
    return [0.0] * len(sliders)


# ----------------------------------------------------------------------------
# The page itself.

PROMPT = "Drop in a portrait: any photo with a face will do." + (" Below, an example head." if example else "")
INTRO = """# One portrait photo → an editable 3D head
Drop in a photo, see the head from nine sides, move the sliders, turn the mesh, take it along as GLB."""
ABOUT = """The bundled model is small and has learned from synthetic people only: expect the likeness of an avatar.
Photos and results are kept for at most an hour and are never logged. Code: Apache-2.0; bundled weights: CC0 1.0. After
[PREIM3D](https://arxiv.org/abs/2304.10263) and [EG3D](https://arxiv.org/abs/2112.07945)."""
# Arrow keys on a slider count as letting go of it; Gradio itself only knows the pointer.
HEAD = """<script>
addEventListener("keyup", (event) => {
    if (event.target.matches?.("input[type=range]") && event.key !== "Tab")
        event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
});
</script>"""
# On a phone the sliders stand right below the pictures that they change, and the mesh comes last.
CSS = """
@media (max-width: 640px) {
    #pictures {display: contents}
    #pictures > * {flex: 1 1 100%}
    #sliders {order: 1}
    #shape {order: 2}
}
"""
# System fonts: the page fetches nothing from outside.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

ordered = [name for name in ATTRIBUTES if name in pipeline.directions.names]
ordered += [name for name in pipeline.directions.names if name not in ordered]
config = pipeline.directions.config
rows = dict(zip(config.names, zip(config.labels, config.groups, config.safe_range)))
sliders: dict[str, gr.Slider] = {}


def picture_box(name: str, value: Path | None, buttons: list[str] | None = None) -> gr.Image:
    """A picture that is only shown. Its name stands above it: Gradio would write it over the picture."""
    return gr.Image(
        value, label=name, show_label=False, format="png", interactive=False, buttons=buttons or [], elem_id=name
    )


def add_slider(name: str) -> None:
    label, _, (low, high) = rows[name]
    sliders[name] = gr.Slider(low, high, value=0, step=0.1, label=label, elem_id=f"slider-{name}")


with gr.Blocks(title="Preim3D", delete_cache=(600, FORGET_S)) as demo:
    # Only the latent of this visitor's photo, float32 [num_ws, w_dim]; never the planes, which are large.
    session = gr.State(example and {"example": True, "w": read_latent(example)}, time_to_live=FORGET_S)
    gr.Markdown(INTRO)
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            photo = gr.Image(label="Photo", sources=["upload", "clipboard", "webcam"], height=240, elem_id="photo")
            # The file as it was uploaded: `load_photo` knows more formats than Gradio, and says better what is wrong.
            photo.preprocess = lambda upload: upload and upload.path
            status = gr.Markdown(PROMPT, elem_id="status")
            picker = gr.Radio(label="Which face?", visible=False, elem_id="picker")
            with gr.Row():
                with gr.Column(min_width=110):
                    gr.Markdown("**Face found**")
                    found = picture_box("found", None)
                with gr.Column(min_width=110):
                    gr.Markdown("**Model sees**")
                    crop = picture_box("crop", example and example / "crop.png")
        with gr.Column(scale=5, min_width=320, elem_id="pictures"):
            with gr.Row():
                with gr.Column(min_width=280):
                    gr.Markdown("**Reconstruction** · seen from nine sides")
                    grid = picture_box("grid", example and example / "grid.png", ["download", "fullscreen"])
                with gr.Column(min_width=280):
                    gr.Markdown("**Edited**")
                    edited = picture_box("edited", example and example / "grid.png", ["download", "fullscreen"])
            with gr.Column(elem_id="shape"):
                gr.Markdown("**Edited head** · drag to turn it, scroll to zoom")
                # Never in a closed tab or accordion: the viewer would stay blank.
                model = gr.Model3D(
                    example and example / "head.glb",
                    label="Edited head",
                    show_label=False,
                    interactive=False,
                    height=380,
                    elem_id="model",
                )
                download = gr.DownloadButton(
                    "Download GLB",
                    value=example and example / "head.glb",
                    interactive=bool(example),
                    elem_id="download",
                )
        with gr.Column(scale=2, min_width=260, elem_id="sliders"):
            gr.Markdown("**Edit** · in standard deviations; 0 changes nothing")
            for name in ordered[:MAIN_ATTRIBUTES]:
                add_slider(name)
            with gr.Accordion("More attributes", open=False):
                folded = sorted(ordered[MAIN_ATTRIBUTES:], key=lambda name: rows[name][1])
                for group, names in groupby(folded, key=lambda name: rows[name][1]):
                    gr.Markdown(f"**{group}**")
                    for name in names:
                        add_slider(name)
            reset = gr.Button("Reset all", elem_id="reset")
    gr.Markdown(ABOUT)

    everything = [session, found, crop, grid, edited, model, download, status, picker, *sliders.values()]
    on_gpu = {"concurrency_id": "gpu", "concurrency_limit": 1, "api_visibility": "private"}
    photo.change(show_photo, [photo, gr.State(None)], everything, trigger_mode="always_last", **on_gpu)
    picker.input(show_photo, [photo, picker], everything, trigger_mode="always_last", **on_gpu)
    edit = {"inputs": [session, photo, *sliders.values()], "outputs": [edited, model, download]}
    gr.on(
        [slider.release for slider in sliders.values()],
        show_edit,
        **edit,
        trigger_mode="always_last",
        show_progress="minimal",
        **on_gpu,
    )
    reset.click(reset_sliders, None, list(sliders.values()), api_visibility="private").then(
        show_edit, **edit, show_progress="minimal", **on_gpu
    )

demo.queue(max_size=QUEUE_SIZE)


if __name__ == "__main__":
    try:
        demo.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            max_file_size="15mb",
            theme=THEME,
            css=CSS,
            head=HEAD,
        )
    except OSError as error:
        sys.exit(f"preim3d: the page cannot be opened: {error}")
