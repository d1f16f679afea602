"""Inversion by descent and tuning: the picture comes nearer, never ends worse, stops when asked; what a tuning is."""

import dataclasses
import json
import time
from collections import deque

import numpy as np
import pytest
import torch
from conftest import tiny_identity
from PIL import Image

from preim3d.camera import grid_cameras
from preim3d.directions import ATTRIBUTES, COLOURS, Directions
from preim3d.edits import Plan
from preim3d.efficientnet import EfficientNetLite0
from preim3d.inversion import LOOK_EVERY, Inversion, Judges, Target, invert
from preim3d.recipe import Recipe, RecipeError, load_recipe
from preim3d.tuning import EDITS_BY, TEXELS, Tuning, add_to_front, edited, front_of, offset_of, tuned


@pytest.fixture(scope="module")
def judges() -> Judges:
    torch.manual_seed(2)
    return Judges(tiny_identity().requires_grad_(False), EfficientNetLite0().eval().requires_grad_(False))


@pytest.fixture(scope="module")
def w(pipeline) -> torch.Tensor:
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(5))
    return pipeline.generator.mapping(z)


@pytest.fixture(scope="module")
def target(pipeline, judges, w) -> Target:
    """Another head than w's, from a camera that is not quite where it is said to be."""
    other = pipeline.generator.mapping(torch.randn(1, 16, generator=torch.Generator().manual_seed(6)))
    other = w + 3 * (other - w)  # balls differ little
    run = Inversion(pipeline.generator, judges, Target(None, None, None, (0.1, 0.05), None), None, 0)
    with torch.no_grad():
        view = pipeline.generator.render(pipeline.generator.planes(other), run.camera_label(), other)
    picture = Image.fromarray(((view.image[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).byte().numpy())
    return Target.of_crop(picture, (4.0, 2.0), view.opacity[0, 0].numpy(), judges)


def difference(pipeline, target, w, tuning=None) -> float:
    head = pipeline.head(w, tuning)
    run = Inversion(pipeline.generator, None, target, None, 0)
    with torch.no_grad():
        view = pipeline.generator.render(head.planes, run.camera_label(), head.w)
    image = torch.nn.functional.interpolate(view.image, target.image.shape[2:], mode="bilinear")
    return (image - target.image).abs().mean().item()


@pytest.mark.parametrize("method", ["latent", "pti", "hybrid"])
def test_every_way_comes_nearer_and_never_ends_worse(pipeline, judges, target, w, method, monkeypatch):
    monkeypatch.setattr("preim3d.inversion.STEPS", {"latent": 12, "pti": 8, "hybrid": 16})
    found = list(invert(pipeline.generator, judges, target, method, w))
    distances = [reached.distance for reached in found]
    assert distances == sorted(distances, reverse=True) and distances[-1] < distances[0]
    last = found[-1]
    assert all(reached.done <= reached.steps for reached in found)
    assert {reached.steps for reached in found} == {"latent": {12}, "pti": {12, 8}, "hybrid": {16}}[method]
    assert last.done == last.steps and (last.tuning is None) == (method == "latent")
    start = found[0].w if method != "hybrid" else w
    assert difference(pipeline, target, last.w, last.tuning) < difference(pipeline, target, start)
    if method == "hybrid":
        assert torch.equal(last.w, w)  # the pivot stays
    # A picture comes with each new best, as large as the generator makes them.
    assert all(
        reached.picture is None or reached.done % LOOK_EVERY == 0 or reached.done == reached.steps for reached in found
    )
    assert found[0].picture.size == (32, 32)


def test_the_same_seed_gives_the_same_head(pipeline, judges, target, w):
    one, two = (deque(invert(pipeline.generator, judges, target, "hybrid", w, steps=3), maxlen=1)[0] for _ in "ab")
    assert np.array_equal(one.tuning.offset, two.tuning.offset) and one.angles_deg == two.angles_deg


def test_it_ends_when_the_seconds_are_over(pipeline, judges, target, w):
    started = time.monotonic()
    found = list(invert(pipeline.generator, judges, target, "hybrid", w, steps=100_000, seconds=1.0))
    assert time.monotonic() - started < 10 and 0 < found[-1].done < 100_000


def test_improving_goes_on_from_where_it_was(pipeline, judges, target, w):
    (first,) = deque(invert(pipeline.generator, judges, target, "hybrid", w, steps=8), maxlen=1)
    again = next(invert(pipeline.generator, judges, target, "hybrid", w, first.tuning, steps=8))
    assert again.tuning is not None
    before, after = (difference(pipeline, target, w, tuning) for tuning in (first.tuning, again.tuning))
    assert after == pytest.approx(before, abs=1e-3)


def test_the_gradient_reaches_the_camera(pipeline, judges, target, w):
    run = Inversion(pipeline.generator, judges, target, None, 0)
    list(run.tune(w, None, 2))
    assert (run.camera.detach() != 0).all()


@pytest.mark.parametrize("yaw", [-0.5, 0.5])
def test_of_a_face_that_looks_aside_the_far_half_learns_from_the_near_one(pipeline, judges, target, w, yaw):
    turned = dataclasses.replace(target, angles_rad=(yaw, 0.0), person=torch.ones_like(target.person))
    run = Inversion(pipeline.generator, judges, turned, None, 0)
    offset = torch.zeros(1, 8, TEXELS, TEXELS, requires_grad=True)
    run.mirrored(add_to_front(pipeline.head(w).planes, offset), w).backward()
    left, right = offset.grad.abs().sum((0, 1, 2)).split(TEXELS // 2)
    from_the_right = run.camera_label()[0, 3] > 0  # x of the camera's place
    near, far = (right, left) if from_the_right else (left, right)
    assert far.sum() > 10 * near.sum()


def test_only_a_photo_from_aside_is_mirrored(pipeline, judges, target, w, monkeypatch):
    asked = []
    monkeypatch.setattr(Inversion, "mirrored", lambda run, planes, w: asked.append(run) or front_of(planes).sum() * 0)
    for yaw in (0.1, 0.5):
        turned = dataclasses.replace(target, angles_rad=(yaw, 0.0))
        list(invert(pipeline.generator, judges, turned, "hybrid", w, steps=4))
        assert len(asked) == (2 if yaw > 0.25 else 0)


# ----------------------------------------------------------------------------
# Tuning.


def some_tuning(channels: int = 8) -> Tuning:
    return Tuning.of_offset(np.random.default_rng(0).normal(size=(channels, TEXELS, TEXELS)))


def test_eight_bits_keep_an_offset():
    offset = np.random.default_rng(0).normal(size=(8, TEXELS, TEXELS))
    tuning = Tuning.of_offset(offset)
    kept = tuning.scales[:, None, None] * tuning.offset
    assert abs(kept - offset).max() <= tuning.scales.max() / 2 + 1e-6
    nothing = Tuning.of_offset(np.zeros((8, TEXELS, TEXELS)))
    assert not nothing.offset.any() and np.isfinite(nothing.scales).all()


def test_bytes_give_back_the_tuning_and_nothing_else():
    tuning = some_tuning()
    content = tuning.to_bytes()
    again = Tuning.from_bytes(content)
    assert np.array_equal(again.offset, tuning.offset) and np.array_equal(again.scales, tuning.scales)
    for damaged in (b"", b"text", content[:-9], content[: len(content) // 2]):
        with pytest.raises(ValueError, match="damaged"):
            Tuning.from_bytes(damaged)
    with pytest.raises(ValueError, match="no numbers"):
        Tuning.from_bytes(tuning._replace(scales=np.full(8, np.nan, np.float32)).to_bytes())


def test_a_tuning_moves_the_front_plane_alone(pipeline, w):
    planes = pipeline.head(w).planes
    moved = front_of(tuned(planes, some_tuning())) - front_of(planes)
    assert moved[:, 0].abs().mean() > 0.1 and not moved[:, 1:].any()
    constant = torch.ones(1, 8, TEXELS, TEXELS)
    assert torch.allclose(front_of(add_to_front(planes, constant))[:, 0], front_of(planes)[:, 0] + 1)
    with pytest.raises(ValueError, match="4 channels; these have 8"):
        tuned(planes, some_tuning(4))


def test_a_recipe_keeps_a_tuned_head(pipeline, w):
    tuning, config = some_tuning(), pipeline.directions.config
    text = Recipe(w[0].numpy(), Plan(), 3.0, 1.0, tuning).dumps(config.fingerprint)
    again = load_recipe(text, pipeline.directions)
    seat = grid_cameras(pipeline.generator.config.pivot)[:1]
    (one,), (two,) = (pipeline.views(pipeline.head(*head), seat) for head in ((w, tuning), (again.w, again.tuning)))
    assert np.array_equal(np.asarray(one), np.asarray(two))
    damaged = json.loads(text) | {"tuning": "no tuning"}
    with pytest.raises(RecipeError, match="damaged"):
        load_recipe(json.dumps(damaged), pipeline.directions)
    old = json.loads(Recipe(w[0].numpy(), Plan()).dumps(config.fingerprint)) | {"preim3d_recipe": 1}
    assert load_recipe(json.dumps(old), pipeline.directions).tuning is None


# ----------------------------------------------------------------------------
# The pipeline.


def test_the_pipeline_inverts_and_edits_a_tuned_head(pipeline, portrait):
    plain = pipeline(portrait, {"smile": 1.0})
    head = pipeline(portrait, {"smile": 1.0}, inversion="hybrid", steps=2)
    assert plain.tuning is None and head.tuning.offset.shape == (8, TEXELS, TEXELS)
    assert np.array_equal(head.w, plain.w)
    assert np.allclose(head.w_edit - head.w, EDITS_BY * (plain.w_edit - plain.w), atol=1e-5)
    front = np.asarray(pipeline.views(pipeline.head(head.w, head.tuning, {"smile": 1.0}))[4])
    assert np.array_equal(np.asarray(head.edited_views[4]), front)


def test_a_tuned_head_holds_back_shapes_but_no_colours(pipeline, w, monkeypatch):
    monkeypatch.setattr("preim3d.tuning.COLOURS", {"age"})
    tuning, strengths = some_tuning(), {"age": 1.0, "smile": 2.0}
    (plain, _), (held, same) = (edited(w, given, pipeline.directions, strengths) for given in (None, tuning))
    smile = pipeline.directions.offset({"smile": 2.0})
    assert torch.allclose(held - plain, (EDITS_BY - 1) * smile, atol=1e-5)
    assert same is tuning and COLOURS <= set(ATTRIBUTES)


def test_an_edit_is_drawn_into_the_planes_of_a_tuned_head_alone(pipeline, w):
    learned = pipeline.directions
    config = {name: value for name, value in learned.config.items() if not name.startswith("_")}
    directions = Directions(**config | {"drawn": ("smile",), "front_shape": (2, 8, TEXELS)})
    torch.manual_seed(0)
    directions.vectors.copy_(learned.vectors)
    directions.front_maps.normal_()
    directions.front_weights.normal_()
    tuning, strengths = some_tuning(), {"smile": -1.5, "age": 1.0}
    moved, drawn = edited(w, tuning, directions, strengths)
    # As far as learned where it is drawn, further where it is not.
    assert torch.allclose(moved - w, learned.offset({"smile": -1.5, "age": EDITS_BY}), atol=1e-5)
    added = offset_of(drawn, w) - offset_of(tuning, w)
    wanted = -1.5 * torch.einsum("cm,mhw->chw", directions.front_weights[0], directions.front_maps)
    assert (added - wanted).abs().max() < 0.02 * wanted.abs().max()  # of 8 bits
    assert edited(w, tuning, directions, {"smile": 0.0, "age": 1.0})[1] is tuning
    assert edited(w, None, directions, strengths)[1] is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"inversion": "magic"}, "`inversion` must be one of encoder, latent, pti, hybrid, not `magic`"),
        ({"steps": 3}, "`steps` are for slower inversions"),
        ({"inversion": "hybrid", "steps": 0}, "`steps` must be a whole number greater than 0, not 0"),
        ({"inversion": "hybrid", "seconds": float("nan")}, "`seconds` must be a number greater than 0"),
    ],
)
def test_mistakes_are_told_before_the_work(pipeline, portrait, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline(portrait, **given)
