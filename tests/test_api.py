"""The three endpoints as a program uses them, bad uploads, and what a stranger can get at: nothing."""

import io
import json
import secrets
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from test_app import address, browser, drop_in, page, source_of, wait_for_change  # noqa: F401  (some are fixtures)


gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def client(address):  # noqa: F811
    return gradio_client.Client(address, verbose=False)


def test_the_endpoints_give_a_picture_a_grid_and_meshes(client, portrait):
    photo = gradio_client.handle_file(portrait)
    plain = client.predict(photo, {}, api_name="/edit_portrait")
    edited = client.predict(photo, {"smile": 2}, yaw_deg=20, api_name="/edit_portrait")
    assert Path(plain).read_bytes() != Path(edited).read_bytes()
    with Image.open(client.predict(photo, {"smile": 2}, api_name="/pose_grid")) as grid:
        assert grid.width > 3 * 32
    for format, head in (("glb", b"glTF"), ("obj", b"#"), ("ply", b"ply")):
        mesh = client.predict(photo, {}, 1, format, api_name="/mesh")
        assert Path(mesh).read_bytes().startswith(head)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (({"nose": 1}, 1, 0, 0), "no attribute"),
        (({"smile": 99}, 1, 0, 0), "-10..10"),
        (({"smile": "much"}, 1, 0, 0), "must be a number"),
        (([1], 1, 0, 0), "must be an object"),
        (({}, 0, 0, 0), "counts from 1"),
        (({}, 7, 0, 0), "face"),
        (({}, 1, 90, 0), "too far round"),
    ],
)
def test_a_mistake_arrives_as_text(client, portrait, arguments, sentence):
    with pytest.raises(Exception, match=sentence):
        client.predict(gradio_client.handle_file(portrait), *arguments, api_name="/edit_portrait")


def picture(mode: str, format: str, size=(200, 200), **options) -> bytes:
    with io.BytesIO() as buffer:
        Image.new(mode, size).save(buffer, format, **options)
        return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims more pixels than it has."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


JPEG, PNG = picture("RGB", "JPEG"), picture("RGB", "PNG")
BAD = {
    **{f"faceless-{mode}.png": picture(mode, "PNG") for mode in ("RGB", "L", "RGBA", "P", "LA", "1", "I;16")},
    **{f"faceless-{f}.{f}": picture("RGB", f) for f in ("jpeg", "webp", "gif", "bmp", "tiff", "ppm")},
    "cmyk.jpg": picture("CMYK", "JPEG"),
    "float.tiff": picture("F", "TIFF"),
    "dot.png": picture("RGB", "PNG", (1, 1)),
    "line.png": picture("RGB", "PNG", (500, 1)),
    "column.png": picture("RGB", "PNG", (1, 500)),
    "small.jpg": picture("RGB", "JPEG", (63, 63)),
    "wide.png": picture("RGB", "PNG", (6000, 70)),
    "empty.jpg": b"",
    "zeros.jpg": bytes(1000),
    "noise.jpg": secrets.token_bytes(1000),
    "text.jpg": b"no picture at all",
    "page.png": b"<html><script>alert(1)</script></html>",
    "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "paper.pdf": b"%PDF-1.7\n",
    "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "archive.zip": b"PK\x03\x04" + bytes(40),
    "program.exe": b"MZ" + bytes(100),
    "phone.heic": b"\0\0\0\x18ftypheic" + bytes(20),
    "film.mp4": b"\0\0\0\x18ftypisom" + bytes(20),
    "cut.jpg": JPEG[: len(JPEG) // 3],
    "cut.png": PNG[: len(PNG) // 2],
    "head-only.jpg": JPEG[:4],
    "head-only.png": PNG[:8],
    "bomb.png": bomb(60_000, 60_000),
    "bomb-high.png": bomb(64, 2_000_000),
    "bomb-zero.png": bomb(0, 0),
    "swapped.png": PNG[:30] + bytes(20) + PNG[50:],
    "pickle.jpg": b"\x80\x04\x95" + bytes(30),
    "json.jpg": json.dumps({"path": "/etc/passwd"}).encode(),
}


def test_forty_bad_uploads_are_told_in_words_and_the_next_good_one_works(client, portrait, tmp_path):
    assert len(BAD) >= 40
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(gradio_client.exceptions.AppError) as refusal:
            client.predict(gradio_client.handle_file(tmp_path / name), {}, api_name="/pose_grid")
        told = str(refusal.value)
        assert 20 < len(told) < 250 and "Traceback" not in told and str(tmp_path) not in told, (name, told)
    assert client.predict(gradio_client.handle_file(portrait), {}, api_name="/pose_grid")


def test_an_uploads_file_is_gone_when_the_answer_comes(client, address, portrait):  # noqa: F811
    import httpx

    path = httpx.post(f"{address}/gradio_api/upload", files={"files": portrait.read_bytes()}).json()[0]
    assert httpx.get(f"{address}/gradio_api/file={path}").status_code == 200
    client.predict({"path": path, "meta": {"_type": "gradio.FileData"}}, {}, api_name="/pose_grid")
    assert httpx.get(f"{address}/gradio_api/file={path}").status_code == 403


def test_a_stranger_gets_neither_files_nor_the_latent(page, address, portrait):  # noqa: F811
    import httpx

    drop_in(page, portrait)
    wait_for_change(page, "grid", None)
    grid = source_of(page, "grid").partition("file=")[2]
    folder = Path(grid).parent.parent
    # The address has 24 random bytes in it; what is left of it without them is not served.
    for guess in (folder, folder.parent, folder / "grid.png", folder.parent / ("0" * 32) / ("0" * 16) / "grid.png"):
        assert httpx.get(f"{address}/gradio_api/file={guess}").status_code == 403
    # Every event that reads the session's state, called with another session's id, sees an empty page only.
    config = httpx.get(f"{address}/config").json()
    recipe = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "recipe")
    events = [d for d in config["dependencies"] if recipe in d["outputs"] and d["queue"] is False]
    assert events
    for event in events:
        answer = httpx.post(
            f"{address}/gradio_api/run/predict",
            json={"data": [None] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "guess"},
        )
        assert folder.name not in answer.text


def test_files_are_gone_when_their_time_is_over(tiny_weights, portrait, tmp_path):
    """An hour, shortened to some seconds."""
    import os
    import socket
    import subprocess
    import sys
    import time

    environment = os.environ | {"PREIM3D_FORGET_S": "6", "GRADIO_TEMP_DIR": str(tmp_path / "files")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--weights", str(tiny_weights), "--port", str(port)]
    server = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent, env=environment)
    try:
        for _ in range(300):
            try:
                client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
                break
            except Exception:  # not up yet
                assert server.poll() is None
                time.sleep(1)
        client.predict(gradio_client.handle_file(portrait), {}, api_name="/pose_grid")
        for _ in range(60):
            left = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
            if not left:
                break
            time.sleep(1)
        assert left == []
    finally:
        server.kill()
        server.wait()
