"""What the page's handlers do where things overtake each other: a photo forgotten, replaced or refused meanwhile."""

import io
import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from preim3d.edits import Edit, Plan
from preim3d.page.answers import Answers
from preim3d.page.gpu import Gpu
from preim3d.page.showing import UNCHANGED, still_current
from preim3d.page.verdict import Verdict
from preim3d.page.visitor import OutOfDate, Visitor
from preim3d.pipeline import as_array
from preim3d.recipe import Recipe


@pytest.fixture(scope="module")
def answers(pipeline):
    verdict = Verdict(None, None, pipeline.directions)
    directions = {"inversion": pipeline.directions}
    return Answers(Gpu(pipeline), pipeline.aligner, directions, verdict, [], "", None)


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch) -> Path:
    """Where everything lies that a visitor uploads or is given."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setattr(gr.utils, "get_upload_folder", lambda: str(folder))
    return folder


@pytest.fixture
def upload(uploads, portrait):
    def upload(name: str = "me.jpg", content: bytes | None = None) -> str:
        path = uploads / name
        path.write_bytes(portrait.read_bytes() if content is None else content)
        return str(path)

    return upload


def faceless() -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (200, 200), "green").save(file, "PNG")
        return file.getvalue()


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def crop(answers, portrait) -> Image.Image:
    return answers.gpu.pipeline.align(portrait)


@pytest.fixture
def with_head(answers, crop, portrait):
    """Makes sessions with a head from a photo, all of it shown."""
    w = as_array(answers.gpu.pipeline.encode(crop))

    def with_head() -> Visitor:
        visitor = Visitor(origin="photo", w=w, crop=crop, photo_name="me.jpg", front=crop, frames="data:,")
        visitor.keep("me.jpg", portrait.read_bytes(), kind="photo")
        return visitor

    return with_head


def work(answers: Answers, visitor: Visitor, upload) -> dict:
    """By name, each handler that takes more than one step, ready to be started."""
    recipe = upload("recipe.json", Recipe(visitor.w, Plan()).dumps(
        answers.directions["inversion"].config.fingerprint).encode())  # fmt: skip
    name = answers.names[0]
    visitor.sliders.told, visitor.sliders.told_at_ms = (0.5, *(0.0 for _ in answers.names[1:])), 1.0
    return {
        "photo": (answers.show_photo, upload("next.jpg"), None),
        "recipe": (answers.use_recipe, recipe),
        "improve": (answers.improve, visitor.key),
        "slide": (answers.slide, 2.0, visitor.sliders.turn, visitor.key, *visitor.sliders.told),
        "protect": (answers.protect, visitor.key, [name]),
        "reset": (answers.reset, visitor.key),
        "stop": (answers.show_both,),
    }


@pytest.mark.parametrize("what", ["photo", "recipe", "improve", "slide", "protect", "reset", "stop"])
def test_forgetting_in_the_middle_of_anything_leaves_nothing(answers, with_head, upload, uploads, what):
    """After every single step of it; what was in flight writes nothing and shows nothing."""
    for step in (1, 2, 3, 5):
        visitor = with_head()
        handler, *arguments = work(answers, visitor, upload)[what]
        running = still_current(handler)(visitor, *arguments)
        state = visitor  # as Gradio keeps it: what was told last
        for told in islice(running, step):
            state = told.get("session", state)
        forgotten = answers.forget(state, None)["session"]
        (uploads / "recipe.json").unlink(missing_ok=True), (uploads / "next.jpg").unlink(missing_ok=True)
        assert list(running) == []
        assert files_in(uploads) == [] and forgotten.current and forgotten.w is None, step


def test_a_film_of_a_forgotten_head_is_not_kept(answers, with_head, upload, uploads, monkeypatch):
    visitor = with_head()

    def film(asked):
        yield [Image.new("RGB", (64, 64))] * 3
        answers.forget(visitor, None)
        yield [Image.new("RGB", (64, 64))] * 3

    monkeypatch.setattr(answers.gpu, "film", film)
    assert still_current(answers.film)(visitor, visitor.key) is UNCHANGED and files_in(uploads) == []


def test_what_is_forgotten_while_it_is_written_goes_too(uploads, monkeypatch):
    visitor = Visitor()
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: (write(path, content), visitor.leave()))
    with pytest.raises(OutOfDate):
        visitor.keep("head.glb", b"...")
    assert files_in(uploads) == []


def test_an_example_chosen_while_a_photo_renders_stays(answers, upload, monkeypatch):
    monkeypatch.setattr(answers, "show_example", lambda index, earlier: {
        "session": (example := Visitor(origin="example").after(earlier)), "owner": example.key})  # fmt: skip
    for step in range(1, 5):
        running = still_current(answers.show_photo)(state := Visitor(), upload(), None)
        for told in islice(running, step):
            state = told.get("session", state)
        chosen = still_current(answers.choose_example)(state, SimpleNamespace(index=0))
        assert list(running) == [] and chosen["session"].current


def test_a_photo_that_waits_when_something_else_is_chosen_is_given_up(answers, upload, uploads, monkeypatch):
    examples = {"session": Visitor(), "owner": ""}
    monkeypatch.setattr(answers, "show_example", lambda index, earlier: examples)
    for move in (answers.forget, lambda visitor, file: answers.choose_example(visitor, SimpleNamespace(index=0))):
        visitor = Visitor()
        answers.note_photo(visitor, waiting := upload())
        examples["session"] = Visitor().after(visitor)
        state = move(visitor, None)["session"]
        assert state.current and list(still_current(answers.show_photo)(state, waiting, None)) == [UNCHANGED]
        assert files_in(uploads) == []


def test_a_photo_dropped_onto_one_that_renders_takes_its_place_at_once(answers, upload):
    running = still_current(answers.show_photo)(state := Visitor(), upload(), None)
    for told in islice(running, 3):
        state = told.get("session", state)
    answers.note_photo(state, second := upload("second.jpg"))
    assert list(running) == []  # which would put the first photo back over the second
    *_, last = still_current(answers.show_photo)(state, second, None)
    assert last["session"].photo_name == "second.jpg"
    # The note may be late: the photo is there already.
    answers.note_photo(last["session"], second)
    assert last["session"].current


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_refused_photo_leaves_the_head_before_it_which_is_finished(answers, upload, steps):
    """Also where the refused one came while the head was still being made."""
    running = still_current(answers.show_photo)(state := Visitor(), upload(), None)
    for told in islice(running, steps):
        state = told.get("session", state)
    answers.note_photo(state, bad := upload("grass.png", faceless()))
    assert list(running) == []
    told = {}
    for new in still_current(answers.show_photo)(state, bad, None):
        told |= new
    assert "No face" in told["status"] and told["refused"] == bad and Path(told["photo"]).name == "me.jpg"
    assert state.current and state.w is not None and not state.unfinished and told["grid"] and not Path(bad).exists()


def test_a_refused_photo_leaves_the_edits(answers, with_head, upload):
    visitor = with_head()
    plan = Plan((Edit(answers.names[0], 1.0),))
    list(still_current(answers.follow)(visitor, plan))
    w = visitor.w
    told = list(still_current(answers.show_photo)(visitor, upload("grass.png", faceless()), None))
    assert not {"session", "grid", "edited", "viewer", "edits"} & set().union(*told)
    assert visitor.current and visitor.history.plan == plan and np.array_equal(visitor.w, w)


def test_a_refused_plan_is_not_in_the_history(answers, with_head, upload):
    visitor = with_head()
    told = []
    with pytest.raises(gr.Error, match="1e\\+30"):
        for new in answers.follow(visitor, Plan((Edit(answers.names[0], 1e30),))):
            told.append(new)
    assert visitor.history.plan == Plan() and not visitor.history.past
    assert told[-1][f"slider-{answers.names[0]}"] == 0 and told[-1]["edits"] == []


def test_a_photo_named_like_a_file_of_ours_outlives_ours(answers, upload):
    *_, last = still_current(answers.show_photo)(Visitor(), upload("view.png"), None)
    visitor = last["session"]
    for yaw in (0, 10, 20):
        answers.look(visitor, visitor.key, yaw, 0)
    (photo,) = visitor.files["photo"]
    assert photo.name == "view.png" and photo.is_file()


def test_all_frames_of_a_head_show_depth_in_one_range(answers, with_head, upload, monkeypatch):
    ranges = []
    seen = answers.gpu.pipeline.views_and_depths

    def noted(*arguments, **named):
        pictures, depths, between = seen(*arguments, **named)
        ranges.append(between)
        return pictures, depths, between

    monkeypatch.setattr(answers.gpu.pipeline, "views_and_depths", noted)
    list(answers.show_both(with_head()))
    assert len(ranges) > 2 and len(set(ranges)) == 1


def test_the_edited_picture_is_dimmed_until_it_is_true(answers, with_head):
    """After a recipe or an improvement the head comes first, then its edits."""
    visitor = with_head()
    visitor.history.plan = Plan((Edit(answers.names[0], 1.0),))
    told = [new for new in answers.show_both(visitor) if "viewer" in new]
    pending = [new["viewer"]["pending"] for new in told]
    assert pending == sorted(pending, reverse=True) and pending[0] and not pending[-1]
    sheets = [(new["viewer"]["pending"], new["edited"] is None) for new in told if "edited" in new]
    assert sheets == [(True, True), (False, False)]
    visitor.history.plan = Plan()
    assert not any(new["viewer"]["pending"] for new in answers.show_both(visitor) if "viewer" in new)


def test_what_improves_is_seen_and_kept_wherever_it_ends(answers, with_head):
    visitor = with_head()
    visitor.history.plan = Plan((Edit(answers.names[0], 1.0),))
    seen, running = [], answers.improve(visitor, visitor.key)
    for told in running:
        if "improved" in told and "viewer" in told:
            seen.append(told["viewer"])
            break
    running.close()  # as stopping does
    assert seen[0]["reconstruction"]["count"] == 1 and seen[0]["pending"] and "depth" not in seen[0]
    assert visitor.tuning is not None
    before, after = (
        np.asarray(answers.gpu.look_from(answers.asked(visitor)._replace(tuning=tuning), (0.0, 0.0))[0]).astype(int)
        for tuning in (None, visitor.tuning)
    )
    assert abs(before - after).max() > 3
    list(answers.show_both(visitor))
    recipe = json.loads(visitor.files["head.recipe.json"][-1].read_text())
    assert recipe["tuning"] and recipe["preim3d_recipe"] == 2
