"""What a stranger can get at of a visitor's photo, latent and files: nothing, whatever they try."""

import http.client
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from browsing import drop_in, source_of, wait_for_change
from conftest import ROOT
from PIL import Image
from running import PATIENCE_S, Server, running_page


NAME = "great-aunt-mathilda"


class Visit(NamedTuple):
    """A person's page after an upload and an edit."""

    page: object
    grid: str  # address of a result
    secrets: set[str]  # what only their browser and the server know


@pytest.fixture(scope="module")
def server(tiny_weights, tmp_path_factory):
    """With one file that anybody may see: an example's picture."""
    folder = tmp_path_factory.mktemp("privacy")
    weights = shutil.copytree(tiny_weights, folder / "weights")
    example = weights / "examples" / "one" / "crop.webp"
    example.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(example)
    with running_page(folder, "--weights", weights) as server:
        yield server


@pytest.fixture(scope="module")
def example(server) -> Path:
    return server.files.parent / "weights" / "examples" / "one" / "crop.webp"


def visit(browser, server: Server, portrait: Path) -> Visit:
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    secrets = {NAME}

    def note(request) -> None:
        if "/queue/join" in request.url:
            secrets.add(request.post_data_json["session_hash"])

    page.on("request", note)
    page.goto(server.address)
    page.wait_for_selector("#photo")
    named = portrait.with_name(f"{NAME}.jpg")
    shutil.copy(portrait, named)
    drop_in(page, named)
    mesh = wait_for_change(page, "model", None)
    page.locator("#slider-smile input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_for_change(page, "model", mesh)
    grid = source_of(page, "grid")
    secrets.add(Path(grid).parent.parent.name)
    assert len(secrets) == 3
    return Visit(page, grid, secrets)


@pytest.fixture(scope="module")
def visitor(browser, server, portrait):
    visit_ = visit(browser, server, portrait)
    yield visit_
    visit_.page.context.close()


@pytest.fixture(scope="module")
def stranger(server):
    with httpx.Client(base_url=f"{server.address}/gradio_api", timeout=PATIENCE_S) as stranger:
        yield stranger


def files_of(server: Server) -> set[str]:
    return {str(path.relative_to(server.files)) for path in server.files.rglob("*") if path.is_file()}


def heard(stranger: httpx.Client, address: str, until: str) -> str:
    """What the server sends there, until a word; or until it hangs up."""
    text = ""
    try:
        with stranger.stream("GET", address) as stream:
            for line in stream.iter_lines():
                text += line
                if until in line:
                    break
    except httpx.RemoteProtocolError:
        pass
    return text


def test_every_file_lies_behind_two_secrets(server, visitor):
    """192 random bits, the recipe with the latent included; nothing else of the photo is left on the disk."""
    names = files_of(server)
    assert any("recipe" in name for name in names) and any(NAME in name for name in names)
    assert all(re.fullmatch(r"[0-9a-f]{32}/[0-9a-f]{16}/[^/]+", name) for name in names), names
    assert visitor.page.request.get(visitor.grid).ok


def test_guessed_addresses_give_nothing(server, example):
    served, zeros = f"/gradio_api/file={example}", "0" * 32
    ups = ("..", "%2e%2e", "%252e%252e", "..;", "..%00")
    files = ("", "/", "/.", "/*", "/*/*/grid.png", f"/{zeros}/{zeros[16:]}/grid.png", "/..%2flog.txt", "\\..\\log.txt")
    paths = ["/etc/passwd", "//etc/passwd", "file:///etc/passwd", "%2fetc%2fpasswd", "/proc/self/environ", "app.py"]
    paths += [f"{ROOT}/app.py", "/proc/self/cwd/app.py", f"{server.address}/config"]
    guesses = [
        *(f"/gradio_api/file={path}" for path in paths),
        *(f"/gradio_api/file={server.files}{end}" for end in files),
        *(f"/gradio_api/file={server.files}/{up}/log.txt" for up in ups),
        *(f"{served}/{up}/{up}/{up}/model_index.json" for up in ups),
        *(f"/{place}/{up}/{up}/app.py" for place in ("static", "assets", "svelte") for up in ups),
        f"/gradio_api/proxy={server.address}/config",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/custom_component/1/client/component/../../../../app.py",
        "/gradio_api/stream/guess/1/1/playlist.m3u8",
    ]
    host = server.address.removeprefix("http://")
    for address in [served, *guesses]:
        asked = http.client.HTTPConnection(host, timeout=PATIENCE_S)  # which sends the dots as they are
        asked.request("GET", address)
        answer = asked.getresponse()
        assert (answer.status == 200) == (address == served), (address, answer.status)
        asked.close()


@pytest.mark.parametrize(
    "address",
    """/config /gradio_api/config /gradio_api/info /gradio_api/openapi.json /gradio_api/queue/status /gradio_api/runs
    /gradio_api/startup-events /gradio_api/app_id /gradio_api/token /gradio_api/user /monitoring /monitoring/summary
    /gradio_api/deep_link?session_hash=guess /gradio_api/upload_progress?upload_id=guess / /manifest.json""".split(),
)
def test_what_the_server_tells_everybody_names_nobody(server, visitor, address):
    answer = httpx.get(server.address + address, timeout=PATIENCE_S)
    assert not any(secret in answer.text for secret in visitor.secrets)
    if "monitoring" in address or "runs" in address:  # which would count, and keep, what people do
        assert answer.status_code in (403, 404)


def test_other_peoples_session_and_event_ids_are_no_use(stranger, visitor):
    for address in ("/queue/data?session_hash=guess", f"/call/pose_grid/{'0' * 32}", f"/call/v2/mesh/{'0' * 32}"):
        told = heard(stranger, address, "error")
        assert "complete" not in told and not any(secret in told for secret in visitor.secrets)
    assert stranger.post(f"/stream/{'0' * 32}", json={"data": []}).status_code == 404
    whole = {"data": None, "session_hash": "guess", "component_id": 1, "fn_name": "postprocess"}
    assert stranger.post("/component_server", json=whole).status_code in (403, 404)


def test_every_event_called_from_another_session_sees_that_session_only(server, stranger, visitor):
    config = httpx.get(f"{server.address}/config").json()
    events = [event["id"] for event in config["dependencies"] if event["backend_fn"]]
    assert len(events) > 20
    for event in config["dependencies"]:
        if event["backend_fn"]:
            body = {"data": [None] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "stranger"}
            assert stranger.post("/queue/join", json=body).status_code == 200
    told = heard(stranger, "/queue/data?session_hash=stranger", "close_stream")
    assert told.count("process_completed") == len(events)
    assert not any(secret in told for secret in visitor.secrets)


def test_uploads_of_one_photo_have_addresses_of_their_own(stranger, portrait):
    """Nobody can find out by uploading a photo that it has been here, and nobody takes another's file away."""
    paths = [stranger.post("/upload", files={"files": portrait.read_bytes()}).json()[0] for _ in range(2)]
    assert paths[0] != paths[1]
    for path, left in zip(paths, (paths[1:], [])):
        assert stranger.get(f"/file={path}").status_code == 200
        assert "complete" in result(stranger, {"path": path})
        assert stranger.get(f"/file={path}").status_code == 403  # gone when the answer comes
        assert all(stranger.get(f"/file={other}").status_code == 200 for other in left)


def result(stranger: httpx.Client, photo: dict) -> str:
    body = {"data": [{"meta": {"_type": "gradio.FileData"}, **photo}, {}, 1]}
    event = stranger.post("/call/pose_grid", json=body).json()["event_id"]
    with stranger.stream("GET", f"/call/pose_grid/{event}") as stream:
        return "".join(stream.iter_lines())


def test_a_path_in_place_of_an_upload_is_neither_read_nor_deleted(server, stranger, visitor, example):
    folder = server.files.parent
    theirs = folder / "theirs.jpg"
    Image.new("RGB", (200, 200)).save(theirs)
    for photo in (
        {"path": str(theirs)},
        {"path": f"{server.files}/../theirs.jpg"},
        {"path": str(theirs), "url": f"{server.address}/gradio_api/file={server.files}/x"},
        {"path": str(theirs), "is_stream": True},
        {"path": f"file://{theirs}"},
        {"path": f"{example.parent}/../../../theirs.jpg"},
        {"path": f"{server.address}/config"},
        {"path": str(example)},  # which may be read, but is not theirs to delete
    ):
        told = result(stranger, photo)
        assert "complete" not in told and not any(secret in told for secret in visitor.secrets), photo
    assert theirs.is_file() and example.is_file()


def test_forgetting_deletes_ones_own_files_and_nobody_elses(browser, server, portrait, visitor):
    """Two people with the same photo under the same name."""
    before = files_of(server)
    other = visit(browser, server, portrait)
    assert not visitor.secrets & other.secrets - {NAME}
    addresses = [f"{server.address}/gradio_api/file={server.files}/{name}" for name in files_of(server) - before]
    assert addresses and all(httpx.get(address).status_code == 200 for address in addresses)
    other.page.click("#forget")
    other.page.locator("#status").get_by_text("Forgotten").wait_for()
    assert all(httpx.get(address).status_code == 403 for address in addresses)
    assert before <= files_of(server) and httpx.get(visitor.grid).status_code == 200
    # Gradio would keep past runs in the browser.
    assert other.page.evaluate("indexedDB.databases()") == []
    kept = other.page.evaluate("JSON.stringify([localStorage, sessionStorage])")
    assert not any(secret in kept for secret in other.secrets)
    other.page.context.close()


def test_nothing_of_a_visitor_is_in_the_log(server, visitor):
    log = server.log.read_text()
    assert log and not any(secret in log for secret in visitor.secrets)
