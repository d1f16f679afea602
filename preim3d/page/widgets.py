"""The page's own widgets, in plain HTML, CSS and JavaScript: the turning viewer, the choice of a face, the list of
edits."""

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


# Widths below which the page stands in one column, and fingers, which need controls of 44 px (WCAG 2.2, 2.5.5).
NARROW = "(max-width: 760px)"
TOUCHED = f"{NARROW}, (pointer: coarse)"

VIEWER_HTML = """
<div class="frame">
  <div class="stage" tabindex="0" role="application" aria-label="The head. Arrow keys or dragging turn it.">
    <canvas class="left" width="512" height="512"></canvas><canvas class="right" width="512" height="512"></canvas>
    <div class="line"></div>
  </div>
  <select class="left" aria-label="What is shown on the left"></select>
  <select class="right" aria-label="What is shown on the right"></select>
  <p class="empty">Drop in a photo: here it stands beside its head.</p><span class="hint">↔ drag to turn</span>
</div>
<div class="bar">
  <button class="play" type="button">▶ Turn</button>
  <button class="front" type="button" title="Turn the head back to where the photo was taken from">Reset view</button>
  <button class="over" type="button" aria-pressed="false" title="One picture over the other, with a line between">
    Overlay</button>
  <button class="look" type="button" title="Make a picture of this view, to download">Save view</button>
</div>
<input class="split" type="range" min="0" max="100" value="50" aria-label="Line between left and right">
<span class="said" aria-live="polite"></span>
"""

VIEWER_CSS = (
    """
& {width: 100%}
.frame {position: relative}
.stage {display: grid; grid-template-columns: 1fr 1fr; gap: 8px; margin: auto; overflow: hidden; cursor: grab;
  touch-action: pan-y; user-select: none; position: relative; border-radius: 14px}
.stage:active {cursor: grabbing}
.stage:focus-visible {outline: 3px solid var(--color-accent); outline-offset: 2px}
.stage canvas {width: 100%; aspect-ratio: 1; border-radius: 14px; background: var(--background-fill-secondary);
  transition: opacity .15s}
.stage.over {width: max(50%, 240px); grid-template-columns: 1fr}
.stage.over canvas {grid-area: 1 / 1}
.line {position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: white; display: none;
  box-shadow: 0 0 4px rgba(0,0,0,.6); pointer-events: none}
.stage.over .line {display: block}
.frame select {position: absolute; top: 10px; left: 10px; max-width: 44%; min-height: 32px; padding: 2px 10px;
  font: 600 13px/1 var(--font, sans-serif); border: 0; border-radius: 16px; color: white; cursor: pointer;
  padding-right: 28px; appearance: none; field-sizing: content; background:
  linear-gradient(45deg, transparent 50%, white 50%) calc(100% - 16px) 55% / 5px 5px no-repeat,
  linear-gradient(-45deg, transparent 50%, white 50%) calc(100% - 11px) 55% / 5px 5px no-repeat, rgba(0,0,0,.6)}
.frame select.right {left: calc(50% + 14px)}
.frame:has(.over) select.left {left: calc(50% - max(50%, 240px) / 2 + 10px)}
.frame:has(.over) select.right {left: auto; right: calc(50% - max(50%, 240px) / 2 + 10px)}
.frame select option {color: black; background: white}
.frame select:focus-visible {outline: 3px solid var(--color-accent)}
.hint {position: absolute; right: 12px; bottom: 10px; padding: 3px 10px; border-radius: 12px; font-size: 12px;
  color: white; background: rgba(0,0,0,.45); pointer-events: none; transition: opacity .4s}
:is(.touched, .frame:has(.over)) .hint {opacity: 0}
.empty {display: none; position: absolute; inset: 0; place-content: center; margin: 0; text-align: center;
  pointer-events: none}
.frame.nothing .empty {display: grid}
.frame.nothing :is(select, .hint) {display: none}
.bar {display: flex; gap: 8px; margin-top: 10px}
.bar button {flex: 1; min-height: 36px; padding: 0 6px; font: 500 14px/1 var(--font, sans-serif); white-space: nowrap;
  color: var(--body-text-color); background: var(--button-secondary-background-fill); border-radius: 10px;
  border: 1px solid var(--border-color-primary); cursor: pointer}
@media (hover: hover) {.bar button:hover {border-color: var(--color-accent)}}
.bar button[aria-pressed=true] {border-color: var(--color-accent); background: var(--color-accent); color: white}
.split {display: none; width: 100%; margin-top: 8px; accent-color: var(--color-accent)}
.frame:has(.over) ~ .split {display: block}
.said {position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)}
@media """
    + TOUCHED
    + """ {
  .frame select, .bar button {min-height: 44px}
  .frame select {top: 0; left: 0; border: 8px solid transparent; border-radius: 22px; font-size: 12px;
    background-clip: padding-box}
  .frame select.right {left: calc(50% + 4px)}
  .frame:has(.over) select.left {left: calc(50% - max(50%, 240px) / 2)}
  .frame:has(.over) select.right {right: calc(50% - max(50%, 240px) / 2)}
  .bar button {font-size: 13px}
  .split {height: 44px; margin: 0}
  .bar {margin-top: 6px}
}
"""
)

