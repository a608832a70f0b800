"""The stage `calibrate` is only done where a rule has a token to act on and a row to act in."""

from __future__ import annotations

import pytest
from PIL import Image

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.prefix import SAFETY_PREFIX, PlainPrefix
from guardcore.defenses.protocol import Request
from guardcore.detector.regions import Region

IMAGE = Image.new("RGB", (8, 8))
REGION = Region("mine", None, (0, 0, 4, 4), 0.25, ((0, 0, 4, 4),), (8, 8))


def calibrate(host, request, rules, rows="instruction+generated", **settings):
    calibration = AttentionCalibration(rules, rows=rows)
    (answer,) = GuardAlign(None, calibration=calibration, **settings).answer(host, [request])
    stage = answer.trace.stage("calibrate")
    assert stage.done is (host.asked[-1][0].calibration == calibration)
    return stage.done, stage.reason


@pytest.mark.parametrize(
    ("request_", "rules", "reason"),
    [
        (Request("a"), {"image": "log_gain:0.9"}, "no picture"),
        (Request("a", (IMAGE,)), {"unsafe": "log_gain:0"}, "no unsafe region"),
        (Request("a", (IMAGE,), unsafe=((),)), {"unsafe": "log_gain:0"}, "no unsafe region"),
        (Request(" \n"), {"instruction": "gated:1"}, "no instruction"),
        (Request("a"), {"unsafe": "log_gain:0", "image": "gated:1"}, "no picture, no unsafe region"),
    ],
)
def test_a_rule_without_a_token_is_not_done(request_, rules, reason, host):
    assert calibrate(host, request_, rules) == (False, f"nothing to act on: {reason}")
    assert host.asked[-1][0].unsafe == ()


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
def test_a_blank_prefix_is_none(blank, host):
    assert calibrate(host, Request("a"), {"prefix": "gated:1"}, prefix=blank) == (False, "nothing to act on: no prefix")
    (answer,) = GuardAlign(None, prefix=blank).answer(host, [Request("a", prefix=blank)])
    assert (answer.trace.stage("prefix").done, answer.trace.stage("prefix").reason) == (False, "switched off")
    assert host.asked[-1][0].prefix == ""
    PlainPrefix().answer(host, [Request("a", prefix=blank)])
    assert host.asked[-1][0].prefix == SAFETY_PREFIX


def test_other_rules_still_hold_and_the_trace_says_which_do_not(host):
    done, reason = calibrate(host, Request("a", (IMAGE,)), {"prefix": "gated:1", "image": "log_gain:0.9"}, prefix="")
    assert done
    assert reason.endswith("; instruction+generated; nothing else to act on: no prefix")
    done, reason = calibrate(host, Request("a", (IMAGE,), unsafe=((REGION,),)), {"unsafe": "log_gain:0"})
    assert (done, reason) == (
        True,
        "unsafe log_gain:0.0; layers 0.28 to 0.45 of the depth; all heads; instruction+generated",
    )
    assert host.asked[-1][0].unsafe == ((REGION,),)


def test_without_an_instruction_no_row_is_left_but_the_generated_ones(host):
    rules = {"prefix": "gated:1"}
    assert calibrate(host, Request(""), rules, "instruction") == (False, "no row to act in: no instruction")
    assert calibrate(host, Request("a"), rules, "instruction")[0]
    assert calibrate(host, Request(""), rules)[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"calibration": "gated"}, "calibration: expected an AttentionCalibration or None; got str"),
        ({"prefix": 5}, "prefix: expected a string or None; got int"),
        ({"detector": "builtin"}, "detector: expected a guardcore.Detector or None; got str"),
        ({"refusal": None}, "refusal: expected a string; got NoneType"),
    ],
)
def test_settings_of_other_types_are_named(settings, words):
    with pytest.raises(TypeError, match=words):
        GuardAlign(**{"detector": None, **settings})
    with pytest.raises(TypeError, match="text: expected a string; got int"):
        PlainPrefix(5)


def test_the_default_of_one_guard_is_not_anothers(host):
    with pytest.raises(TypeError):
        GuardAlign(None).calibration.rules["prefix"] = "gated:9"
    assert GuardAlign(None).calibration == AttentionCalibration()
