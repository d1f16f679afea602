"""The page: a portrait photo in; its head from all sides, sliders that edit it, and a mesh to turn and to take out.

python app.py --port 7860

Options, the models, the layout, and which event calls which of preim3d/page's answers."""

import spaces  # noqa: F401  first: on ZeroGPU it must see torch being imported  # isort: skip
import argparse
import copy
import functools
import inspect
import os
import sys
from itertools import groupby
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the server would call home as gradio is imported
import preim3d  # noqa: F401  before torch: it says how threads wait  # isort: skip
import gradio as gr
import numpy as np
from diffusers.utils import logging

from preim3d.device import find_device
from preim3d.directions import ATTRIBUTES, MAIN_ATTRIBUTES
from preim3d.options import whole_number
from preim3d.page.answers import Answers
from preim3d.page.api import Api
from preim3d.page.examples import find_examples, visit_example
from preim3d.page.gpu import Gpu
from preim3d.page.showing import IMPROVE_COST, still_current
from preim3d.page.verdict import SPACES, Verdict
from preim3d.page.visitor import Visitor, salt_uploads, sweep_forever
from preim3d.page.widgets import (
    CSS,
    HEAD,
    THEME,
    NumberBox,
    PhotoBox,
    UploadBox,
    edit_list,
    face_picker,
    safe_marks,
    viewer,
)
from preim3d.pipeline import Preim3DPipeline
from preim3d.strengths import STRENGTH_LIMIT
from preim3d.weights import BUNDLED, find_weights


parser = argparse.ArgumentParser(
    description="The page of Preim3D.",
    epilog="On a Space, without flags: PREIM3D_WEIGHTS, PREIM3D_DEVICE and PREIM3D_QUEUE_SIZE in the environment.",
)
parser.add_argument("--weights", metavar="DIR", help="a folder in pipeline layout; default: the bundled one")
parser.add_argument("--host", help="default: 127.0.0.1, this machine only; 0.0.0.0 lets others in")
parser.add_argument("--port", type=whole_number(1, 65535), help="default: the first free one from 7860")
parser.add_argument("--share", action="store_true", help="also open a public address at gradio.live")
parser.add_argument(
    "--device", metavar="cpu|cuda", default=os.environ.get("PREIM3D_DEVICE"), help="default: cuda where there is one"
)
parser.add_argument(
    "--queue-size",
    type=whole_number(1),
    default=os.environ.get("PREIM3D_QUEUE_SIZE", "30"),
    help="visitors who may wait; the next one is told so at once",
)
options = parser.parse_args(None if __name__ == "__main__" else [])

try:
    FORGET_S = whole_number(1)(os.environ.get("PREIM3D_FORGET_S", "3600"))  # how long files and latents are kept
except argparse.ArgumentTypeError as error:
    parser.error(f"environment variable PREIM3D_FORGET_S: {error}")
READER = Path(__file__).parent / "weights" / "reader"

logging.disable_progress_bar()  # one for each network, over in a moment
try:
    weights = find_weights(options.weights)
    device = find_device(options.device)
    pipeline = Preim3DPipeline.from_pretrained(weights.folder)
    # Copies that stay on the CPU: on ZeroGPU nothing else can be computed with outside the GPU's functions.
    directions = {"inversion": copy.deepcopy(pipeline.directions)}
    if pipeline.origin_directions is not None:
        directions["origin"] = copy.deepcopy(pipeline.origin_directions)
    pipeline.to(device)
    config = directions["inversion"].config
    verdict = Verdict.of_weights(READER, weights.folder, directions["inversion"])
    examples = find_examples(weights.folder, config.fingerprint)
except ValueError as error:  # WeightsError, or a device that is not there
    sys.exit(f"preim3d: {error}")
print(weights.source)

PROMPT = "Or start with one of these people:" if examples else "Any photo with a face will do."
gpu = Gpu(pipeline)
answers = Answers(gpu, pipeline.aligner, directions, verdict, examples, PROMPT, options.weights)
api = Api(pipeline, gpu)
# Their files are served from where they lie, and are no visitor's to delete.
gr.set_static_paths([weights.folder / "examples"])


