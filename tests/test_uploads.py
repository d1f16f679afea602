"""What the page says to a photo it cannot take, and to one it has no room for."""

import threading
import time

import httpx
import pytest
from bad_photos import BAD
from browsing import drop_in, wait_for_change
from running import PATIENCE_S, running_page


@pytest.fixture(scope="module")
def server(tiny_weights, portrait, tmp_path_factory):
    with running_page(tmp_path_factory.mktemp("uploads"), "--weights", tiny_weights, "--queue-size", 2) as server:
        yield server
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


@pytest.fixture
def address(server):
    return server.address


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
        page.wait_for_selector("#photo input[type=file]", state="attached")  # nothing needs to be cleared away first
    drop_in(page, portrait)
    wait_for_change(page, "grid", None)


def test_the_page_says_that_the_queue_is_full(browser, address, portrait):
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE_S * 1000)
    tab.goto(address)
    tab.wait_for_selector("#photo")
    enough = threading.Event()

    def crowd() -> None:
        """More requests than can be served, all the time."""
        with httpx.Client(base_url=f"{address}/gradio_api", timeout=PATIENCE_S) as programs:
            while not enough.is_set():
                path = programs.post("/upload", files={"files": portrait.read_bytes()}).json()[0]
                photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
                programs.post("/call/pose_grid", json={"data": [photo, {}, 1]})
                time.sleep(0.02)

    crowding = threading.Thread(target=crowd)
    crowding.start()
    try:
        time.sleep(1)
        drop_in(tab, portrait)
        tab.get_by_text("currently busy").first.wait_for()
    finally:
        enough.set()
        crowding.join()
        tab.close()
