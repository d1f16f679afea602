"""The page as a person uses it: app.py in a process of its own, tiny networks, headless Chromium."""

import json
import subprocess
import sys
import urllib.request

import pytest
from browsing import drop_in, pixels, set_slider, source_of, visiting, wait_for_change, wait_for_empty_box
from conftest import ROOT
from PIL import Image
from running import PATIENCE_S


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}


def test_a_photo_becomes_a_head_that_can_be_edited_and_downloaded(page, portrait, tmp_path):
    edit_and_download(page, portrait, tmp_path)


def test_a_phone_shows_and_does_everything_without_scrolling_sideways(browser, address, portrait, tmp_path):
    with visiting(browser, address, **PHONE) as phone:
        edit_and_download(phone, portrait, tmp_path)
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
        phone.evaluate("scrollTo(0, 0)")
        boxes = ("viewer", "photo", "sliders", "verdict", "model", "grid", "edited")
        tops = [phone.locator(f"#{name}").bounding_box()["y"] for name in boxes]
        assert tops == sorted(tops)
        phone.get_by_text("Recipe: continue later").tap()
        with phone.expect_download() as download:
            phone.tap("#recipe")
        download.value.save_as(tmp_path / "head.recipe.json")
        phone.tap("#forget")
        phone.locator("#status").get_by_text("Forgotten").wait_for()
        with phone.expect_file_chooser() as chooser:
            phone.tap("#use-recipe")
        chooser.value.set_files(tmp_path / "head.recipe.json")
        phone.locator("#status").get_by_text("Restored from a recipe").wait_for()
        wait_for_change(phone, "grid", None)
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")


TOO_LOW = """() => [...document.querySelectorAll("button, select, input:not([type=file]), a[download], footer a")]
    .filter(control => control.checkVisibility({visibilityProperty: true, opacityProperty: true}))
    .map(control => ["radio", "checkbox"].includes(control.type) ? control.closest("label") : control)
    .filter(touched => touched.getBoundingClientRect().width > 1)
    .filter(touched => touched.getBoundingClientRect().height < 43.9)
    .map(touched => touched.outerHTML.slice(0, 200))"""


def test_a_phone_keeps_the_edited_picture_in_sight_and_has_controls_for_fingers(browser, address, portrait):
    with visiting(browser, address, **PHONE) as phone:
        drop_in(phone, portrait)
        wait_for_change(phone, "grid", None)
        phone.locator("#verdict").get_by_text("Photo and head: ").wait_for()
        phone.get_by_text("More attributes").tap()
        for name in ("smile", "mouth_open", "bald"):
            phone.evaluate(f"document.getElementById('slider-{name}').scrollIntoView({{block: 'end'}})")
            picture, slider = (phone.locator(q).bounding_box() for q in ("#viewer canvas.right", f"#slider-{name}"))
            assert picture["y"] >= 0 and picture["height"] > 150, name
            bar = phone.locator("#viewer").bounding_box()
            assert bar["y"] + bar["height"] <= slider["y"] and slider["y"] + slider["height"] <= 845, name
        covered = """() => {
            scrollBy(0, document.querySelector("#slider-bald label").getBoundingClientRect().y - 120);
            const box = document.querySelector("#slider-bald label span").getBoundingClientRect();
            return !!document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).closest("#viewer");
        }"""
        assert phone.evaluate(covered)  # words too pass under the picture
        for fold in ("Picture from any side", "Recipe: continue later", "For researchers"):
            phone.locator("button.label-wrap", has_text=fold).tap()
        set_slider(phone, "smile", 1)
        phone.locator("#edits").get_by_text("Smile +1.0").wait_for()
        assert phone.evaluate(TOO_LOW) == []
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_photo_head_and_upload_are_seen_without_scrolling(browser, address, portrait):
    with visiting(browser, address, viewport={"width": 1280, "height": 800}, reduced_motion="reduce") as page:
        drop_in(page, portrait)
        wait_for_change(page, "grid", None)
        page.wait_for_selector("#viewer .stage:not([data-frame=''])")
        left, right = (page.locator(f"#viewer canvas.{side}").bounding_box() for side in ("left", "right"))
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
        assert min(left["width"], right["width"]) >= 400
        for name in ("#photo", "#viewer", "#verdict", "#slider-smile", "#undo"):
            box = page.locator(name).bounding_box()
            assert box["y"] + box["height"] <= 800 and box["x"] + box["width"] <= 1280, name
        assert page.locator("#verdict").get_by_text("Photo and head: ").is_visible()
        # Figures and what belongs to them wait in one fold.
        seen = page.locator("body").inner_text().lower()
        assert not any(
            word in seen for word in ("inversion manifold", "dlib", "standard deviation", "(ad)", "distance")
        )