VIEWER_JS = """
const names = {photo: "Photo", reconstruction: "Before edits", edited: "3D head", depth: "Depth"};
const frame = element.querySelector(".frame"), stage = element.querySelector(".stage");
const split = element.querySelector(".split");
const side = (kind, which) => element.querySelector(kind + "." + which);
let images = {}, angles = [[0, 0]], yaw = 0, pitch = 0, playing = 0, shown = null;
let head = null, greeted = false, touched = false;

function fill() {
  for (const which of ["left", "right"]) {
    const select = side("select", which), before = select.value || (which === "left" ? "photo" : "edited");
    const there = Object.keys(names).filter(name => images[name]);
    select.replaceChildren(...there.map(name => new Option(names[name], name)));
    select.value = images[before] ? before : which === "left" ? "reconstruction" : "edited";
  }
  frame.classList.toggle("nothing", !Object.keys(images).length);
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
    if (!image || !image.complete || !image.naturalWidth) continue;
    context.imageSmoothingQuality = "high";
    if (name === "photo") { context.drawImage(image, 0, 0, canvas.width, canvas.height); continue; }
    const columns = Math.min(props.value.columns, image.count), size = image.naturalWidth / columns;
    const place = nearest(image.count);
    shown = angles[place];
    context.drawImage(image, place % columns * size, Math.floor(place / columns) * size, size, size,
      0, 0, canvas.width, canvas.height);
  }
  const at = split.value, over = stage.classList.contains("over");
  side("canvas", "right").style.clipPath = over ? `inset(0 0 0 ${at}%)` : "";
  side("canvas", "left").style.clipPath = over ? `inset(0 ${100 - at}% 0 0)` : "";
  element.querySelector(".line").style.left = at + "%";
  stage.dataset.frame = shown ? shown.join(" ") : "";
}
function turn(by_yaw, by_pitch) {
  const reach = angle => Math.max(...angles.map(a => Math.abs(a[angle])));
  yaw = Math.max(-reach(0), Math.min(reach(0), yaw + by_yaw));
  pitch = Math.max(-reach(1), Math.min(reach(1), pitch + by_pitch));
  draw();
}
function say() {
  if (!shown) return;
  const [across, along] = shown.map(Math.round);
  const aside = across < 0 ? "left" : "right", height = along < 0 ? "above" : "below";
  element.querySelector(".said").textContent =
    `Seen from ${Math.abs(across)}° ${aside}, ${Math.abs(along)}° ${height}`;
}
function stop() {
  cancelAnimationFrame(playing);
  playing = 0;
  element.querySelector(".play").textContent = "▶ Turn";
}
function play(seat, rounds) {  // seat: phase -> [yaw, pitch]
  stop();
  element.querySelector(".play").textContent = "■ Stop";
  const start = performance.now();
  const step = now => {
    const phase = (now - start) / 5000 * 2 * Math.PI;
    if (phase >= rounds * 2 * Math.PI) { stop(); [yaw, pitch] = angles[0]; draw(); return; }
    [yaw, pitch] = seat(phase);
    if (!shown || nearest(angles.length) !== angles.indexOf(shown)) draw();
    playing = requestAnimationFrame(step);
  };
  playing = requestAnimationFrame(step);
}
// A new head turns once, as soon as all its sides are there, unless somebody was quicker.
function greet() {
  const edited = images.edited;
  if (greeted || !edited || edited.count < angles.length) return;
  greeted = true;
  if (touched || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const [aside, above] = angles[0];
  play(phase => [aside + 40 * Math.sin(phase), above], 1);
}
function touch() {
  stop(); touched = true; frame.classList.add("touched");
}
function load() {
  const value = props.value;
  if (!value || !value.angles) { stop(); images = {}; shown = head = null; fill(); draw(); return; }
  const key = value.photo ? value.photo.src : value.angles[0].join();
  if (key !== head) { head = key; greeted = touched = false; }
  if (JSON.stringify(angles[0]) !== JSON.stringify(value.angles[0]) || !Object.keys(images).length)
    [yaw, pitch] = value.angles[0];
  angles = value.angles;
  for (const name of Object.keys(names)) {
    if (!value[name]) { delete images[name]; continue; }
    if (images[name] && images[name].src === value[name].src) continue;
    const image = new Image();
    image.count = value[name].count;
    // The former picture stands until the new one can be drawn, if that is still wanted.
    image.onload = () => {
      if (props.value?.[name]?.src !== image.src) return;
      images[name] = image; fill(); draw(); greet();
    };
    image.src = value[name].src;
  }
  fill(); draw();
}
let held = null;
stage.addEventListener("pointerdown", event => { touch(); held = [event.clientX, event.clientY];
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
  event.preventDefault(); touch(); turn(...step); say();
});
split.addEventListener("input", draw);
element.addEventListener("change", event => { if (event.target.matches("select")) draw(); });
element.querySelector(".front").addEventListener("click", () => { stop(); [yaw, pitch] = angles[0]; draw(); });
element.querySelector(".over").addEventListener("click", event => {
  event.target.setAttribute("aria-pressed", stage.classList.toggle("over")); draw();
});
element.querySelector(".look").addEventListener("click", () => {
  if (shown) trigger("look", {yaw: shown[0], pitch: shown[1]});
});
element.querySelector(".play").addEventListener("click", () => {
  if (playing) { stop(); return; }
  touched = true;
  play(phase => [45 * Math.sin(phase), 20 * Math.cos(phase)], Infinity);
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
LIST_CSS = (
    """
