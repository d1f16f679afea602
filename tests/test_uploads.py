"""How photos come to the page: pasted, from a camera; what it says to those it cannot take or has no room for."""

import base64
import io
import threading
import time

import httpx
import pytest
from bad_photos import BAD
from browsing import chromium, drop_in, visiting, wait_for_change, wait_for_empty_box
from PIL import Image
from running import PATIENCE_S, running_page


# Puts a photo, as base64 of a JPEG, on the clipboard, which takes PNG alone.
COPY = """async data => {
    const picture = await createImageBitmap(await (await fetch("data:image/jpeg;base64," + data)).blob());
    const canvas = Object.assign(document.createElement("canvas"), {width: picture.width, height: picture.height});
    canvas.getContext("2d").drawImage(picture, 0, 0);
    const png = await new Promise(done => canvas.toBlob(done, "image/png"));
    await navigator.clipboard.write([new ClipboardItem({"image/png": png})]);
}"""


@pytest.fixture(scope="module")
def server(tiny_weights, portrait, tmp_path_factory):
    with running_page(tmp_path_factory.mktemp("uploads"), "--weights", tiny_weights, "--queue-size", 2) as server:
        yield server
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


@pytest.fixture
def address(server):
    return server.address


@pytest.fixture(scope="module")
def browser(portrait, tmp_path_factory):
    """One with a camera, before which the portrait hangs."""
    film = tmp_path_factory.mktemp("camera") / "film.mjpeg"
    with Image.open(portrait) as picture, io.BytesIO() as frame:
        picture.resize((640, 640)).crop((0, 0, 640, 480)).save(frame, "JPEG", quality=92)
        film.write_bytes(30 * frame.getvalue())
    camera = "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --use-file-for-fake-video-capture"
    with chromium(*f"{camera}={film}".split()) as browser:
        yield browser


def test_a_photo_is_pasted(browser, address, portrait):
    with visiting(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.evaluate(COPY, base64.b64encode(portrait.read_bytes()).decode())
        page.click("#photo button[aria-label='Paste from clipboard']")
        wait_for_change(page, "grid", None)


def test_a_photo_is_taken_with_the_camera(browser, address):
    # Gradio's camera asks how far an upload has come that has not begun.
    with visiting(browser, address, ("upload_progress?upload_id=", "Response"), permissions=["camera"]) as page:
        page.click("#photo button[aria-label='Capture from camera']")
        page.get_by_text("Click to Access Webcam").click()
        page.click("#photo button[aria-label='capture photo']")
        wait_for_change(page, "grid", None)


def test_forty_bad_uploads_are_told_on_the_page_and_the_next_good_one_works(page, portrait, tmp_path):
    assert len(BAD) >= 40
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content)
        drop_in(page, tmp_path / name)
        # Our own sentence, or Gradio's where the browser knows from its type that a file is no picture.
        told = page.wait_for_selector(".toast-body").inner_text()
        assert len(told) > 20 and "Traceback" not in told and str(tmp_path) not in told, (name, told)
        page.evaluate("document.querySelectorAll('.toast-close').forEach(close => close.click())")
        page.wait_for_selector(".toast-body", state="detached")
        wait_for_empty_box(page)  # nothing needs to be cleared away first
    drop_in(page, portrait)
    wait_for_change(page, "grid", None)


def test_the_page_says_that_the_queue_is_full(browser, address, portrait):
    enough = threading.Event()

    def crowd() -> None:
        """More requests than can be served, all the time."""
        with httpx.Client(base_url=f"{address}/gradio_api", timeout=PATIENCE_S) as programs:
            while not enough.is_set():
                path = programs.post("/upload", files={"files": portrait.read_bytes()}).json()[0]
                photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
                programs.post("/call/pose_grid", json={"data": [photo, {}, 1]})
                time.sleep(0.02)

    def told_to_wait() -> bool:
        """Whether a visitor is told so; one may be lucky and slip in as a place falls free."""
        with visiting(browser, address, ("status of 503",)) as tab:
            drop_in(tab, portrait)
            told = tab.get_by_text("currently busy")
            told.or_(tab.locator("#grid img")).first.wait_for()
            return told.count() > 0

    crowding = threading.Thread(target=crowd)
    crowding.start()
    try:
        time.sleep(1)
        assert any(told_to_wait() for _ in range(20))
    finally:
        enough.set()
        crowding.join()
