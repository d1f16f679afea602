"""What a person can do with a head on the page, in headless Chromium: both spaces of directions, recipes and copied
lines, the mesh, better likeness, film, face picker, protection; and what is said when the session has ended."""

import base64
import io
import json
import re
import shlex
import shutil
import subprocess

import gradio as gr
import numpy as np
import pytest
from browsing import drop_in, pixels, set_slider, source_of, visiting, wait_for_change
from PIL import Image
from running import running_page
from test_mesh import GLTF, needs_npm, viewer_url  # noqa: F401

from preim3d.__main__ import main
from preim3d.align import Face
from preim3d.directions import Directions
from preim3d.edits import Plan
from preim3d.judge import Judgement, Likeness
from preim3d.page.answers import Answers, face_choices, viewer_angles
from preim3d.page.verdict import Verdict
from preim3d.page.visitor import Visitor
from preim3d.pipeline import Preim3DPipeline
from preim3d.reader import HeadReader
from preim3d.recipe import main as recipe_main


@pytest.fixture(scope="module")
def weights(tiny_weights, tmp_path_factory):
    """The tiny pipeline with other directions for the original space; one attribute has none there."""
    folder = tmp_path_factory.mktemp("both") / "tiny"
    shutil.copytree(tiny_weights, folder)
    pipeline = Preim3DPipeline.from_pretrained(tiny_weights)
    config = {key: value for key, value in pipeline.directions.config.items() if not key.startswith("_")}
    fewer = {key: config[key][:-1] for key in ("names", "labels", "groups", "accuracies", "safe_range")}
    origin = Directions(**config | fewer | {"space": "origin"})
    origin.vectors.copy_(pipeline.directions.vectors[:-1].flip(0))
    origin.save_pretrained(folder / "origin_directions")
    return folder


@pytest.fixture(scope="module")
def address(weights, portrait, tmp_path_factory):
    """The page, running."""
    with running_page(tmp_path_factory.mktemp("page"), "--weights", weights) as server:
        yield server.address
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


def press(page, name: str) -> None:
    """A click that does not wait for the mesh's viewer, which keeps a browser without a GPU busy."""
    page.wait_for_selector(f"#{name}", state="attached")  # what a fold holds comes with its opening
    page.evaluate("name => document.getElementById(name).click()", name)


def open_fold(page, name: str) -> None:
    fold = page.locator("button.label-wrap", has_text=name)
    if "open" not in fold.get_attribute("class").split():
        fold.click()


def code(page, name: str, part: str) -> str:
    """The text of a code box as soon as it holds this part, opening what hides it."""
    open_fold(page, "For researchers")
    page.locator(f"#{name} .cm-line", has_text=part).first.wait_for()
    return "\n".join(page.locator(f"#{name} .cm-line").all_inner_texts())


def picture(page, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(pixels(page, name))) as shown:
        return np.asarray(shown.convert("RGB"))


