"""Strengths as people write them, offsets of w, and the fingerprint of the pair that directions belong to."""

import pytest
import torch

from preim3d.directions import ATTRIBUTES, Directions, cosines, fingerprint
from preim3d.strengths import check_strengths, parse_strengths


def two_directions() -> Directions:
    directions = Directions(("smile", "age"), ("Smile", "Age"), ("a", "b"), (0.9, 0.8), ((-3, 3), (-2, 4)), 3, 4)
    directions.vectors.copy_(torch.arange(24.0).view(2, 3, 4))
    return directions


def test_words_become_strengths():
    assert parse_strengths(["smile=2", " age = -1.5 "]) == {"smile": 2.0, "age": -1.5}
    assert parse_strengths([]) == {}


@pytest.mark.parametrize("words", [["smile"], ["smile="], ["=2"], ["smile=much"], ["smile=1", "smile=2"], [""]])
def test_words_that_are_no_strength_are_refused_in_one_sentence(words):
    with pytest.raises(ValueError) as error:
        parse_strengths(words)
    assert "\n" not in str(error.value)


def test_an_unknown_attribute_names_the_nearest_and_all():
    with pytest.raises(ValueError, match="`smle` is no attribute.*did you mean `smile`.*smile, age"):
        check_strengths({"smle": 1}, ["smile", "age"])


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf"), 10.1, "much", None, [1]])
def test_impossible_strengths_are_refused(strength):
    with pytest.raises(ValueError, match="strength of `smile`"):
        check_strengths({"smile": strength}, ["smile"])


def test_the_offset_is_the_sum_of_strength_times_direction():
    directions = two_directions()
    offset = directions.offset({"age": -1, "smile": 2})
    assert torch.equal(offset, 2 * directions.vectors[0] - directions.vectors[1])
    assert torch.equal(directions.offset({}), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="`hat` is no attribute"):
        directions.offset({"hat": 1})


def test_saving_and_loading_keeps_everything(tmp_path):
    directions = two_directions()
    directions.save_pretrained(tmp_path)
    again = Directions.from_pretrained(tmp_path)
    assert torch.equal(again.vectors, directions.vectors)
    assert again.names == ["smile", "age"] and list(again.config.safe_range[1]) == [-2, 4]


def test_the_fingerprint_outlives_half_precision_and_sees_one_changed_weight():
    torch.manual_seed(0)
    encoder, generator = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)
    before = fingerprint(encoder, generator)
    assert fingerprint(encoder.half(), generator.half()) == before
    assert fingerprint(generator, encoder) != before
    with torch.no_grad():
        generator.weight[0, 0] += 0.1
    assert fingerprint(encoder, generator) != before


def test_cosines_are_those_of_the_whole_directions():
    vectors = torch.zeros(3, 2, 2)
    vectors[0, 0, 0], vectors[1, 0, 0], vectors[1, 1, 1], vectors[2, 1, 1] = 2, 3, 3, -5
    half = 0.5**0.5
    expected = torch.tensor([[1, half, 0], [half, 1, -half], [0, -half, 1]])
    assert torch.allclose(cosines(vectors), expected)


def test_a_direction_says_where_it_comes_from_and_what_is_missing(tmp_path):
    directions = Directions(
        ("pca_1",), ("Component 1",), ("Unnamed",), (None,), ((-3, 3),), 3, 4, "origin", "abc", (0.5,), ((1.0,),),
        {"smile": "Too hard to tell."},
    )  # fmt: skip
    directions.save_pretrained(tmp_path)
    config = Directions.from_pretrained(tmp_path).config
    assert config.space == "origin" and config.accuracies[0] is None and config.sigmas[0] == 0.5
    assert config.left_out == {"smile": "Too hard to tell."}
    with pytest.raises(AssertionError):
        Directions(("a", "b"), ("A", "B"), ("x", "x"), (1, 1), ((-1, 1), (-1, 1)), 1, 1, sigmas=(0.5,))


def test_every_attribute_that_is_promised_has_a_slider_name():
    promised = """age smile eyeglasses gender goatee moustache full_beard lipstick heavy_makeup grey_hair blond_hair
        black_hair brown_hair bald mouth_open chubby hat"""
    assert set(promised.split()) <= set(ATTRIBUTES)
