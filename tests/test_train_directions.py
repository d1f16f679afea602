"""Directions against problems whose answer is known."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import ball_generator

from preim3d.directions import ATTRIBUTES
from train.editing.boundaries import PrincipalAxes, balance, closed_form_factors, fit_boundary, principal_components
from train.editing.calibration import LADDER, Effect, allied, calibrate, hold_identity, purify
from train.editing.candidates import find, fit_boundaries, read_pairs


def test_a_boundary_finds_the_axis_that_was_planted():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((600, 2, 5)).astype(np.float32)
    axis = rng.standard_normal((2, 5))
    axis /= np.linalg.norm(axis)
    boundary = fit_boundary(PrincipalAxes(w), (w * axis).sum((1, 2)), seed=0)
    assert (boundary.normal * axis).sum() > 0.95
    assert abs(np.linalg.norm(boundary.normal) - 1) < 1e-6
    assert boundary.accuracy > 0.95 and abs(boundary.sigma - 1) < 0.15


def test_a_few_latents_have_the_axes_of_their_covariance():
    w = np.random.default_rng(0).standard_normal((6, 2, 5)) * np.arange(1, 11).reshape(2, 5)
    few, flat = PrincipalAxes(w, kept=1 - 1e-9), w.reshape(6, 10) - w.reshape(6, 10).mean(0)
    assert few.axes.shape == (5, 10) and np.allclose(few.axes @ few.axes.T, np.eye(5))
    assert np.allclose(few.coordinates @ few.axes, flat)
    assert np.allclose(few.coordinates.var(0), np.linalg.eigvalsh(flat.T @ flat / 6)[::-1][:5])


def test_a_rare_attribute_is_scored_evenly():
    # 2 % have it and nothing tells who: by plain accuracy, "nobody has it" would be right in 98 of 100 cases.
    rng = np.random.default_rng(0)
    score = np.where(np.arange(1000) < 20, 1.0, -1.0)
    boundary = fit_boundary(PrincipalAxes(rng.standard_normal((1000, 2, 5))), score, seed=0)
    assert boundary.accuracy < 0.7


def test_few_who_have_it_are_not_joined_by_those_who_do_not():
    # Two of 200 have it: six others must not be learned as if they had it too.
    w = np.random.default_rng(0).standard_normal((200, 2, 5))
    with pytest.raises(ValueError, match="Only 2 latents have it and 198 lack it; 8 of either"):
        fit_boundary(PrincipalAxes(w), np.where(np.arange(200) < 2, 1.0, -1.0), seed=0)
    assert fit_boundary(PrincipalAxes(w), np.where(np.arange(200) < 9, 1.0, -1.0), seed=0, extremes=50).taken == 59


def test_weights_part_what_goes_together():
    # Most of the old are men: the way from young to old must not be the way from women to men.
    rng = np.random.default_rng(0)
    old = rng.random(4000) < 0.5
    man = rng.random(4000) < np.where(old, 0.85, 0.15)
    w = np.stack([old + 0.1 * rng.standard_normal(4000), man + 0.1 * rng.standard_normal(4000)], 1)[:, None]
    age = old - 0.5
    mixed = fit_boundary(PrincipalAxes(w), age, 0, extremes=4000).offset
    parted = fit_boundary(PrincipalAxes(w), age, 0, extremes=4000, strata=man.astype(int)).offset
    assert mixed[0, 1] > 0.5 and abs(parted[0, 1]) < 0.02 and abs(parted[0, 0] - 1) < 0.02
    weight = balance(old, man.astype(int))
    assert abs(weight[old & man].sum() - weight[~old & man].sum()) < 1e-6 and abs(weight.mean() - 1) < 1e-9
    # Where every stratum is of one kind there is nothing to part.
    assert balance(old, old.astype(int)).min() > 0


def test_the_pattern_is_what_the_classifier_answers_to():
    # The attribute moves the first entry; a nuisance moves the first two, so the plane must subtract the second.
    rng = np.random.default_rng(0)
    attribute, nuisance = rng.standard_normal((2, 2000))
    w = np.stack([attribute + nuisance, nuisance], 1)[:, None]
    boundary = fit_boundary(PrincipalAxes(w, kept=1.0), attribute, 0, cost=100)
    assert np.allclose(boundary.normal, [[0.5**0.5, -(0.5**0.5)]], atol=0.1)
    assert np.allclose(boundary.pattern, [[1, 0]], atol=0.15)


def test_a_boundary_among_some_latents_ignores_the_others():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((900, 1, 3))
    # Two thirds lie along the second axis, the rest along the first.
    score, among = np.where(np.arange(900) < 600, w[:, 0, 1], w[:, 0, 0]), np.arange(900) >= 600
    assert abs(fit_boundary(PrincipalAxes(w), score, 0).normal[0, 1]) > 0.5
    assert abs(fit_boundary(PrincipalAxes(w), score, 0, among=among).normal[0, 0]) > 0.95


OPTIONS = {"seed": 0, "extremes": 1000, "costs": [0.1], "plain": False, "least_auc": 0.65, "least_accuracy": 0.6}


def test_grey_hair_is_learned_against_black_hair():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 900)  # black, brown, grey: lightness and redness
    w = np.array([[0.0, 0.0], [0.4, 1.0], [1.0, 0.0]])[kind] + 0.05 * rng.standard_normal((900, 2))
    logits = np.stack([kind == 2, kind == 0], 1) - 0.5

    def redness(names):
        unknown, options = np.full_like(logits, np.nan), Namespace(**OPTIONS)
        boundaries = fit_boundaries(
            PrincipalAxes(w[:, None]),
            logits[:, 0],
            unknown,
            logits,
            np.zeros(900, int),
            names,
            ATTRIBUTES["grey_hair"],
            options,
        )
        return boundaries[0].normal[0, 1]

    assert redness(["Gray_Hair", "Any_Other"]) < -0.3  # towards blue
    assert abs(redness(["Gray_Hair", "Black_Hair"])) < 0.1


def test_candidates_come_from_labels_pairs_and_the_classifier(tmp_path):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((400, 1, 4))
    logits = w[:, 0] + 0.1 * rng.standard_normal((400, 4))
    labels = np.full((400, 4), np.nan)
    labels[:, 0] = logits[:, 0] > 0
    labels[:, 3] = rng.random(400) > 0.5  # what the classifier cannot read
    names = ["Smiling", "Eyeglasses", "Wearing_Hat", "Young"]
    latents = {"attribute_names": np.array(names), "logits": logits, "labels": labels}
    np.savez(
        tmp_path / "pairs.npz", names=["eyeglasses"], offsets=np.array([[[0, 3.0, 0, 0]]]), agreement=[0.9],
        network="abc",
    )  # fmt: skip
    pairs = read_pairs(tmp_path / "pairs.npz", "abc")
    candidates, left_out = find(latents, PrincipalAxes(w), pairs, Namespace(**OPTIONS))
    assert {key: {one.origin for one in found} for key, found in candidates.items()} == {
        "smile": {"labels"}, "eyeglasses": {"pairs"}, "hat": {"classifier"},
    }  # fmt: skip
    assert candidates["eyeglasses"][0].spread == 3 and candidates["eyeglasses"][0].unit.tolist() == [[0, 1, 0, 0]]
    assert all(abs(np.linalg.norm(one.unit) - 1) < 1e-6 for found in candidates.values() for one in found)
    assert candidates["smile"][0].unit[0, 0] > 0.9 and "cannot read it" in left_out["age"]
    with pytest.raises(ValueError, match="another encoder"):
        read_pairs(tmp_path / "pairs.npz", "abd")


def test_principal_components_find_the_widest_axes():
    w = np.random.default_rng(0).standard_normal((4000, 2, 2)) * [[3.0, 1.0], [2.0, 0.1]]
    units, sigmas = principal_components(w, 2)
    assert np.allclose(np.abs(units.reshape(2, 4)), [[1, 0, 0, 0], [0, 0, 1, 0]], atol=0.05)
    assert np.allclose(sigmas, [3, 2], rtol=0.05)


def test_closed_form_factors_change_the_styles_most():
    generator = ball_generator()
    factors = closed_form_factors(generator, 3)
    assert factors.shape == (3, generator.num_ws, 24)
    flat = factors.flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(3), atol=1e-5)

    def change(row):  # of all styles, per unit of one row of w
        layers = [m.affine for m in generator.backbone.synthesis.modules() if hasattr(m, "affine")]
        return sum((layer(row) - layer(torch.zeros_like(row))).square().sum() for layer in layers)

    rows = torch.nn.functional.normalize(factors[:, 0], dim=1)
    others = torch.nn.functional.normalize(torch.randn(20, 24), dim=1)
    assert change(rows[0]) > change(rows[1]) > change(rows[2])
    assert all(change(other) <= change(rows[0]) for other in others)


class LinearTrial:
    """Stands where EditTrial does: logits that depend on w by a known matrix."""

    def __init__(self, slopes):
        self.slopes, self.sigma = slopes, torch.ones(len(slopes))  # [A, D]

    def effect(self, offset):
        return Effect(self.slopes @ offset.flatten(), offset.norm().item())


def test_calibration_reaches_one_standard_deviation():
    slopes = torch.tensor([[0.4, 0.0], [0.1, 3.0]])
    forward = torch.tensor([[1.0, 0.0]])
    step, response = calibrate(LinearTrial(slopes), forward, spread=2.0, attribute=0)
    assert torch.allclose(step, 2.5 * forward) and abs(response[0] - 1) < 1e-4
    step, response = calibrate(LinearTrial(slopes), -forward, spread=2.0, attribute=0, sign=-1)
    assert torch.allclose(step, -2.5 * forward) and abs(response[0] + 1) < 1e-4


class GlassesTrial:
    """What is worn is worn: the response is a step between one and two spreads, and falls when far beyond."""

    sigma = torch.ones(1)

    def effect(self, offset):
        x = offset.sum().item()
        return Effect(torch.tensor([np.interp(x, (1, 2, 3, 6), (0.0, 2.0, 2.0, 0.8))]), 0.0)


def test_calibration_takes_the_shortest_of_all_steps():
    step, response = calibrate(GlassesTrial(), torch.ones(1, 1), spread=1.0, attribute=0, ladder=(1.0, 2.0, 4.0))
    assert abs(step.item() - 1.5) < 0.01 and abs(response[0] - 1) < 0.02
    # One that never goes so far is taken where it does most.
    step, response = calibrate(LinearTrial(torch.tensor([[0.1, 0.0]])), torch.tensor([[1.0, 0.0]]), 1.0, 0)
    assert step[0, 0] == LADDER[-1] and abs(response[0] - 0.1 * LADDER[-1]) < 1e-4


def test_a_direction_is_shortened_until_it_is_the_same_person():
    trial = LinearTrial(torch.zeros(1, 2))
    vector = hold_identity(trial, torch.tensor([[3.0, 4.0]]), most=6.0)
    assert 5 < 2 * vector.norm() <= 6 and torch.allclose(vector[0, 1] / vector[0, 0], torch.tensor(4 / 3))
    assert torch.equal(hold_identity(trial, vector, most=6.0), vector)


def test_purify_takes_out_what_is_dragged_along():
    names = ["Young", "Eyeglasses", "Smiling"]
    slopes = torch.eye(3)
    vectors = {"Young": torch.tensor([[1.0, 0.5, 0.0]]), "Eyeglasses": torch.tensor([[0.0, 1.0, 0.0]])}
    responses = {name: slopes @ vector.flatten() for name, vector in vectors.items()}
    purer = purify(vectors, responses, names, "Young")
    assert torch.allclose(purer, torch.tensor([[1.0, 0.0, 0.0]]))
    assert allied("Full_Beard", "Goatee") and not allied("Young", "Eyeglasses")
