"""Edit lists, protection, recipes, the photo's camera: closed forms and round trips."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from preim3d.directions import Directions
from preim3d.edits import Edit, History, Plan, check_plan, conditional
from preim3d.pipeline import as_array, grid_sheet
from preim3d.recipe import Recipe, RecipeError, load_recipe
from preim3d.turntable import GRID, TURN_YAWS_DEG, cameras, pack, turn_angles


ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT.parent / "shared" / "cases"


@pytest.fixture
def w(pipeline):
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return as_array(pipeline.encode(crop))


def test_a_plan_keeps_the_order_and_drops_what_is_zero():
    plan = Plan().with_strengths({"smile": 1.0, "age": 2.0}).with_strengths({"smile": 3.0, "hat": 1.0})
    assert plan.edits == (Edit("smile", 3.0), Edit("age", 2.0), Edit("hat", 1.0))
    assert [edit.name for edit in plan.moved("hat", -1).edits] == ["smile", "hat", "age"]
    assert plan.moved("smile", -1) == plan
    assert plan.switched("age").strengths() == {"smile": 3.0, "hat": 1.0}
    assert plan.switched("age").with_strengths({"age": 1.0}).strengths()["age"] == 1.0
    assert [edit.name for edit in plan.with_strengths({"age": 0.0}).edits] == ["smile", "hat"]


def test_undo_and_redo_walk_the_same_way_until_something_new_is_done():
    history = History()
    first, second = Plan((Edit("smile", 1.0),)), Plan((Edit("smile", 2.0),))
    history.do(first)
    history.do(second)
    history.do(second)  # nothing new: not to be undone
    history.undo()
    assert history.plan == first
    history.redo()
    assert history.plan == second
    history.undo()
    history.undo()
    history.undo()
    assert history.plan == Plan()
    history.do(second)
    assert history.future == []


def test_a_protected_edit_has_no_part_along_what_is_protected(pipeline):
    directions = pipeline.directions
    strengths = conditional({"age": 2.0}, ["gender", "grey_hair", "age"], directions)
    assert strengths["age"] == 2.0
    offset = directions.offset(strengths).flatten()
    for name in ("gender", "grey_hair"):
        along = directions.vectors[directions.names.index(name)].flatten()
        assert torch.nn.functional.cosine_similarity(offset, along, dim=0).abs() < 1e-5
    assert conditional({"age": 2.0}, [], directions) == {"age": 2.0}
    assert conditional({"age": 0.0}, ["gender"], directions) == {}


def test_a_recipe_restores_everything_and_its_command_the_picture(pipeline, tiny_weights, w, tmp_path):
    plan = Plan((Edit("smile", 1.5), Edit("age", -1.0, on=False)), ("gender",))
    text = Recipe(w, plan, 12.5, -3.0).dumps(pipeline.directions.config.fingerprint)
    back = load_recipe(text, pipeline.directions)
    assert np.array_equal(back.w, w) and back.plan == plan and (back.yaw_deg, back.pitch_deg) == (12.5, -3.0)

    (tmp_path / "head.json").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "preim3d.recipe", tmp_path / "head.json", "--weights", tiny_weights, "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    strengths = conditional(plan.strengths(), plan.protect, pipeline.directions)
    views = pipeline.views(pipeline.head(w, strengths=strengths))
    with Image.open(tmp_path / "grid.png") as grid:
        assert np.array_equal(np.asarray(grid), np.asarray(grid_sheet(views)))
    assert (tmp_path / "head.glb").read_bytes()[:4] == b"glTF"


def test_a_recipe_with_a_byte_order_mark_is_read(pipeline, w):
    text = Recipe(w, Plan((Edit("smile", 1.5),))).dumps(pipeline.directions.config.fingerprint)
    for marked in ("\ufeff" + text, text.encode("utf-8-sig"), text.encode("utf-16")):
        assert load_recipe(marked, pipeline.directions).plan.strengths() == {"smile": 1.5}


@pytest.mark.parametrize("name", ["recipe_protect_bypass.json", "recipe_nan_bypass.json"])
def test_given_recipes_with_impossible_edits_are_refused(pipeline, w, name):
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there")
    ours = json.loads(Recipe(w, Plan()).dumps(pipeline.directions.config.fingerprint))
    given = json.loads((CASES / name).read_text()) | {key: ours[key] for key in ("weights", "shape", "w")}
    with pytest.raises(RecipeError, match="strength of `smile` must lie in"):
        load_recipe(json.dumps(given), pipeline.directions)


def test_a_plan_is_possible_only_if_what_it_comes_to_is(pipeline):
    directions = Directions(**pipeline.directions.config)
    directions.vectors.copy_(pipeline.directions.vectors)
    directions.vectors[0] = 3 * directions.vectors[1]  # protecting age takes away thrice what smile is worth
    assert check_plan(Plan((Edit("smile", 3.0),)), directions) == {"smile": 3.0}
    plan = Plan((Edit("smile", 4.0),), ("age",))
    with pytest.raises(ValueError, match="strength of `age` .* protect less"):
        check_plan(plan, directions)
    text = Recipe(np.zeros(directions.vectors.shape[1:], np.float32), plan).dumps(directions.config.fingerprint)
    with pytest.raises(RecipeError, match="cannot be used: The strength of `age` .* protect less"):
        load_recipe(text, directions)


def edit(name: str, strength: float) -> dict:
    return {"name": name, "strength": strength, "on": True}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"preim3d_recipe": 9}, "version 9"),
        ({"weights": "other"}, "made with weights 'other'"),
        ({"w": "!"}, "damaged"),
        ({"shape": [1, 2]}, "damaged"),
        ({"edits": [edit("nose", 1)]}, "damaged"),
        ({"edits": [edit("smile", math.inf)]}, "strength of `smile` must lie in -10..10, not `inf`"),
        # Off, or protected from itself, it must be possible all the same: the next click switches it on.
        ({"edits": [edit("smile", math.nan) | {"on": False}]}, "must lie in -10..10"),
        ({"edits": [edit("smile", 1e30)], "protect": ["smile"]}, "must lie in -10..10, not `1e\\+30`"),
        ({"edits": [edit("smile", math.nan)], "protect": ["smile"]}, "must lie in -10..10, not `nan`"),
        ({"edits": [edit("smile", 1) | {"on": "no"}]}, "damaged"),
        ({"edits": [edit("smile", 1), edit("smile", 2)]}, "`smile` is edited twice"),
        ({"protect": ["age", "age"]}, "`age` is protected twice"),
        ({"space": "origin"}, "these weights lack"),
        ({"camera": {}}, "damaged"),
        ({"camera": {"yaw_deg": math.nan, "pitch_deg": 0}}, "damaged"),
        (None, "not a recipe"),
    ],
)
def test_a_bad_recipe_is_told_in_words(pipeline, w, change, sentence):
    text = Recipe(w, Plan()).dumps(pipeline.directions.config.fingerprint)
    text = "no recipe" if change is None else json.dumps(json.loads(text) | change)
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(text, pipeline.directions)


def test_the_turntable_holds_the_grid_and_every_angle_once():
    angles = turn_angles((3.0, 1.0))
    assert angles[0] == (3.0, 1.0) and len(set(angles)) == len(angles) == 1 + 3 * len(TURN_YAWS_DEG)
    assert angles[GRID][4] == (0.0, 0.0)
    assert cameras(angles).shape == (len(angles), 25)
    tiles = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(12)]
    assert pack(tiles).getpixel((8 * 1 + 4, 8 * 1 + 4)) == (11, 0, 0)
