"""Requests, traces and answers by themselves."""

from __future__ import annotations

import pytest
from PIL import Image

from guardcore.calibration.mass import LayerMass
from guardcore.defenses.protocol import Answer, Request, RequestError, Stage, Trace
from guardcore.detector.judging import judge_error
from guardcore.detector.verdict import ScreenError
from guardcore.policy.policy import Policy

IMAGE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"prompt": 3}, TypeError, "prompt: expected a string; got int"),
        ({"prompt": "", "prefix": None}, TypeError, "prefix: expected a string; got NoneType"),
        ({"prompt": "", "answer_start": b"x"}, TypeError, "answer_start: expected a string; got bytes"),
        ({"prompt": "", "images": IMAGE}, TypeError, "images: expected a sequence of PIL images; got Image"),
        ({"prompt": "", "images": "photo.jpg"}, TypeError, "images: expected a sequence of PIL images; got str"),
        ({"prompt": "", "system": 5}, TypeError, "system: expected a string; got int"),
        ({"prompt": None}, TypeError, "prompt: expected a string; got NoneType"),
        (
            {"prompt": "", "calibration": "gated:0.1"},
            TypeError,
            "calibration: expected an AttentionCalibration or None; got str",
        ),
        ({"prompt": "", "unsafe": 5}, TypeError, "unsafe: expected for each image a sequence of Region; got 5"),
        ({"prompt": "", "images": [IMAGE], "unsafe": ((5,),)}, TypeError, "unsafe: expected for each image a sequence"),
        ({"prompt": "", "images": [IMAGE], "unsafe": ((), ())}, ValueError, "unsafe: expected an entry for each of 1 "),
    ],
)
def test_bad_requests_are_named(fields, error, words):
    with pytest.raises(error, match=words):
        Request(**fields)


def test_any_sequence_of_pictures_is_taken():
    assert Request("", [IMAGE]).images == (IMAGE,)


def test_traces_print_a_line_a_stage_and_find_them_by_name():
    trace = Trace(
        (Stage("screen", True, "fine", 0.25), Stage("generate", False, "off")), (LayerMass(2, (0.1,), (0.2,)),)
    )
    assert str(trace).splitlines() == [
        "screen    done     0.250 s  fine",
        "generate  -        0.000 s  off",
        "prefix mass at the last prompt token that is calibrated, mean over heads",
        "  layer 2: 0.1000 -> 0.2000",
    ]
    assert trace.stage("generate").reason == "off"
    with pytest.raises(KeyError, match="'redact' is none of the stages screen, generate"):
        trace.stage("redact")
    assert str(Trace()) == ""


def test_the_strictest_verdict_counts():
    def verdict(action):
        policy = Policy.builtin("demo").model_copy(update={"on_error": action})
        return judge_error(ScreenError("unreadable", "x"), policy, "f")

    allow, first, second = verdict("allow"), verdict("block"), verdict("block")
    assert Answer("", (allow, first, second)).verdict is first
    assert Answer("").verdict is None
    assert str(Answer("text")) == "text"


def test_request_errors_name_their_request():
    error = RequestError(3, "holds <image>")
    assert str(error) == "request 3: holds <image>"
    assert (error.index, error.message) == (3, "holds <image>")
