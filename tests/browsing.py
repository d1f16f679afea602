"""Chromium without a screen, a card or the outer world, and what a person does with the page in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import PATIENCE_S


FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync""".split()
ALLOWED_ERRORS = (
    # Chromium has no WebGPU here and Babylon, which draws the mesh, says so before it takes WebGL. It also says when a
    # newer mesh replaces one that it is still loading, which is what an edit right after an upload is meant to do.
    "WebGPU",
    "New model is being loaded before previous model finished loading",
    # A picture or mesh that the browser was about to fetch when it was forgotten, or replaced twice, in the browser's
    # words and in Babylon's. Whether those that count arrive is what the tests look at.
    "the server responded with a status of 403",
    "Unable to load from",
    # Babylon, when the page closes or its model is replaced while it still makes its scene ready.
    "Cannot read properties of null (reading 'postProcessManager')",
    "Cannot read properties of null (reading 'addEventListener')",
)


@contextmanager
def chromium(*more_flags: str) -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=path, args=[*FLAGS, *more_flags])
        yield browser
        browser.close()


@contextmanager
def visiting(browser, address: str, allowed: tuple[str, ...] = (), **context) -> Iterator:
    """A new visitor's page; in the end it must not have complained, but for what is allowed besides, nor asked anyone
    but our server."""
    page = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context)).new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    errors, strangers = [], []
    page.on("console", lambda told: errors.append(f"{told.text} {told.location}") if told.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(f"{error} {error.stack}"))
    page.on("request", lambda request: strangers.append(request.url))
    page.goto(address)
    page.wait_for_selector("#photo")
    try:
        yield page
    finally:
        page.context.close()
    assert [text for text in errors if not any(part in text for part in (*ALLOWED_ERRORS, *allowed))] == []
    assert [url for url in strangers if not url.startswith((address, "data:", "blob:"))] == []


def drop_in(page, photo: Path) -> None:
    page.set_input_files("#photo input[type=file]", photo)


def wait_for_empty_box(page) -> None:
    """As it empties, Gradio's photo box replaces its file input, which is hidden while it shows a photo: what a test
    hands to the former one in that moment is lost. A person can drop nothing before they see an empty box."""
    page.wait_for_function("!document.querySelector('#photo img')")


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


def set_slider(page, name: str, value: float) -> str:
    """Types a strength; the address of the picture that comes of it."""
    before = source_of(page, "edited")
    number = page.locator(f"#slider-{name} input[type=number]")
    number.fill(str(value))
    number.press("Enter")
    return wait_for_change(page, "edited", before)