def test_copied_lines_and_the_recipe_make_the_picture_again(page, browser, address, portrait, tmp_path, monkeypatch):
    drop_in(page, portrait)
    wait_for_change(page, "model", None)
    page.locator("#verdict").get_by_text("Photo and head: ").wait_for()
    set_slider(page, "smile", 1.5)
    page.locator("#edits").get_by_text("Smile +1.5").wait_for()
    open_fold(page, "For researchers")
    page.locator("#figures").get_by_text("Before and after the edit: distance").wait_for()
    shown = picture(page, "edited")
    shutil.copy(portrait, tmp_path)
    monkeypatch.chdir(tmp_path)

    assert main(shlex.split(code(page, "command", "--set smile=1.5"))[3:]) == 0
    (made,) = (tmp_path / "out").rglob("edited_grid.png")
    assert np.array_equal(np.asarray(Image.open(made).convert("RGB")), shown)
    exec(code(page, "python", "smile"), {})
    front = np.asarray(Image.open("front.png"))
    middle = shown[len(front) + 2 :, len(front) + 2 :]
    part = slice(len(front) // 4), slice(len(front))  # the lower half of a cell has its angles written on it
    assert np.array_equal(front[part], middle[part])

    # The same edit with directions of the original space: another picture, and both are compared in words.
    page.get_by_text("More attributes").click()
    page.wait_for_timeout(1_000)  # what is typed while the fold still opens is lost; no person is as fast
    set_slider(page, "goatee", 1)
    before = source_of(page, "edited")
    page.get_by_label("the original space").click()
    wait_for_change(page, "edited", before)
    page.locator("#verdict").get_by_text("Left out: goatee").wait_for()
    page.locator("#figures").get_by_text("The same edits with directions of the inversion manifold").wait_for()
    assert code(page, "python", 'space="origin"')
    there = picture(page, "edited")
    assert not np.array_equal(there, shown)

    # A recipe restores that without the photo, on a fresh page and from the command line.
    open_fold(page, "Recipe: continue later")
    with page.expect_download() as download:
        press(page, "recipe")
    download.value.save_as("head.recipe.json")
    assert recipe_main(shlex.split(code(page, "command", "recipe"))[3:]) == 0
    assert np.array_equal(np.asarray(Image.open("out/grid.png").convert("RGB")), there)
    with visiting(browser, address) as fresh:
        open_fold(fresh, "Recipe: continue later")
        with fresh.expect_file_chooser() as chooser:
            press(fresh, "use-recipe")
        chooser.value.set_files("head.recipe.json")
        fresh.locator("#status").get_by_text("Restored from a recipe").wait_for()
        fresh.locator("#edits").get_by_text("Smile +1.5").wait_for()
        wait_for_change(fresh, "grid", None)
        wait_for_change(fresh, "edited", source_of(fresh, "grid"))
        assert np.array_equal(picture(fresh, "edited"), there)
        open_fold(fresh, "For researchers")
        assert fresh.locator("#space input:checked").get_attribute("value") == "origin"


def test_the_mesh_is_turned_rendered_from_there_and_downloaded(page, browser, portrait, tmp_path, viewer_url):  # noqa: F811
    drop_in(page, portrait)
    wait_for_change(page, "model", None)
    canvas = page.locator("#model canvas")
    canvas.wait_for()
    page.wait_for_timeout(3000)
    before = canvas.screenshot()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 120, box["y"] + 150, steps=4)
    page.mouse.up()
    page.wait_for_timeout(3000)
    assert canvas.screenshot() != before
    press(page, "look-as-mesh")
    wait_for_change(page, "looked", None)
    wait_for_change(page, "depth", None)
    # The head was dragged to the left, so it is seen from its other side, which has positive yaw.
    assert float(page.locator("#yaw input[type=number]").input_value()) > 5
    looked = source_of(page, "looked")
    page.locator("#viewer .look").evaluate("button => button.click()")  # which still stands where the photo was taken
    wait_for_change(page, "looked", looked)

    with page.expect_download() as download:
        press(page, "download")
    download.value.save_as(tmp_path / "head.glb")
    needs_npm("gltf-validator")
    command = ["node", str(GLTF / "validate.mjs"), str(tmp_path / "head.glb")]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert report["issues"]["messages"] == [] and report["info"]["totalTriangleCount"] > 100
    page.close()  # its viewer keeps drawing
    other = browser.new_page()
    other.set_default_timeout(60_000)
    other.route("**/head.glb", lambda route: route.fulfill(body=(tmp_path / "head.glb").read_bytes()))
    other.goto(f"{viewer_url}?model=head.glb")
    other.wait_for_function("document.title === 'ready'")
    other.context.close()


