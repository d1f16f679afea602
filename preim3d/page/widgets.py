"""The page's own widgets, in plain HTML, CSS and JavaScript: the turning viewer and the list of edits."""

import json

import gradio as gr
from gradio.data_classes import FileData


class PhotoBox(gr.Image):
    """An image box that hands on the file as it was uploaded: `load_photo` knows more formats than Gradio, and says
    better what is wrong."""

    def preprocess(self, payload):
        return payload and payload.path

    def get_block_name(self) -> str:
        return "image"


class Upload(FileData):
    """A file that was uploaded; anything else is answered with one sentence."""

    model_config = {"title": "FileData"}  # the clients know it by this name

    @classmethod
    def model_validate(cls, *arguments, **named):
        try:
            return super().model_validate(*arguments, **named)
        except ValueError:
            raise gr.Error(
                "`photo` must be one uploaded file: pass it as `photo=handle_file(...)`.", print_exception=False
            ) from None


class UploadBox(gr.File):
    """Hands on the place of what was uploaded; Gradio's own leaves an empty file beside each."""

    def __init__(self, **named):
        super().__init__(**named)
        self.data_model = Upload

    def preprocess(self, payload):
        return payload and payload.path

    def get_block_name(self) -> str:
        return "file"


class NumberBox(gr.Number):
    """Hands on whatever a program sent: the endpoints say in words what is wrong with it, which Gradio does not."""

    def preprocess(self, payload):
        return payload

    def get_block_name(self) -> str:
        return "number"


VIEWER_HTML = """
<div class="stage" tabindex="0" role="application"
     aria-label="The head. Arrow keys or dragging turn it; the slider below moves the line between left and right.">
  <canvas class="left" width="512" height="512"></canvas><canvas class="right" width="512" height="512"></canvas>
  <div class="line"></div><span class="tag left"></span><span class="tag right"></span>
  <span class="tag where" aria-live="polite"></span>
</div>
<div class="bar">
  <select class="left" aria-label="What is shown on the left"></select>
  <input class="split" type="range" min="0" max="100" value="50" aria-label="Line between left and right">
  <select class="right" aria-label="What is shown on the right"></select>
</div>
<div class="bar">
  <button class="play" type="button">Play orbit</button><button class="front" type="button">Photo's view</button>
  <button class="look" type="button">Render view</button></div>
"""

VIEWER_CSS = """
& {width: 100%}
.stage {position: relative; aspect-ratio: 1; width: 100%; border-radius: 10px; overflow: hidden; cursor: grab;
  touch-action: pan-y; background: var(--background-fill-secondary); user-select: none}
.stage:active {cursor: grabbing}
.stage:focus-visible {outline: 3px solid var(--color-accent)}
.stage canvas {position: absolute; inset: 0; width: 100%; height: 100%}
.line {position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: white;
  box-shadow: 0 0 4px rgba(0,0,0,.6); pointer-events: none}
.tag {position: absolute; top: 8px; padding: 1px 8px; border-radius: 8px; font-size: 12px; color: white;
  background: rgba(0,0,0,.55); pointer-events: none}
.tag.left {left: 8px} .tag.right {right: 8px} .tag.where {top: auto; bottom: 8px; left: 8px} .tag:empty {display: none}
.bar {display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-top: 8px; font-size: 13px;
  color: var(--body-text-color)}
.bar select, .bar button {font: inherit; color: var(--body-text-color); padding: 4px 8px; min-height: 32px;
  cursor: pointer; background: var(--button-secondary-background-fill); border-radius: 8px;
  border: 1px solid var(--border-color-primary)}
.bar select {width: auto; max-width: 36%}
.bar button {flex: 1; white-space: nowrap}
.bar .split {flex: 1; min-width: 40px; accent-color: var(--color-accent)}
"""

