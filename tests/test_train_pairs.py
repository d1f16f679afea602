"""Rendered pairs: what they change and what they leave, and a stage that goes on where it was killed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from preim3d.directions import ATTRIBUTES, fingerprint
from train.editing import pairs
from train.heads.sampler import HAIR_STYLES, Person, person_attributes


MATERIAL = Path(__file__).parents[2] / "shared" / "heads"


def changed(first: Person, second: Person) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(Person)
        if not np.array_equal(getattr(first, field.name), getattr(second, field.name))
    } - {"light"}  # the same object


def of(name, seed=0):
    rng = np.random.default_rng(seed)
    pair = pairs.PAIRS[name]
    people = pairs.draw_people(rng, 6, pair.suits)
    return [pair.change(person, rng) for person in people]


def test_every_pair_is_of_a_slider_and_changes_only_what_it_is_about():
    assert set(pairs.PAIRS) <= set(ATTRIBUTES)
    allowed = {
        "eyeglasses": {"glasses", "sunglasses", "frame_color", "frame_radius", "frame_width"},
        "hat": {"hat", "hat_color"}, "full_beard": {"beard"}, "blond_hair": {"hair", "grey"},
        "bald": {"hair_style"}, "lipstick": {"lipstick", "lip"}, "big_lips": {"details"}, "freckles": {"freckles"},
    }  # fmt: skip
    for name, fields in allowed.items():
        for without, with_ in of(name):
            assert changed(without, with_) <= fields and changed(without, with_), name
            assert without.light is with_.light


@pytest.mark.parametrize("name", sorted(pairs.PAIRS))
def test_pairs_differ_in_the_label(name):
    attribute, grown = ATTRIBUTES[name], []
    for without, with_ in of(name):
        labels = [person_attributes(person).get(attribute.celeba, 0.0) for person in (without, with_)]
        grown.append(attribute.sign * (labels[1] - labels[0]))
    expected = 0 if name in ("receding_hairline", "pale_skin", "pointy_nose") else 0.2
    assert np.mean(grown) >= expected, grown


def test_beards_are_for_grown_men_and_kinds_vary():
    assert all(person.male > 0.6 and person.years > 21 for person, _ in of("full_beard"))
    assert len({tuple(with_.frame_color) for _, with_ in of("eyeglasses")}) == 6
    assert {HAIR_STYLES[with_.hair_style] for _, with_ in of("long_hair", seed=1)} <= set(pairs.LONG)


@pytest.mark.skipif(not MATERIAL.is_dir(), reason="the CC0 head data (../shared/heads) is not here")
def test_a_killed_run_goes_on(tiny_weights, pipeline, tmp_path, monkeypatch, capsys):
    from train.heads.source import build_source

    build_source(MATERIAL / "mpfb", MATERIAL / "makehuman-assets", tmp_path / "source.npz")
    words = ("--source", tmp_path / "source.npz", "--weights", tiny_weights, "--heads", 2, "--threads", 1)
    two = {name: pairs.PAIRS[name] for name in ("hat", "lipstick")}
    monkeypatch.setattr(pairs, "PAIRS", {"hat": two["hat"]})
    assert run(pairs.main, *words, "--out", tmp_path / "pairs.npz") == 0
    monkeypatch.setattr(pairs, "PAIRS", two)
    calls, real = [], pairs.offsets
    monkeypatch.setattr(pairs, "offsets", lambda *arguments: calls.append(1) or real(*arguments))
    assert run(pairs.main, *words, "--out", tmp_path / "pairs.npz") == 0
    found = np.load(tmp_path / "pairs.npz")
    assert len(calls) == 1 and found["names"].tolist() == ["hat", "lipstick"]
    assert found["offsets"].shape == (2, pipeline.generator.num_ws, 24) and np.abs(found["offsets"]).max() > 0
    assert str(found["network"]) == fingerprint(pipeline.encoder)
    assert "lipstick: agreement" in capsys.readouterr().out
    assert run(pairs.main, *words, "--seed", 5, "--out", tmp_path / "pairs.npz") == 1
    assert "begun with another seed" in capsys.readouterr().err
