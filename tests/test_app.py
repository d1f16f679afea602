"""The page as a person uses it: app.py in a process of its own, tiny networks, headless Chromium."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image


ROOT = Path(__file__).resolve().parent.parent
BROWSER_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()
PATIENCE_S = 300  # of two cores that are busy with other things
# Chromium has no WebGPU here and Babylon, which draws the mesh, says so before it takes WebGL. It also says so when a
# newer mesh replaces one that it is still loading, which is what an edit right after an upload is meant to do.
ALLOWED_ERRORS = ("WebGPU", "New model is being loaded before previous model finished loading")


@pytest.fixture(scope="module")
def address(tiny_weights, portrait, tmp_path_factory):
    """The page, running."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log.txt"
    with log.open("w") as file:
        page = subprocess.Popen(
            [sys.executable, "app.py", "--weights", str(tiny_weights), "--port", str(port)],
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )
    try:
        for _ in range(PATIENCE_S):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE_S).read()
                break
            except OSError:
                assert page.poll() is None, log.read_text()
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        page.terminate()
        page.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A new visitor's page; in the end it must not have complained, nor asked anyone but our server."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    errors, strangers = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: strangers.append(request.url))
    page.goto(address)
    page.wait_for_selector("#photo")
    yield page
    page.context.close()
    assert [text for text in errors if not any(allowed in text for allowed in ALLOWED_ERRORS)] == []
    assert [url for url in strangers if not url.startswith((address, "data:", "blob:"))] == []


def drop_in(page, photo: Path) -> None:
    page.set_input_files("#photo input[type=file]", photo)


def source_of(page, name: str) -> str | None:
    """Address of the picture or mesh that a box shows; it contains a digest of the content."""
    query = f"#{name} a[data-testid=model3d-download-link]" if name == "model" else f"#{name} img"
    return page.evaluate("q => { let e = document.querySelector(q); return e && (e.href || e.src) }", query)


def wait_for_change(page, name: str, before: str | None) -> str:
    for _ in range(4 * PATIENCE_S):
        source = source_of(page, name)
        if source not in (None, before):
            return source
        page.wait_for_timeout(250)
    raise AssertionError(f"{name} still shows {before}")


def pixels(page, name: str) -> bytes:
    return page.request.get(source_of(page, name)).body()


def test_a_photo_becomes_a_head_that_can_be_edited_and_downloaded(page, portrait, tmp_path):
    drop_in(page, portrait)
    for name in ("found", "crop", "grid", "edited"):
        wait_for_change(page, name, None)
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
    assert source_of(page, "grid") is None
    if name == "grass.png":
        page.click("#photo button[aria-label='Remove Image'], #photo button[aria-label='Clear']")
        drop_in(page, portrait)
        wait_for_change(page, "grid", None)


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
    assert page.get_attribute("#viewer .stage", "data-frame") != before
    assert asked == []

    slider = page.locator("#slider-smile input[type=range]")
    slider.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.locator("#edits").get_by_text("Smile +1.2").wait_for()  # the newest wins
    page.locator("#undo:enabled").click()
    page.locator("#redo:enabled").wait_for()
    address = source_of(page, "crop")
    assert page.request.get(address).ok
    page.click("#forget")
    page.locator("#status").get_by_text("Forgotten").wait_for()
    assert page.request.get(address).status == 403
    assert source_of(page, "grid") is None


def test_a_phone_shows_everything_without_scrolling_sideways(browser, address, portrait):
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    page.goto(address)
    page.wait_for_selector("#photo")
    drop_in(page, portrait)
    wait_for_change(page, "grid", None)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tops = [
        page.locator(f"#{name}").bounding_box()["y"]
        for name in ("photo", "viewer", "model", "sliders", "grid", "edited")
    ]
    assert tops == sorted(tops)
    context.close()


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