VIEWER_JS = """
const names = {photo: "Photo", reconstruction: "Reconstruction", edited: "Edited", depth: "Depth"};
const stage = element.querySelector(".stage"), split = element.querySelector(".split");
const side = (kind, which) => element.querySelector(kind + "." + which);
let images = {}, angles = [[0, 0]], yaw = 0, pitch = 0, playing = 0, shown = null;

function fill() {
  for (const which of ["left", "right"]) {
    const select = side("select", which), before = select.value || (which === "left" ? "photo" : "edited");
    const there = Object.keys(names).filter(name => images[name]);
    select.replaceChildren(...there.map(name => new Option(names[name], name)));
    select.value = images[before] ? before : which === "left" ? "reconstruction" : "edited";
  }
}
function nearest(count) {
  let best = 0, least = Infinity;
  for (let i = 0; i < count; i++) {
    const d = (angles[i][0] - yaw) ** 2 + (angles[i][1] - pitch) ** 2;
    if (d < least) { least = d; best = i; }
  }
  return best;
}
function draw() {
  for (const which of ["left", "right"]) {
    const canvas = side("canvas", which), context = canvas.getContext("2d"), name = side("select", which).value;
    const image = images[name];
    context.clearRect(0, 0, canvas.width, canvas.height);
    canvas.style.opacity = name === "edited" && props.value && props.value.pending ? 0.35 : 1;
    side(".tag", which).textContent = names[name] || "";
    if (!image || !image.complete || !image.naturalWidth) continue;
    if (name === "photo") { context.drawImage(image, 0, 0, canvas.width, canvas.height); continue; }
    const columns = Math.min(props.value.columns, image.count), size = image.naturalWidth / columns;
    const frame = nearest(image.count);
    shown = angles[frame];
    context.imageSmoothingQuality = "high";
    context.drawImage(image, frame % columns * size, Math.floor(frame / columns) * size, size, size,
      0, 0, canvas.width, canvas.height);
  }
  const at = split.value;
  side("canvas", "right").style.clipPath = `inset(0 0 0 ${at}%)`;
  side("canvas", "left").style.clipPath = `inset(0 ${100 - at}% 0 0)`;
  element.querySelector(".line").style.left = at + "%";
  stage.dataset.frame = shown ? shown.join(" ") : "";
  element.querySelector(".where").textContent = !shown ? "" :
    `yaw ${Math.round(shown[0])}°, pitch ${Math.round(shown[1])}°`;
}
function turn(by_yaw, by_pitch) {
  const reach = angle => Math.max(...angles.map(a => Math.abs(a[angle])));
  yaw = Math.max(-reach(0), Math.min(reach(0), yaw + by_yaw));
  pitch = Math.max(-reach(1), Math.min(reach(1), pitch + by_pitch));
  draw();
}
function stop() {
  cancelAnimationFrame(playing);
  playing = 0;
  element.querySelector(".play").textContent = "Play orbit";
}
function load() {
  const value = props.value;
  if (!value || !value.angles) { images = {}; shown = null; fill(); draw(); return; }
  if (JSON.stringify(angles[0]) !== JSON.stringify(value.angles[0]) || !Object.keys(images).length)
    [yaw, pitch] = value.angles[0];
  angles = value.angles;
  for (const name of Object.keys(names)) {
    if (!value[name]) { delete images[name]; continue; }
    if (images[name] && images[name].src === value[name].src) continue;
    const image = new Image();
    image.count = value[name].count;
    // The former picture stands until the new one can be drawn.
    image.onload = () => { images[name] = image; fill(); draw(); };
    image.src = value[name].src;
  }
  fill(); draw();
}
let held = null;
stage.addEventListener("pointerdown", event => { stop(); held = [event.clientX, event.clientY];
  stage.setPointerCapture(event.pointerId); });
stage.addEventListener("pointermove", event => {
  if (!held) return;
  turn((held[0] - event.clientX) * 0.3, (held[1] - event.clientY) * -0.2);
  held = [event.clientX, event.clientY];
});
for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { held = null; });
stage.addEventListener("keydown", event => {
  const step = {ArrowLeft: [-7.5, 0], ArrowRight: [7.5, 0], ArrowUp: [0, -20], ArrowDown: [0, 20]}[event.key];
  if (!step) return;
  event.preventDefault(); stop(); turn(...step);
});
split.addEventListener("input", draw);
element.addEventListener("change", event => { if (event.target.matches("select")) draw(); });
element.querySelector(".front").addEventListener("click", () => { stop(); [yaw, pitch] = angles[0]; draw(); });
element.querySelector(".look").addEventListener("click", () => {
  if (shown) trigger("look", {yaw: shown[0], pitch: shown[1]});
});
element.querySelector(".play").addEventListener("click", event => {
  if (playing) { stop(); return; }
  event.target.textContent = "Stop";
  const start = performance.now();
  const frame = now => {
    const phase = (now - start) / 4000 * 2 * Math.PI;
    yaw = 45 * Math.sin(phase); pitch = 20 * Math.cos(phase);
    draw(); playing = requestAnimationFrame(frame);
  };
  playing = requestAnimationFrame(frame);
});
watch("value", load);
load();
"""


