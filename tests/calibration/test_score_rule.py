"""Score rules: coefficients against the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardcore.calibration.score_rule import ScoreRule


def applied(rule, scores, scale):
    linear, quadratic, additive = rule.coefficients(scale)
    return scores + linear * scores.relu() + quadratic * scores.relu() ** 2 + additive


def test_gated_is_z_times_one_plus_gamma_where_z_is_positive():
    scores = torch.tensor([-3.0, -0.5, 0.0, 1.0, 5.0], dtype=torch.float64)
    gate = (scores > 0).double()
    assert torch.allclose(applied(ScoreRule("gated", 0.15), scores, 0.1), scores * (1 + 0.15 * gate), rtol=1e-12)


@pytest.mark.parametrize("d", [64, 128])
def test_literal_is_equations_13_and_14_as_printed(d):
    """Z = <q, k> / sqrt(d), S = max(0, <q, k>), Z' = Z + gamma S Z."""
    draw = torch.Generator().manual_seed(d)
    query, key = (torch.randn(50, d, generator=draw, dtype=torch.float64) for _ in range(2))
    products = (query * key).sum(-1)
    scores = products / math.sqrt(d)
    printed = scores + 0.1 * products.relu() * scores
    assert torch.allclose(applied(ScoreRule("literal", 0.1), scores, d**-0.5), printed, rtol=1e-12)


def test_literal_saturates():
    """The figures of the docstring: d = 128, gamma = 0.1."""
    found = applied(ScoreRule("literal", 0.1), torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64), 128**-0.5)
    assert [round(value, 1) for value in found.tolist()] == [2.1, 13.2, 33.3]


def test_log_gain_multiplies_the_softmax_and_renormalizes():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    new = scores.clone()
    new[1:3] = applied(ScoreRule("log_gain", 4.0), scores[1:3], 0.1)
    shares = scores.softmax(0) * torch.tensor([1.0, 4.0, 4.0, 1.0])
    assert torch.allclose(new.softmax(0), shares / shares.sum(), rtol=1e-12)


def test_a_gain_of_nought_removes():
    assert ScoreRule("log_gain", 0).coefficients(0.1) == (0.0, 0.0, -math.inf)


def test_a_target_has_no_coefficients():
    with pytest.raises(ValueError, match="target_mass has no coefficients"):
        ScoreRule("target_mass", 0.3).coefficients(0.1)


@pytest.mark.parametrize(("text", "active"), [("gated:0", False), ("literal:0", False), ("log_gain:1", False)])
def test_rules_that_change_nothing_are_not_active(text, active):
    assert ScoreRule.parse(text).active is active
    assert ScoreRule.parse(text.split(":")[0] + ":0.5").active


@pytest.mark.parametrize(
    ("kind", "strength", "words"),
    [
        ("gate", 0.1, "kind: expected one of gated, literal, log_gain, target_mass; got 'gate'"),
        ("gated", -1.1, "strength: expected a finite number >= -1 for gated; got -1.1"),
        ("gated", math.nan, "finite"),
        ("gated", math.inf, "finite"),
        ("gated", True, "got True"),
        ("gated", "0.1", "got '0.1'"),
        ("literal", -0.1, "strength: expected a finite number >= 0 for literal"),
        ("log_gain", -1, "strength: expected a finite number >= 0 for log_gain"),
        ("log_gain", math.inf, "finite"),
        ("target_mass", 0, "strength: expected a share between 0 and 1, both excluded, for target_mass; got 0"),
        ("target_mass", 1.0, "both excluded"),
        ("target_mass", math.nan, "both excluded"),
    ],
)
def test_bad_rules_are_named(kind, strength, words):
    with pytest.raises(ValueError, match=words.replace(", for", " for")):
        ScoreRule(kind, strength)


@pytest.mark.parametrize("text", ["gated", "gated:", "gated:x", "", ":0.1x"])
def test_text_that_is_no_rule_is_named(text):
    with pytest.raises(ValueError, match=r"rule: expected KIND:STRENGTH, such as gated:0\.15; got"):
        ScoreRule.parse(text)


@given(st.sampled_from(["gated", "literal", "log_gain", "target_mass"]), st.floats(0.001, 0.999))
def test_text_round_trips(kind, strength):
    rule = ScoreRule(kind, strength)
    assert ScoreRule.parse(str(rule)) == rule
