"""A calibration can't change once it is made, and can still be copied, pickled, compared and hashed."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.layer_rule import layer_rules
from guardcore.calibration.score_rule import ScoreRule

OWN = AttentionCalibration({"prefix": "gated:0.2", "image": "log_gain:0.5"}, layers=(1, 2), heads={1: (0, 3)})


def test_neither_rules_nor_heads_can_change():
    before = OWN.fingerprint
    for attempt in (
        lambda: OWN.rules.__setitem__("prefix", ScoreRule("gated", 9.0)),
        lambda: OWN.rules.pop("prefix"),
        lambda: OWN.rules.update(prefix="gated:9"),
        lambda: OWN.heads.__setitem__(1, (2,)),
        lambda: OWN.heads.clear(),
    ):
        with pytest.raises(AttributeError):
            attempt()
    with pytest.raises(FrozenInstanceError):
        OWN.rows = "instruction"
    assert OWN.fingerprint == before


def test_what_it_was_made_of_may_change():
    rules, heads, chosen = {"prefix": ScoreRule("gated", 0.2)}, {1: [0]}, [1, 2]
    made = AttentionCalibration(rules, layers=chosen, heads=heads)
    before = made.fingerprint
    rules["prefix"], heads[2] = ScoreRule("gated", 9.0), [1]
    heads[1].append(5)
    chosen.append(7)
    assert (made.fingerprint, made.heads, made.layers) == (before, {1: (0,)}, (1, 2))


@pytest.mark.parametrize("made", [OWN, AttentionCalibration()])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, replace, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_are_equal(made, again):
    other = again(made)
    assert other == made
    assert hash(other) == hash(made)
    assert (other.rules, other.heads, other.layers) == (made.rules, made.heads, made.layers)
    assert len({other, made}) == 1
    with pytest.raises(AttributeError):
        other.rules.clear()


def test_two_layers_are_not_all_of_them():
    """(0, 1) and (0.0, 1.0) are equal to Python, and the batch's rules would be shared."""
    two, all_of_them = AttentionCalibration(layers=(0, 1)), AttentionCalibration(layers=(0.0, 1.0))
    assert two != all_of_them
    assert two != "calibration"
    rules = layer_rules([two, all_of_them], depth=4, heads=2, scale=1.0)
    assert [bool(rules[layer].rule[0].any()) for layer in range(4)] == [True, True, False, False]
    assert all(bool(rules[layer].rule[1].any()) for layer in range(4))