def viewer(value: dict) -> gr.HTML:
    """Photo, reconstruction, edit and depth of one head, turned in the browser. The value, by name of the picture:
    {"src": an address, "count": how many frames it packs}; "angles" of the frames, "columns" as packed, and "pending"
    while the edited pictures are still those before the edits, which dims them. The event `look` has `yaw` and
    `pitch` in degrees, where it stands."""
    return gr.HTML(
        value,
        html_template=VIEWER_HTML,
        css_template=VIEWER_CSS,
        js_on_load=VIEWER_JS,
        elem_id="viewer",
        apply_default_css=False,
    )


LIST_HTML = '<ol class="edits"></ol>'
LIST_CSS = """
ol {list-style: none; margin: 0; padding: 0; font-size: 14px; color: var(--body-text-color)}
li {display: flex; align-items: center; gap: 6px; padding: 2px 0}
li label {flex: 1; display: flex; gap: 8px; align-items: center; cursor: pointer}
li.off label {text-decoration: line-through; opacity: .6}
li input {appearance: auto !important; accent-color: var(--color-accent)}
li button {min-width: 32px; min-height: 32px; border: 1px solid var(--border-color-primary); border-radius: 8px;
  color: var(--body-text-color); background: var(--button-secondary-background-fill); cursor: pointer}
li button:disabled {opacity: .35; cursor: default}
.none {color: var(--body-text-color-subdued)}
"""
LIST_JS = """
const list = element.querySelector("ol");
function button(sign, title, what, name, disabled) {
  const made = document.createElement("button");
  made.type = "button"; made.textContent = sign; made.title = title; made.disabled = disabled;
  made.setAttribute("aria-label", title);
  made.addEventListener("click", () => trigger("act", {what, name}));
  return made;
}
function load() {
  const edits = props.value || [];
  list.replaceChildren(...edits.map((edit, place) => {
    const row = document.createElement("li"), label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox"; box.checked = edit.on;
    box.addEventListener("change", () => trigger("act", {what: "switch", name: edit.name}));
    label.append(box, `${edit.label} ${edit.strength > 0 ? "+" : "−"}${Math.abs(edit.strength).toFixed(1)}`);
    row.className = edit.on ? "" : "off";
    row.append(label,
      button("↑", `${edit.label} earlier`, "up", edit.name, place === 0),
      button("↓", `${edit.label} later`, "down", edit.name, place === edits.length - 1),
      button("✕", `Remove ${edit.label}`, "remove", edit.name, false));
    return row;
  }));
  if (!edits.length) {
    const none = document.createElement("li");
    none.className = "none"; none.textContent = "No edit yet: move a slider.";
    list.append(none);
  }
}
watch("value", load);
load();
"""


def edit_list() -> gr.HTML:
    """The edits as rows with a switch and buttons. The value: [{"name", "label", "strength", "on"}]. The event `act`
    has `what` ("switch", "up", "down" or "remove") and the `name` of the edit."""
    return gr.HTML(
        [],
        html_template=LIST_HTML,
        css_template=LIST_CSS,
        js_on_load=LIST_JS,
        elem_id="edits",
        apply_default_css=False,
    )