ol {list-style: none; margin: 0; padding: 0; font-size: 14px; color: var(--body-text-color)}
li {display: flex; align-items: center; gap: 6px; padding: 2px 0}
li label {flex: 1; display: flex; gap: 8px; align-items: center; cursor: pointer}
li.off label {text-decoration: line-through; opacity: .6}
li input {appearance: auto !important; accent-color: var(--color-accent)}
li button {min-width: 32px; min-height: 32px; border: 1px solid var(--border-color-primary); border-radius: 8px;
  color: var(--body-text-color); background: var(--button-secondary-background-fill); cursor: pointer}
li button:disabled {opacity: .35; cursor: default}
.none {opacity: .75}
@media """
    + TOUCHED
    + """ {li :is(label, button) {min-width: 44px; min-height: 44px}}
"""
)
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


FACES_HTML = '<div class="faces" role="group" aria-label="Which face?"></div>'
FACES_CSS = """
.faces {display: grid; grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); gap: 8px; max-height: 264px;
  overflow-y: auto; padding: 3px}
button {padding: 0 0 2px; border: 2px solid transparent; border-radius: 10px; overflow: hidden; cursor: pointer;
  font: 500 12px/1.5 var(--font, sans-serif); color: var(--body-text-color);
  background: var(--background-fill-secondary)}
button img {display: block; width: 100%; aspect-ratio: 1; object-fit: cover}
button:hover:enabled {border-color: var(--border-color-accent)}
button[aria-pressed=true] {border-color: var(--color-accent); color: var(--color-accent); font-weight: 700}
button:focus-visible {outline: 3px solid var(--color-accent)}
button:disabled {opacity: .5; cursor: not-allowed}
"""
FACES_JS = """
const faces = element.querySelector(".faces");
function load() {
  const standing = faces.contains(document.activeElement) ? document.activeElement.dataset.number : null;
  faces.replaceChildren(...(props.value || []).map(face => {
    const made = document.createElement("button"), picture = document.createElement("img");
    made.type = "button"; made.disabled = face.too_small; made.dataset.number = face.number;
    made.setAttribute("aria-pressed", face.chosen);
    picture.src = face.src; picture.alt = `Face ${face.number}`;
    made.append(picture, face.too_small ? "too small" : `Face ${face.number}`);
    made.setAttribute("aria-label", `Face ${face.number}${face.too_small ? ", too small" : ""}`);
    made.addEventListener("click", () => trigger("pick", {number: face.number}));
    return made;
  }));
  if (standing) faces.querySelector(`[data-number="${standing}"]`)?.focus();
}
watch("value", load);
load();
"""


def face_picker() -> gr.HTML:
    """The faces of a photo as pictures to choose from. The value: [{"number": from 1, "src": an address, "chosen",
    "too_small"}]. The event `pick` has the `number` of the face. Not a gr.Gallery: that would put the faces of all
    who are in the photo on the disk."""
    return gr.HTML(
        [],
        html_template=FACES_HTML,
        css_template=FACES_CSS,
        js_on_load=FACES_JS,
        elem_id="picker",
        visible=False,
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

# On a phone the pictures stay at the top while everything that changes them passes under them, words too: Gradio lifts
# those to 40.
CSS = (
    """
.gradio-container {overflow: clip !important}  /* hidden, as Gradio has it, would keep anything from being sticky */
.gradio-container > .main {max-width: 1360px !important; margin: auto;
  padding: 14px clamp(16px, 2.2vw, 28px) !important}