def test_likeness_is_improved_and_stopped_and_the_orbit_filmed(page, portrait, tmp_path):
    av = pytest.importorskip("av")
    drop_in(page, portrait)
    wait_for_change(page, "model", None)
    assert "minute" in page.inner_text("#improved")
    before = source_of(page, "grid")
    press(page, "improve")
    page.locator("#improved").get_by_text("s left").wait_for()
    assert code(page, "python", "load_recipe")  # the photo alone no longer makes this head
    press(page, "stop")
    wait_for_change(page, "grid", before)
    page.get_by_text("Picture from any side, depth, film").click()
    press(page, "make-film")
    page.wait_for_selector("#film video[src]")
    film = page.request.get(page.get_attribute("#film video", "src")).body()
    with av.open(io.BytesIO(film)) as orbit:
        assert sum(1 for _ in orbit.decode(video=0)) == 90


def test_one_of_several_faces_is_picked_and_an_attribute_protected(page, portrait, tmp_path):
    group = Image.new("RGB", (1024, 512))
    with Image.open(portrait) as one:
        group.paste(one.resize((512, 512)))
        group.paste(one.resize((440, 440)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (560, 30))
    group.save(tmp_path / "two.jpg", quality=95)
    drop_in(page, tmp_path / "two.jpg")
    page.locator("#status").get_by_text("2 faces were found").wait_for()
    grid = wait_for_change(page, "grid", None)
    # By its picture, without a mouse.
    faces = page.locator("#picker button")
    assert faces.all_inner_texts() == ["Face 1", "Face 2"]
    assert page.evaluate("[...document.querySelectorAll('#picker img')].every(picture => picture.naturalWidth > 50)")
    faces.nth(0).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#picker button[aria-pressed=true]", has_text="Face 2").wait_for()
    wait_for_change(page, "grid", grid)
    assert code(page, "python", "face=2") and code(page, "command", "--face 2")

    before = set_slider(page, "smile", 2)
    assert "'age'" not in code(page, "python", "'smile': 2")
    page.locator("#protect input").click()
    page.get_by_role("option", name="Age").click()
    wait_for_change(page, "edited", before)
    assert code(page, "python", "'age'")  # as much of it as undoes what smile does to age
    assert page.evaluate("[...document.querySelectorAll('.block img')].every(picture => picture.alt)")


def test_faces_are_shown_as_squares_of_the_photo_and_small_ones_cannot_be_chosen():
    photo = Image.new("RGB", (300, 200), "green")
    photo.paste("red", (60, 40, 160, 160))
    photo.paste("blue", (280, 0, 300, 24))
    at = {name: np.array(points, float) for name, points in {
        "large": [[85, 85], [135, 85], [110, 110], [92, 132], [128, 132]],
        "small": [[283, 8], [293, 8], [288, 13], [284, 18], [292, 18]],
    }.items()}  # fmt: skip
    faces = [Face(points, 1.0, (0.0, 0.0)) for points in at.values()]
    first, second = face_choices(photo, faces, 1)
    assert (first["number"], first["chosen"], first["too_small"]) == (1, True, False)
    assert (second["number"], second["chosen"], second["too_small"]) == (2, False, True)
    for choice, channel in ((first, 0), (second, 2)):
        with Image.open(io.BytesIO(base64.b64decode(choice["src"].partition(",")[2]))) as shown:
            pixels = np.asarray(shown.convert("RGB")).astype(int)
        assert pixels.shape == (112, 112, 3) and pixels[56, 56].argmax() == channel


def test_the_verdict_has_words_for_everybody_and_figures_apart(pipeline, tiny_weights, tmp_path):
    verdict = Verdict.of_weights(tmp_path / "no-reader", tiny_weights, pipeline.directions)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    visitor = Visitor(w=np.zeros((1, 1)), crop=picture, front=picture)
    words, figures = verdict.describe(visitor, picture)
    assert words == "**Photo and head: unmistakably the same person.**"
    assert figures.startswith("Photo and reconstruction: distance 0.00.")
    assert "two photos of one person differ by 0.26, photos of strangers by 0.83" in figures
    # Without a photo, or a network to compare with it, nothing is claimed.
    visitor.crop = None
    assert verdict.describe(visitor, picture) == ("", "")


def test_the_verdict_tells_an_edit_in_words_and_figures(pipeline, tiny_weights, tmp_path):
    names = ("Smiling", "Young", "Male")
    HeadReader(32, (1, 1, 1, 1), (16, 16, 16, 16), 2, 2, 16, names, 4, (1.0, 1.0, 1.0)).save_pretrained(tmp_path)
    verdict = Verdict.of_weights(tmp_path, tiny_weights, pipeline.directions)
    before, after = (Image.new("RGB", (256, 256), color) for color in ("grey", "white"))
    visitor = Visitor(w=np.zeros((1, 1)), front=before)
    visitor.history.do(visitor.history.plan.with_strengths({"smile": 2.0}))
    words, figures = verdict.describe(visitor, after, before)
    assert words.startswith("**The edit ") and "Smile: " in words and not re.search(r"[0-9]", words)
    assert "Before and after the edit: distance" in figures and "**Altered (AA):** smile" in figures
    # The other directions' figures stand beside these as soon as both are known.
    visitor.history.do(visitor.history.plan._replace(space="origin"))
    assert "directions of the inversion manifold: distance" in verdict.describe(visitor, after, before)[1]


def test_changes_are_told_by_their_size(pipeline):
    altering, drifts = {"smile": 1.2, "age": -0.3, "hat": 0.1}, {"grey hair": 0.9, "wrinkles": -0.6, "bald": 0.4}
    judgement = Judgement(Likeness(0.2, "The edit keeps the person"), altering, 0.3, drifts)
    verdict = Verdict(None, None, pipeline.directions)
    assert verdict.in_words(judgement) == (
        "**The edit keeps the person.** Smile: much more; Age: a little less; Hat: hardly any change.\n\n"
        "Also changed: grey hair (more), wrinkles (less)."
    )
    assert verdict.in_words(Judgement(None, {}, 0.1, {"bald": -0.4})) == "Nothing else changed much."


def test_a_session_that_has_ended_says_so(pipeline):
    answers = Answers(None, None, {"inversion": pipeline.directions}, None, [], "", None)
    fresh = Visitor(w=np.zeros((1, 1)))
    assert answers.has_head(fresh, fresh.key)
    with pytest.raises(gr.Error, match="has ended; drop the photo in again"):
        answers.has_head(fresh, Visitor().key)
    # But not where another head has just taken the place of the one that the browser shows.
    assert not answers.has_head(Visitor(w=np.zeros((1, 1))).after(fresh), fresh.key)


def test_only_the_newest_sliders_of_this_turn_count(pipeline):
    """Notes overtake each other, and an undo moves the sliders while the browser still shows where they were."""
    answers = Answers(None, None, {"inversion": pipeline.directions}, None, [], "", None)
    visitor = Visitor()
    before = visitor.sliders.turn
    answers.note_sliders(visitor, 2.0, before, 0.2)
    answers.note_sliders(visitor, 1.0, before, 0.1)
    assert visitor.sliders.told == (0.2,)
    told = answers.slider_boxes(visitor, Plan())
    answers.note_sliders(visitor, 3.0, before, 0.3)
    assert visitor.sliders.told is None and told["turn"] == visitor.sliders.turn != before
    answers.note_sliders(visitor, 4.0, visitor.sliders.turn, 0.4)
    assert visitor.sliders.told == (0.4,)


def test_the_mesh_viewers_angles_are_cameras_angles():
    assert viewer_angles(90, 90) == pytest.approx((0, 0))
    assert viewer_angles(60, 90) == pytest.approx((30, 0))
    assert viewer_angles(-240, 60) == pytest.approx((-30, -45))  # elevation 30 is nominal pitch -45: see `camera`
    assert viewer_angles(None, None) == (0, 0)