# ----------------------------------------------------------------------------
# The layout.

INTRO = """# One portrait photo → an editable 3D head
Drop in a photo, turn the head, move the sliders, take it along."""
BUNDLED_MODEL = """The bundled model is small: expect yourself, soft from aside. It learned from photos of real people
and from synthetic heads. Its weights are [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/); credits stand in
`weights/faces/README.md`. Use it on photos of people who agree, and never to deceive or to identify anyone. """
ABOUT = """Code: Apache-2.0. After [PREIM3D](https://arxiv.org/abs/2304.10263) and
[EG3D](https://arxiv.org/abs/2112.07945). Programs: see *Use via API* below."""
PRIVACY = "Photo and results are deleted after an hour at the latest, then the session ends; nothing is logged."
FIGURES = """Strengths are in standard deviations of the attribute's classifier over photos of people; the line under a
slider marks where it was checked that results stay good."""

# The browser decides it, at once: told by the server, it could empty a box that holds the next photo by then.
DROP_REFUSED = "(photo, refused) => photo && photo.path === refused ? null : photo"
SHOW_FOLD = "() => document.querySelector('#any-side').scrollIntoView({block: 'center', behavior: 'smooth'})"
READ_CLOCK = "(session, clock, ...rest) => [session, performance.now(), ...rest]"

ordered = [name for name in ATTRIBUTES if name in config.names]
ordered += [name for name in config.names if name not in ordered]
rows = dict(zip(config.names, zip(config.labels, config.groups, config.safe_range)))
sliders: dict[str, gr.Slider] = {}
slider_ends: dict[str, tuple[float, float, float, float]] = {}
first = examples[0] if examples else None


def picture_box(name: str, value: Path | None, buttons: list[str] | None = None, **size) -> gr.Image:
    """A picture that is only shown. Its name stands above it: Gradio would write it over the picture."""
    return gr.Image(
        value,
        label=name,
        show_label=False,
        format="png",
        interactive=False,
        buttons=buttons or [],
        elem_id=name,
        **size,
    )


def add_slider(name: str) -> None:
    """Half as far again as is safe, where the reader sees the safe stretch marked."""
    label, _, (low, high) = rows[name]
    least, most = (float(np.clip(round(3 * end) / 2, -STRENGTH_LIMIT, STRENGTH_LIMIT)) for end in (low, high))
    slider_ends[name] = low, high, least, most
    sliders[name] = gr.Slider(
        least,
        most,
        value=0,
        step=0.1,
        label=label,
        elem_id=f"slider-{name}",
        elem_classes="attribute",
    )