#intro h1 {font-size: 26px; line-height: 1.2; margin: 0 0 2px; letter-spacing: -.01em}
#intro p {margin: 0}
#work {display: grid; gap: 14px 28px;
  grid-template: "pictures start" auto "pictures sliders" 1fr / minmax(0, 1fr) clamp(270px, 27.5vw, 350px)}
#work > .column {min-width: 0 !important}
#start {grid-area: start; gap: 8px}
#sliders {grid-area: sliders; gap: 4px}
#pictures {grid-area: pictures; align-self: start; position: sticky; top: 10px; gap: 18px}
:is(#viewer, #picker, #edits) {padding: 0; overflow: visible !important}
:is(#viewer, #picker, #edits) .html-container {padding: 0}
#told {gap: 28px}
#told .column {gap: 8px}
#verdict p {margin: 0 0 4px}
#stop:disabled {display: none}
:is(#refine, #stop) {flex: 0 1 200px}
#photo:has(video) {height: 300px !important}
#photo {border: 1.5px dashed var(--border-color-accent); background: var(--background-fill-secondary)}
#others {gap: 10px; align-items: center; flex-wrap: nowrap}
#forget {flex: 0 0 auto}
#status {min-height: 1.5em}
:is(#privacy, #improved, #about) p {margin: 0; font-size: 12.5px; line-height: 1.4}
:is(#intro, #privacy, #improved, #about) p {opacity: .75}
footer :is(a, button) {display: inline-flex; align-items: center; min-height: 44px}
#results {margin-top: 16px; gap: 28px}
:is(#sliders, #more) .form {background: none; border: 0; box-shadow: none; gap: 6px}
.attribute {padding: 3px 0 !important; background: none; box-shadow: none; border: 0 !important}
.attribute .wrap {gap: 2px}
.attribute :is(.head, .head *) {margin: 0; align-items: center}
.attribute :is(.min_value, .max_value) {display: none}
.attribute input[type=range] {height: 16px; background: linear-gradient(to right, transparent var(--low),
  var(--color-accent) 0, var(--color-accent) var(--high), transparent 0) bottom / 100% 2px no-repeat}
#yaw, #pitch {--zero: 50%}
:is(.attribute, #yaw, #pitch) input[type=range]::-webkit-slider-runnable-track {background: linear-gradient(to right,
  var(--neutral-200) min(var(--zero), var(--range_progress)), var(--slider-color) 0,
  var(--slider-color) max(var(--zero), var(--range_progress)), var(--neutral-200) 0) !important}
.dark :is(.attribute, #yaw, #pitch) input[type=range]::-webkit-slider-runnable-track {
  background: linear-gradient(to right, var(--neutral-600) min(var(--zero), var(--range_progress)),
  var(--slider-color) 0, var(--slider-color) max(var(--zero), var(--range_progress)), var(--neutral-600) 0) !important}
.attribute input[type=range]::-moz-range-progress {background: transparent !important}
.generating {border-color: transparent !important; animation: none !important}
#examples {flex: 1; background: none; border: 0; box-shadow: none}
#examples .grid-wrap {max-height: none !important; min-height: 0; height: auto; overflow: visible; padding: 0}
#examples, #examples > * {height: auto !important; min-height: 0 !important}
#examples .grid-container {height: auto; grid-template-columns: repeat(auto-fill, 56px) !important; gap: 8px;
  grid-template-rows: auto !important; grid-auto-rows: auto !important}
#examples .thumbnail-item {width: 100%; height: auto; aspect-ratio: 1}
#format .wrap {flex-wrap: nowrap; gap: 4px}
#format label {padding: 4px 8px}
@media """
    + NARROW
    + """ {
    #intro h1 {font-size: 21px}
    #intro p {font-size: 14px}
    #work {display: flex; flex-flow: column; align-items: stretch; gap: 14px}
    #pictures {display: contents}
    #viewer {order: -1; position: sticky; top: 0; z-index: 60; margin: 0 -16px; width: auto;
      padding: 6px 16px 8px !important;
      border-radius: 0; background: var(--body-background-fill); box-shadow: 0 6px 8px -8px rgba(0,0,0,.4)}
    #told {order: 1}
}
@media """
    + TOUCHED
    + """ {
    button, a[download], input:not([type=checkbox], [type=radio], [type=file]), #format label, #space label
      {min-height: 44px !important; min-width: 44px}
    button:has(> svg:only-child), #photo .source-selection button {padding: 12px !important}
    .tab-like-container {height: auto !important}
    .attribute .wrap {gap: 0}
    .attribute input[type=range] {height: 44px; background-position: 0 34px}
}
"""
)


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
