"""GuardAlign stage by stage: what the host is asked for, and what the trace says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.prefix import SAFETY_PREFIX
from guardcore.defenses.protocol import Defense, Host, Request
from guardcore.detector.regions import Region
from guardcore.evaluation.scenes import SceneGenerator, SceneOptions, load_art

ROOT = Path(__file__).parents[2]
STAGES = ["screen", "redact", "prefix", "calibrate", "generate"]
BROKEN = OSError("cut off after 12 bytes")


@pytest.fixture(scope="module")
def guard(detector):
    return GuardAlign(detector)


def stages(answer):
    return {stage.name: (stage.done, stage.reason) for stage in answer.trace.stages}


def test_host_and_guard_keep_the_protocol(host, guard):
    assert isinstance(host, Host)
    assert isinstance(guard, Defense)


def test_a_flagged_picture_is_covered_and_the_model_sees_the_rest(host, guard, picture):
    weapons = picture("weapons")
    (answer,) = guard.answer(host, [Request("What is this?", (weapons,))], max_new_tokens=5)
    verdict = answer.verdict
    assert verdict.flagged
    assert verdict.found == ("weapons",)
    ((asked,),) = host.asked
    shown, mask = np.asarray(asked.images[0]), verdict.mask
    assert mask.any()
    assert not shown[mask].any()
    assert np.array_equal(shown[~mask], np.asarray(weapons)[~mask])
    done, reason = stages(answer)["redact"]
    assert done
    assert reason == f"image 0: {verdict.regions[0]}"
    assert reason.startswith("image 0: weapons ")
    assert asked.unsafe == ()  # no rule for unsafe tokens, so the host need not find any
    assert host.options == [{"max_new_tokens": 5}]
    assert answer.text == "answer 0 to What is this?"
    assert not answer.refused


def test_a_clean_picture_is_the_very_same_object_even_with_regions(host, guard, picture):
    benign = picture("benign_1")
    (answer,) = guard.answer(host, [Request("What is this?", (benign,))])
    assert not answer.verdict.flagged
    assert answer.verdict.regions
    assert host.asked[0][0].images[0] is benign
    assert stages(answer)["redact"] == (False, "nothing flagged")
    assert stages(answer)["screen"][1].startswith("image 0 allow: nothing found, nearest ")


def test_everything_is_asked_of_the_host_once_for_the_whole_batch(host, guard, picture):
    requests = [
        Request("a", (picture("weapons"), picture("benign_2"))),
        Request("b"),
        Request("c", (picture("benign_1"),)),
    ]
    answers = guard.answer(host, requests)
    assert host.screened == [3]
    assert [request.prompt for request in host.asked[0]] == ["a", "b", "c"]
    assert len(host.asked) == 1
    assert [len(answer.verdicts) for answer in answers] == [2, 0, 1]
    assert answers[0].verdict is answers[0].verdicts[0]
    assert answers[1].verdict is None
    assert stages(answers[1])["screen"] == (False, "no pictures")
    assert stages(answers[1])["redact"] == (False, "no pictures")
    assert all([stage.name for stage in answer.trace.stages] == STAGES for answer in answers)


def test_the_trace_tells_who_looked_if_the_host_does(host, guard, picture):
    host.screened_by = lambda detector: f"the model's own tower instead of {detector.encoder.name}"
    answers = guard.answer(host, [Request("a", (picture("benign_1"),)), Request("b")])
    assert stages(answers[0])["screen"][1].endswith("; by the model's own tower instead of builtin")
    assert stages(answers[1])["screen"][1] == "no pictures"


def test_prefix_and_calibration_are_in_the_request(host, guard):
    (answer,) = guard.answer(host, [Request("Hello")])
    assert host.asked[0][0].prefix == SAFETY_PREFIX
    assert host.asked[0][0].calibration == AttentionCalibration()
    assert stages(answer)["calibrate"] == (
        True, "prefix gated:0.15; layers 0.28 to 0.45 of the depth; all heads; instruction+generated",
    )  # fmt: skip


def test_a_requests_own_prefix_and_calibration_come_first(host, guard):
    own = AttentionCalibration({"prefix": "log_gain:4"}, layers=(1,), heads={1: (0, 2)})
    answers = guard.answer(host, [Request("a", prefix="Be kind.", calibration=own), Request("b")])
    assert [request.prefix for request in host.asked[0]] == ["Be kind.", SAFETY_PREFIX]
    assert [request.calibration for request in host.asked[0]] == [own, AttentionCalibration()]
    assert stages(answers[0])["calibrate"][1] == "prefix log_gain:4.0; layers 1; 2 heads; instruction+generated"


def test_masses_come_from_the_host_into_the_trace(fake_host, reply_with_masses, guard):
    (answer,) = guard.answer(fake_host(reply_with_masses), [Request("a")])
    assert [mass.layer for mass in answer.trace.masses] == [3]
    assert answer.trace.masses == answer.generation.masses
    assert "layer 3: 0.0150 -> 0.0400" in str(answer.trace)


OFF = {"detector": None, "prefix": None, "calibration": None, "redaction": None}


@pytest.mark.parametrize(
    ("off", "names"),
    [
        (("detector",), {"screen", "redact"}),
        (("redaction",), {"redact"}),
        (("prefix",), {"prefix", "calibrate"}),
        (("calibration",), {"calibrate"}),
        (("detector", "prefix", "calibration"), {"screen", "redact", "prefix", "calibrate"}),
    ],
)
def test_every_stage_can_be_switched_off(off, names, host, detector, picture):
    settings = {"detector": detector, **dict.fromkeys(off)}
    weapons = picture("weapons")
    (answer,) = GuardAlign(settings.pop("detector"), **settings).answer(host, [Request("a", (weapons,))])
    assert {stage.name for stage in answer.trace.stages if not stage.done} == names
    asked = host.asked[0][0]
    assert (asked.images[0] is weapons) is ("redact" in names)
    assert (asked.prefix == "") is ("prefix" in names)
    assert (asked.calibration is None) is ("calibrate" in names)
    assert bool(answer.verdicts) is ("screen" not in names)
    reason = "nothing to act on: no prefix" if off == ("prefix",) else "switched off"
    assert all(stages(answer)[name][1] == reason for name in names & {"calibrate"})


def test_a_rule_that_changes_nothing_leaves_the_model_alone(host):
    for rules, reason in (({"prefix": "gated:0"}, "no rule changes anything"), ({}, "no rule changes anything")):
        (answer,) = GuardAlign(None, calibration=AttentionCalibration(rules)).answer(host, [Request("a")])
        assert host.asked[-1][0].calibration is None
        assert stages(answer)["calibrate"] == (False, reason)


def test_unsafe_regions_go_along_where_a_rule_asks_for_them(host, detector, picture):
    calibration = AttentionCalibration({"prefix": "gated:0.15", "unsafe": "log_gain:0.1"})
    images = (picture("benign_1"), picture("weapons"))
    (answer,) = GuardAlign(detector, calibration=calibration, redaction=None).answer(host, [Request("a", images)])
    assert host.asked[0][0].unsafe == ((), answer.verdicts[1].regions)
    GuardAlign(detector, calibration=calibration).answer(host, [Request("a", images[:1])])
    assert host.asked[1][0].unsafe == ()


def test_without_screening_the_requests_own_regions_hold(host, picture):
    region = Region("mine", None, (0, 0, 9, 9), 0.1, ((0, 0, 9, 9),), (512, 512))
    request = Request("a", (picture("benign_1"), picture("benign_2")), unsafe=((), (region,)))
    GuardAlign(None, calibration=AttentionCalibration({"unsafe": "log_gain:0"})).answer(host, [request])
    assert host.asked[0][0].unsafe == ((), (region,))


def test_unsafe_regions_stay_with_their_picture_when_another_is_left_out(host, detector, picture):
    calibration = AttentionCalibration({"unsafe": "log_gain:0.1"})
    guard = GuardAlign(detector, calibration=calibration, on_error="allow")
    (answer,) = guard.answer(host, [Request("a", (BROKEN, picture("benign_1"), picture("weapons")))])
    assert host.asked[0][0].unsafe == ((), answer.verdicts[2].regions)


def test_answers_become_json(host, guard, picture):
    answers = guard.answer(host, [Request("a", (picture("weapons"),)), Request("b", (BROKEN,))])
    for answer in answers:
        data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
        assert set(data) == {"text", "refused", "reason", "verdicts", "trace", "new_tokens"}
        assert [stage["name"] for stage in data["trace"]["stages"]] == STAGES
        assert all(math.isfinite(stage["seconds"]) for stage in data["trace"]["stages"])
    assert answers[0].to_dict()["new_tokens"] == 5
    assert answers[1].to_dict()["new_tokens"] is None


def test_fingerprints_change_with_every_setting(detector):
    changes = [
        {}, {"detector": None}, {"prefix": "Be kind."}, {"prefix": None}, {"calibration": None},
        {"calibration": AttentionCalibration(rows="instruction")}, {"redaction": "blur"}, {"redaction": None},
        {"on_error": "review"}, {"refusal": "No."},
    ]  # fmt: skip
    built = [GuardAlign(**{"detector": detector, **change}) for change in changes]
    assert len({each.fingerprint for each in built}) == len(built)
    assert built[0].fingerprint == GuardAlign(detector).fingerprint


def test_drawn_scenes_end_to_end(host, guard):
    """Unsafe objects that are flagged are covered where they were drawn; harmless scenes come through untouched."""
    art = load_art(ROOT / "bench" / "art")
    generator = SceneGenerator(art, art.styles[:2], (), 11, SceneOptions(objects=(1, 2), scale=(0.4, 0.6)))
    scenes = [generator.scene(index, kind) for index in range(12) for kind in ("unsafe", "benign")]
    answers = guard.answer(host, [Request("a", (Image.fromarray(scene.image),)) for scene in scenes])
    covered, untouched = [], 0
    for scene, answer, asked in zip(scenes, answers, host.asked[0], strict=True):
        shown = np.asarray(asked.images[0])
        if not answer.verdict.flagged:
            untouched += np.array_equal(shown, scene.image)
            continue
        unsafe = [n for n, each in enumerate(scene.objects) if art.concepts[each.concept].category is not None]
        pixels = np.isin(scene.owner, unsafe)
        if unsafe:
            covered.append(float((~shown.any(-1))[pixels].mean()))
    assert len(covered) >= 8
    assert np.median(covered) > 0.7
    assert untouched >= 8


def test_the_request_of_the_caller_is_not_changed(host, guard, picture):
    request = Request("a", (picture("weapons"),))
    before = replace(request)
    guard.answer(host, [request])
    assert (request.prefix, request.images, request.calibration) == (before.prefix, before.images, None)