with gr.Blocks(title="Preim3D", fill_width=True, delete_cache=(max(1, min(600, FORGET_S // 6)), FORGET_S)) as demo:
    start = visit_example(first) if first else Visitor()
    session = gr.State(start, time_to_live=FORGET_S, delete_callback=Visitor.leave)
    # Which session the browser shows. When it has ended, the server's state is another one's, and says so.
    owner = gr.Textbox(start.key, visible="hidden", elem_id="owner")
    # What the sliders are worth, see `Answers.note_sliders`: when the server last moved them, and the browser's clock.
    turn = gr.Textbox(start.sliders.turn, visible="hidden", elem_id="turn")
    clock = gr.Number(0, visible="hidden", elem_id="clock")
    refused = gr.Textbox(visible="hidden", elem_id="refused")  # where the photo lies that could not be used
    gr.Markdown(INTRO, elem_id="intro")
    with gr.Row(elem_id="work"):
        with gr.Column(min_width=280, elem_id="start"):
            photo = PhotoBox(
                label="Photo",
                show_label=False,
                sources=["upload", "clipboard", "webcam"],
                height=170,
                elem_id="photo",
            )
            status = gr.Markdown(PROMPT, elem_id="status")
            picker = face_picker()
            with gr.Row(elem_id="others"):
                if examples:
                    gallery = gr.Gallery(
                        [str(folder / "crop.webp") for folder in examples],
                        columns=len(examples),
                        object_fit="cover",
                        show_label=False,
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        elem_id="examples",
                    )
                forget = gr.Button("Forget my photo", size="sm", min_width=120, elem_id="forget")
            gr.Markdown(PRIVACY, elem_id="privacy")
        with gr.Column(min_width=320, elem_id="pictures"):
            view = viewer({})
            with gr.Row(elem_id="told"):
                with gr.Column(scale=5, min_width=260):
                    gr.Markdown(elem_id="verdict")
                    finds_faces = pipeline.aligner is not None  # else nothing sees where a face in a photo looks
                    with gr.Row(visible=finds_faces):
                        improve = gr.Button("Improve likeness", variant="primary", elem_id="improve", min_width=120)
                        stop = gr.Button("Stop", interactive=False, elem_id="stop", size="sm", min_width=60)
                    improved = gr.Markdown(IMPROVE_COST, elem_id="improved", visible=finds_faces)
                with gr.Column(scale=4, min_width=240):
                    gr.Markdown("**Edits so far**")
                    edits = edit_list()
                    with gr.Row():
                        undo = gr.Button("Undo", size="sm", interactive=False, elem_id="undo", min_width=60)
                        redo = gr.Button("Redo", size="sm", interactive=False, elem_id="redo", min_width=60)
                        reset = gr.Button("Reset all", size="sm", elem_id="reset", min_width=80)
        with gr.Column(min_width=280, elem_id="sliders"):
            gr.Markdown("**Edit** · underlined: where results stay good")
            for name in ordered[:MAIN_ATTRIBUTES]:
                add_slider(name)
            with gr.Accordion("More attributes", open=False, elem_id="more"):
                folded = sorted(ordered[MAIN_ATTRIBUTES:], key=lambda name: rows[name][1])
                for group, names in groupby(folded, key=lambda name: rows[name][1]):
                    gr.Markdown(f"**{group}**")
                    for name in names:
                        add_slider(name)
    with gr.Row(elem_id="results"):
        with gr.Column(min_width=280, elem_id="shape"):
            gr.Markdown("**3D model** · drag to turn")
            # Never in a closed tab or accordion: the viewer would stay blank.
            model = gr.Model3D(
                first and first / "head.glb",
                label="Edited head",
                show_label=False,
                interactive=False,
                height=340,
                elem_id="model",
            )
            with gr.Row():
                format_choice = gr.Radio(
                    ["GLB", "OBJ", "PLY"],
                    value="GLB",
                    show_label=False,
                    container=False,
                    elem_id="format",
                    min_width=200,
                )
                download = gr.DownloadButton(
                    "Download GLB",
                    value=first and first / "head.glb",
                    interactive=bool(first),
                    elem_id="download",
                    size="sm",
                    min_width=110,
                )
            look_as_mesh = gr.Button("Picture of this view", size="sm", elem_id="look-as-mesh")
        with gr.Column(min_width=280):
            gr.Markdown("**From nine sides** · before the edits")
            picture_box("grid", first and first / "grid.webp", ["download", "fullscreen"])
        with gr.Column(min_width=280):
            gr.Markdown("**From nine sides** · edited")
            picture_box("edited", first and first / "grid.webp", ["download", "fullscreen"])
    with gr.Accordion("Picture from any side, depth, film", open=False, elem_id="any-side") as any_side:
        with gr.Row():
            yaw = gr.Slider(-45, 45, value=0, step=1, label="Sideways (yaw), degrees", elem_id="yaw", min_width=140)
            pitch = gr.Slider(
                -20,
                20,
                value=0,
                step=1,
                label="From below (pitch), degrees",
                elem_id="pitch",
                min_width=140,
            )
        with gr.Row():
            look = gr.Button("Make the picture", size="sm", elem_id="look")
            make_film = gr.Button("Make the film", size="sm", elem_id="make-film")
        with gr.Row():
            with gr.Column(min_width=140):
                gr.Markdown("**View**")
                looked = picture_box("looked", None, ["download"], height=200)
            with gr.Column(min_width=140):
                gr.Markdown("**Depth** · near is light")
                depth = picture_box("depth", None, ["download"], height=200)
            with gr.Column(min_width=140):
                gr.Markdown("**Film** · once around")
                film = gr.Video(
                    show_label=False,
                    interactive=False,
                    loop=True,
                    buttons=["download"],
                    height=200,
                    elem_id="film",
                )
    with gr.Accordion("Recipe: continue later, without the photo", open=False, elem_id="later"):
        with gr.Row():
            gr.DownloadButton("Download recipe", interactive=False, size="sm", elem_id="recipe")
            recipe_upload = gr.UploadButton("Use a recipe", file_types=[".json"], size="sm", elem_id="use-recipe")
    with gr.Accordion("For researchers", open=False, elem_id="researchers"):
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                if len(directions) > 1:
                    choices = [(words, name) for name, words in SPACES.items()]
                    space = gr.Radio(choices, value="inversion", label="Edit with directions of", elem_id="space")
                protect = gr.Dropdown(
                    [(rows[name][0], name) for name in ordered],
                    multiselect=True,
                    value=[],
                    label="Protect: these must not change",
                    elem_id="protect",
                )
                gr.Markdown(elem_id="figures")
                gr.Markdown(FIGURES)
            with gr.Column(min_width=130):
                gr.Markdown("**Face found**")
                picture_box("found", None, height=200)
            with gr.Column(min_width=130):
                gr.Markdown("**The model sees**")
                picture_box("crop", first and first / "crop.webp", height=200)
        gr.Markdown("The same head again, with Python or from the command line:")
        gr.Code(language="python", label="Python", interactive=False, elem_id="python")
        gr.Code(language="shell", label="Command", interactive=False, elem_id="command")
    gr.Markdown((BUNDLED_MODEL if weights.folder.resolve() == BUNDLED else "") + ABOUT, elem_id="about")

    # ----------------------------------------------------------------------------
    # Which event calls which answer. Answers name boxes by their elem_id.

    boxes = {box.elem_id: box for box in demo.blocks.values() if box.elem_id} | {"session": session}
    values = [sliders[name] for name in config.names]
    told_once = {"session", "protect", "space", *(box.elem_id for box in values)}

    def placed(answer):
        """An answer as Gradio calls it: the boxes themselves in place of their names. What a generator yields repeats
        what it yielded before, as a busy browser takes only the newest; but things that people move meanwhile are
        told once."""
        if not inspect.isgeneratorfunction(answer):

            @functools.wraps(answer)
            def place(*arguments, **named):
                return {boxes[name]: value for name, value in still_current(answer)(*arguments, **named).items()}

            return place

        @functools.wraps(answer)
        def place_each(*arguments, **named):
            told = {}
            for new in still_current(answer)(*arguments, **named):
                told |= {name: value for name, value in new.items() if name not in told_once}
                yield {boxes[name]: value for name, value in {**told, **new}.items()}

        return place_each

    private = {"api_visibility": "private"}
    hidden = {"show_progress": "hidden", **private}
    on_gpu = {"concurrency_id": "gpu", "concurrency_limit": 1, **private}
    newest = {"trigger_mode": "always_last", **on_gpu, **hidden}
    current = [session, owner]
    shown = [box for box in boxes.values() if isinstance(box, gr.components.Component)]

    if examples:
        demo.load(placed(answers.show_first_example), session, shown, **hidden)
        gallery.select(placed(answers.choose_example), session, shown, **hidden)
    forgetting = {"queue": False, **hidden}
    photo.clear(placed(answers.clear), [session, photo], shown, **forgetting)
    forget.click(placed(answers.forget), [session, photo], shown, **forgetting)
    releases = [slider.release for slider in values]
    noting = {"js": READ_CLOCK, "queue": False, "trigger_mode": "multiple", **hidden}
    gr.on(releases, answers.note_sliders, [session, clock, turn, *values], None, **noting)
    improving = improve.click(placed(answers.improve), current, shown, show_progress_on=improved, **on_gpu)
    # Not `input`: emptying the box is that as well, and a photo would be ignored while that event is in the works.
    chosen = {"trigger_mode": "multiple", **on_gpu}
    photo.upload(answers.note_photo, [session, photo], None, queue=False, trigger_mode="multiple", **hidden)
    read = photo.upload(placed(answers.show_photo), [session, photo, gr.State(None)], shown, **chosen)
    read.then(None, [photo, refused], photo, js=DROP_REFUSED, **private)
    heads = [
        read,
        picker.pick(placed(answers.choose_face), [session, photo], shown, **chosen),
        recipe_upload.upload(placed(answers.use_recipe), [session, recipe_upload], shown, **chosen),
        gr.on(releases, placed(answers.slide), [session, clock, turn, owner, *values], shown, js=READ_CLOCK, **newest),
        edits.act(placed(answers.act), current, shown, **newest),
        protect.input(placed(answers.protect), [*current, protect], shown, **newest),
        undo.click(placed(answers.undo), current, shown, **newest),
        redo.click(placed(answers.redo), current, shown, **newest),
        reset.click(placed(answers.reset), current, shown, **newest),
        improving,
        stop.click(None, cancels=improving, **private).then(placed(answers.show_both), session, shown, **on_gpu),
    ]
    if len(directions) > 1:
        heads.append(space.input(placed(answers.choose_space), [*current, space], shown, **newest))
    meshes = [model, download, format_choice, status]
    for head_shown in heads:
        head_shown.then(placed(answers.show_mesh), session, meshes, queue=False, **hidden)

    looks = [looked, depth, yaw, pitch, any_side, status]
    look.click(placed(answers.look), [*current, yaw, pitch], looks, show_progress_on=[looked, depth], **on_gpu)
    for looking in (
        view.look(placed(answers.look_as_viewer), current, looks, show_progress_on=[looked, depth], **on_gpu),
        look_as_mesh.click(placed(answers.look_as_mesh), [*current, model], looks, show_progress_on=looked, **on_gpu),
    ):
        looking.then(None, js=SHOW_FOLD, **private)
    make_film.click(placed(answers.film), current, [film, status], show_progress_on=film, **on_gpu)
    format_choice.input(placed(answers.choose_format), [*current, format_choice], [download, status], **on_gpu)

    with gr.Column(visible=False):  # what the endpoints take and give
        a_photo = UploadBox(label="photo")
        a_strengths = gr.JSON({}, label="strengths")
        a_face = NumberBox(1, label="face", precision=0)
        a_yaw, a_pitch = NumberBox(0, label="yaw_deg"), NumberBox(0, label="pitch_deg")
        a_format, a_texture = gr.Textbox("glb", label="format"), gr.Checkbox(False, label="texture")
        a_picture = gr.Image(format="png", label="picture")
        a_mesh = gr.File(label="mesh")
        on_gpu["api_visibility"] = "public"
        for endpoint, inputs, output in (
            (api.edit_portrait, [a_photo, a_strengths, a_face, a_yaw, a_pitch], a_picture),
            (api.pose_grid, [a_photo, a_strengths, a_face], a_picture),
            (api.mesh, [a_photo, a_strengths, a_face, a_format, a_texture], a_mesh),
        ):
            gr.Button().click(endpoint, inputs, output, api_name=endpoint.__name__, **on_gpu)

demo.queue(max_size=options.queue_size)


if __name__ == "__main__":
    salt_uploads()
    sweep_forever(FORGET_S)
    try:
        demo.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            max_file_size="15mb",
            state_session_capacity=500,
            run_history=False,  # it would keep photos in the browser, where "Forget my photo" does not reach them
            enable_monitoring=False,
            theme=THEME,
            css=CSS + safe_marks(slider_ends),
            head=HEAD,
        )
    except OSError as error:
        sys.exit(f"preim3d: the page cannot be opened: {error}")
