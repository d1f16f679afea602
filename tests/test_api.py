"""The three endpoints as a program uses them, and bad uploads."""

import time
from pathlib import Path

import pytest
from bad_photos import BAD
from PIL import Image
from running import running_page


gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def client(address):
    return gradio_client.Client(address, verbose=False)


def test_the_endpoints_give_a_picture_a_grid_and_meshes(client, portrait):
    photo = gradio_client.handle_file(portrait)
    plain = client.predict(photo, {}, api_name="/edit_portrait")
    edited = client.predict(photo=photo, strengths={"smile": 2}, face=1, yaw_deg=20, api_name="/edit_portrait")
    assert Path(plain).read_bytes() != Path(edited).read_bytes()
    with Image.open(client.predict(photo, {"smile": 2}, api_name="/pose_grid")) as grid:
        assert grid.width > 3 * 32
    for format, head in (("glb", b"glTF"), ("obj", b"#"), ("ply", b"ply")):
        mesh = client.predict(photo, {}, 1, format, api_name="/mesh")
        assert Path(mesh).read_bytes().startswith(head)
    mesh = client.predict(photo=photo, texture=True, api_name="/mesh")
    assert b"baseColorTexture" in Path(mesh).read_bytes()
    with pytest.raises(gradio_client.exceptions.AppError, match="written into a 'glb' only, not into 'ply'"):
        client.predict(photo=photo, format="ply", texture=True, api_name="/mesh")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (({"nose": 1}, 1, 0, 0), "no attribute"),
        (({"smile": 99}, 1, 0, 0), "-10..10"),
        (({"smile": "much"}, 1, 0, 0), "must be a number"),
        (([1], 1, 0, 0), "must be an object"),
        (({}, 0, 0, 0), "`face` counts from 1, the largest face, so it cannot be 0"),
        (({}, 1.5, 0, 0), "`face` counts from 1, the largest face, so it cannot be 1.5"),
        (({}, "left", 0, 0), "so it cannot be 'left'"),
        (({}, 7, 0, 0), "There is no face 7 in the photo: 1 found, numbered from 1"),
        (({}, 1, 90, 0), "`yaw_deg` must be a number from -45 to 45"),
        (({}, 1, "abc", 0), "`yaw_deg` must be a number .* not 'abc'"),
        (({}, 1, None, 0), "`yaw_deg` must be a number .* not None"),
        (({}, 1, 0, [1]), "`pitch_deg` must be a number from -20 to 20"),
    ],
)
def test_a_mistake_arrives_as_text(client, portrait, arguments, sentence):
    with pytest.raises(Exception, match=sentence):
        client.predict(gradio_client.handle_file(portrait), *arguments, api_name="/edit_portrait")


@pytest.mark.parametrize("photo", ["abc", 5, None])
def test_what_is_no_upload_is_told_in_words(client, photo):
    with pytest.raises(gradio_client.exceptions.AppError, match=r"photo=handle_file\(\.\.\.\)"):
        client.predict(photo=photo, strengths={}, api_name="/mesh")


def test_forty_bad_uploads_are_told_in_words_and_the_next_good_one_works(client, portrait, tmp_path):
    assert len(BAD) >= 40
    for name, content in BAD.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(gradio_client.exceptions.AppError) as refusal:
            client.predict(gradio_client.handle_file(tmp_path / name), {}, api_name="/pose_grid")
        told = str(refusal.value)
        assert 20 < len(told) < 250 and "Traceback" not in told and str(tmp_path) not in told, (name, told)
    assert client.predict(gradio_client.handle_file(portrait), {}, api_name="/pose_grid")


def test_files_are_gone_when_their_time_is_over(tiny_weights, portrait, tmp_path):
    """An hour, shortened to some seconds."""
    with running_page(tmp_path, "--weights", tiny_weights, PREIM3D_FORGET_S="6") as server:
        client = gradio_client.Client(server.address, verbose=False)
        client.predict(gradio_client.handle_file(portrait), {}, api_name="/pose_grid")
        for _ in range(60):
            left = [path for path in server.files.rglob("*") if path.is_file()]
            if not left:
                break
            time.sleep(1)
        assert left == []