# What pictures show, for who does not see them.
PICTURES = {
    "photo": "Your photo",
    "found": "The photo with a box around each face",
    "crop": "The upright crop that the model sees",
    "grid": "The reconstruction from nine sides",
    "edited": "The edited head from nine sides",
    "looked": "The edited head from the chosen side",
    "depth": "Its depth, near being light",
    "examples": "A portrait to start with",
}
# Arrow keys on a slider count as letting go of it, and Enter in its number; Gradio itself only knows the pointer. It
# also leaves pictures without a word.
HEAD = f"""<script>
addEventListener("keyup", (event) => {{
    if (event.target.matches?.(".attribute input[type=range]") && event.key !== "Tab")
        event.target.dispatchEvent(new PointerEvent("pointerup", {{bubbles: true}}));
    if (event.target.matches?.(".attribute input[type=number]") && event.key === "Enter")
        event.target.dispatchEvent(new FocusEvent("blur"));
}});
const pictures = {json.dumps(PICTURES)};
new MutationObserver(() => {{
    for (const [box, words] of Object.entries(pictures))
        for (const picture of document.querySelectorAll(`#${{box}} img:not([alt]), #${{box}} img[alt=""]`))
            picture.alt = words;
    document.querySelector("#model canvas")?.setAttribute("aria-label", "The mesh of the edited head; drag to turn");
}}).observe(document, {{subtree: true, childList: true}});
</script>"""

# On a phone the sliders stand right below the pictures that they change, and the sheets come last.
CSS = """
.attribute {padding: 6px 10px 2px !important}
.attribute input[type=range] {height: 16px; background: linear-gradient(to right, transparent var(--low),
  var(--color-accent) 0, var(--color-accent) var(--high), transparent 0) bottom / 100% 2px no-repeat}
#yaw, #pitch {--zero: 50%}
:is(.attribute, #yaw, #pitch) input[type=range]::-webkit-slider-runnable-track {background: linear-gradient(to right,
  var(--neutral-200) min(var(--zero), var(--range_progress)), var(--slider-color) 0,
  var(--slider-color) max(var(--zero), var(--range_progress)), var(--neutral-200) 0) !important}
.attribute input[type=range]::-moz-range-progress {background: transparent !important}
.generating {border-color: transparent !important; animation: none !important}
#viewer {padding: 0}
#examples .grid-wrap {max-height: none !important; min-height: 0; height: auto; overflow: visible; padding: 0}
#examples, #examples > * {height: auto !important; min-height: 0 !important}
#examples .grid-container {height: auto; grid-template-columns: repeat(4, 1fr) !important; gap: 6px;
  grid-template-rows: auto !important; grid-auto-rows: auto !important}
#examples .thumbnail-item {width: 100%; height: auto; aspect-ratio: 1}
#format .wrap {flex-wrap: nowrap; gap: 4px}
#format label {padding: 4px 8px}
#status {min-height: 1.5em}
@media (max-width: 760px) {
    #pictures {display: contents}
    #pictures > * {flex: 1 1 100%}
    #sliders {order: 1}
    #sheets {order: 2}
    #take {order: 3}
    #about {order: 4}
}
"""


def safe_marks(ranges: dict[str, tuple[float, float, float, float]]) -> str:
    """CSS that marks the safe stretch of each slider, and its 0: name -> the stretch's ends, and the slider's own."""
    return "\n".join(
        f"#slider-{name} input[type=range] {{--low: {100 * (low - least) / (most - least):.1f}%;"
        f" --high: {100 * (high - least) / (most - least):.1f}%; --zero: {-100 * least / (most - least):.1f}%}}"
        for name, (low, high, least, most) in ranges.items()
    )


# System fonts: the page fetches nothing from outside.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    block_title_background_fill="transparent",
    block_title_background_fill_dark="transparent",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_title_padding="0",
)
