"""Calibrations as tensors, by layer and request."""

from __future__ import annotations

import math

import pytest
import torch

from guardcore import ops
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.layer_rule import layer_rules
from guardcore.calibration.spans import NUM_CLASSES

MODEL = {"depth": 32, "heads": 4, "scale": 0.125}


def test_equal_calibrations_share_their_rules():
    rules = layer_rules([AttentionCalibration()] * 3, **MODEL)
    assert list(rules) == [9, 10, 11, 12, 13, 14]
    expected = torch.zeros(1, 4, NUM_CLASSES, 3)
    expected[:, :, 1, 0] = 0.15
    assert all(torch.equal(each.rule, expected) and each.target is None for each in rules.values())
    assert rules[9].rule.dtype == torch.float32


def test_each_request_has_its_own_rules():
    calibrations = [
        AttentionCalibration(layers=(1, 2)),
        None,
        AttentionCalibration(
            {"prefix": "target_mass:0.3", "image": "literal:0.1", "unsafe": "log_gain:0"}, layers=(2, 3)
        ),
    ]
    rules = layer_rules(calibrations, **MODEL)
    assert list(rules) == [1, 2, 3]
    assert rules[1].target is None
    rule, target = rules[2].rule, rules[2].target
    assert torch.equal(target, torch.tensor([[0.0] * 4, [0.0] * 4, [0.3] * 4]))
    assert torch.equal(rule[0, :, 1], torch.tensor([0.15, 0, 0]).expand(4, 3))
    assert not rule[1].any()
    assert not rule[2, :, 1].any()
    assert torch.allclose(rule[2, :, 3], torch.tensor([0, 0.8, 0]).expand(4, 3))
    assert torch.equal(rule[2, :, 4], torch.tensor([0, 0, -math.inf]).expand(4, 3))
    assert not rules[3].rule[0].any()


def test_only_chosen_heads_have_rules():
    calibration = AttentionCalibration({"prefix": "gated:0.5"}, layers=(3, 5), heads={5: (0, 2)})
    rules = layer_rules([calibration], **MODEL)
    assert list(rules) == [5]
    assert rules[5].rule[0, :, 1, 0].tolist() == [0.5, 0, 0.5, 0]


def test_only_chosen_heads_have_targets():
    calibration = AttentionCalibration({"prefix": "target_mass:0.5"}, layers=(5,), heads={5: (0, 2)})
    assert layer_rules([calibration], **MODEL)[5].target.tolist() == [[0.5, 0, 0.5, 0]]


@pytest.mark.parametrize("calibrations", [[], [None, None], [AttentionCalibration({"prefix": "gated:0"})]])
def test_rules_that_change_nothing_leave_no_layer(calibrations):
    assert layer_rules(calibrations, **MODEL) == {}


def test_heads_and_layers_that_the_model_lacks_are_named():
    with pytest.raises(ValueError, match="heads: expected below the model's 4 heads; got 4 in layer 9"):
        layer_rules([AttentionCalibration(heads={9: (1, 4)})], **MODEL)
    with pytest.raises(ValueError, match="layers: expected below the model's 32 layers; got 40"):
        layer_rules([AttentionCalibration(layers=(40,))], **MODEL)


def attended(rule, **options):
    draw = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 4, 9, 8, generator=draw) for _ in range(3))
    kinds = torch.zeros(2, 9, dtype=torch.uint8)
    kinds[:, 2:4], kinds[:, 5:7] = 1, 3
    given = {"is_causal": True, "query_start": None, "scale": 0.125, "window": None, "softcap": None, **options}
    plain = ops.calibrated_attention(query, key, value, kinds, rule.rule, **given)
    return rule.attend(query, key, value, kinds, return_mass=True, **given), plain


def test_attending_without_a_target_is_the_operator():
    rule = layer_rules([AttentionCalibration(rules={"prefix": "gated:0.5", "image": "gated:-1"})], **MODEL)[9]
    found, plain = attended(rule)
    assert torch.equal(found.output, plain.output)
    assert found.mass.shape == (2, 4, 9, NUM_CLASSES)


def test_attending_with_a_target_meets_it_for_its_request_only():
    with_target = AttentionCalibration({"prefix": "target_mass:0.6", "image": "gated:-1"})
    rule = layer_rules([with_target, AttentionCalibration()], **MODEL)[9]
    found, plain = attended(rule)
    assert torch.allclose(found.output[1], plain.output[1], atol=1e-6)
    shares = found.mass[0, :, 4:, 1]  # rows that see the prefix and more
    assert torch.all(shares > 0.6 - 1e-6)
    assert (shares - 0.6).abs().min() < 1e-6