def test_a_new_head_turns_once_by_itself(browser, address, portrait):
    with visiting(browser, address) as page:
        drop_in(page, portrait)
        page.wait_for_function(
            """() => {
                (window.seats ??= new Set()).add(document.querySelector("#viewer .stage").dataset.frame);
                const playing = document.querySelector("#viewer .play").textContent.includes("Stop");
                return window.seats.size > 3 && !playing;
            }""",
            polling=50,
        )
        yaws = [float(seat.split()[0]) for seat in page.evaluate("[...seats].filter(Boolean)")]
        assert max(yaws) - min(yaws) > 40
        # In the end it looks as in the photo.
        rest = page.get_attribute("#viewer .stage", "data-frame")
        page.click("#viewer .front")
        assert page.get_attribute("#viewer .stage", "data-frame") == rest


def edit_and_download(page, portrait, tmp_path):
    drop_in(page, portrait)
    for name in ("grid", "edited"):
        wait_for_change(page, name, None)
    page.locator("#status").get_by_text("1 face was found").wait_for()
    assert pixels(page, "grid") == pixels(page, "edited")
    mesh = wait_for_change(page, "model", None)
    page.wait_for_selector("#model canvas")

    # Arrow keys move the slider and count as letting go of it.
    before = source_of(page, "edited")
    slider = page.locator("#slider-smile input[type=range]")
    slider.focus()
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    wait_for_change(page, "edited", before)
    assert wait_for_change(page, "model", mesh).endswith(".glb")
    assert pixels(page, "grid") != pixels(page, "edited")

    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "head.glb")
    assert download.value.suggested_filename == "head.glb"
    assert (tmp_path / "head.glb").read_bytes()[:4] == b"glTF"

    page.click("#reset")
    page.wait_for_function("document.querySelector('#slider-smile input[type=range]').value == 0")
    for _ in range(4 * PATIENCE_S):
        if pixels(page, "grid") == pixels(page, "edited"):
            break
        page.wait_for_timeout(250)
    else:
        raise AssertionError("the reset did not bring the reconstruction back")


@pytest.mark.parametrize(
    "name, sentence",
    [("text.jpg", "not a picture"), ("empty.png", "empty"), ("grass.png", "No face found"), ("dot.png", "1 x 1 px")],
)
def test_a_bad_photo_is_told_in_words_and_the_next_good_one_works(page, portrait, tmp_path, name, sentence):
    bad = tmp_path / name
    if name == "grass.png":
        Image.new("RGB", (300, 300), "green").save(bad)
    elif name == "dot.png":
        Image.new("RGB", (1, 1)).save(bad)
    else:
        bad.write_bytes(b"" if "empty" in name else b"no picture at all")
    drop_in(page, bad)
    page.get_by_text(sentence).first.wait_for()
    wait_for_empty_box(page)
    if name == "grass.png":  # the next one follows at once
        drop_in(page, portrait)
        wait_for_change(page, "grid", None)
        page.wait_for_timeout(1000)
        assert page.query_selector("#photo img")
    else:
        assert source_of(page, "grid") is None


def test_a_slider_without_a_photo_says_so(page):
    page.locator("#slider-age input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("Drop in a photo first").first.wait_for()


def test_edits_are_listed_undone_and_forgotten_with_the_photo(page, portrait):
    drop_in(page, portrait)
    wait_for_change(page, "grid", None)
    page.wait_for_selector("#viewer .stage[data-frame]:not([data-frame=''])")

    # The head turns without the server.
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    before = page.get_attribute("#viewer .stage", "data-frame")
    page.locator("#viewer .stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    # Where the views from aside are still on their way, the nearest one that is there stays until they come.
    page.wait_for_function(f"document.querySelector('#viewer .stage').dataset.frame !== '{before}'")
    assert asked == []

    slider = page.locator("#slider-smile input[type=range]")
    slider.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.locator("#edits").get_by_text("Smile +1.2").wait_for()  # the newest wins
    page.locator("#undo:enabled").click()
    page.locator("#redo:enabled").wait_for()
    address = source_of(page, "edited")
    assert page.request.get(address).ok
    page.click("#forget")
    page.locator("#status").get_by_text("Forgotten").wait_for()
    assert page.request.get(address).status == 403
    assert source_of(page, "grid") is None


def test_three_endpoints_and_no_other_event_are_open_to_programs(address):
    answer = urllib.request.urlopen(f"{address}/gradio_api/info", timeout=PATIENCE_S).read()
    endpoints = json.loads(answer)
    assert set(endpoints["named_endpoints"]) == {"/edit_portrait", "/pose_grid", "/mesh"}
    assert endpoints["unnamed_endpoints"] == {}


def test_missing_weights_are_one_sentence():
    run = subprocess.run(
        [sys.executable, "app.py", "--weights", "nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 1 and "no folder of weights at nowhere" in run.stderr and "Traceback" not in run.stderr
