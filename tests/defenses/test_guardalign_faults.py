"""GuardAlign where something goes wrong: refused by name, alone, and never without a word."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.protocol import Request
from guardcore.detector.detector import Detector

STAGES = ["screen", "redact", "prefix", "calibrate", "generate"]
BROKEN = OSError("cut off after 12 bytes")


@pytest.fixture(scope="module")
def guard(detector):
    return GuardAlign(detector)


def stages(answer):
    return {stage.name: (stage.done, stage.reason) for stage in answer.trace.stages}


def test_a_picture_that_cannot_be_opened_is_refused_alone(host, guard, picture):
    requests = [Request("a", (picture("benign_1"),)), Request("b", (picture("benign_1"), BROKEN)), Request("c")]
    answers = guard.answer(host, requests)
    assert [answer.refused for answer in answers] == [False, True, False]
    assert [request.prompt for request in host.asked[0]] == ["a", "c"]
    refused = answers[1]
    assert refused.reason == "image 1 could not be judged: unreadable: cut off after 12 bytes"
    assert refused.text == "I can't help with this request, because it could not be checked."
    assert refused.generation is None
    assert refused.verdict.action == "block"
    assert stages(refused)["screen"] == (True, f"refused: {refused.reason}")
    assert all(stages(refused)[name] == (False, "refused before") for name in STAGES[1:])


def test_a_truncated_file_is_found_out_before_the_host_sees_it(host, tmp_path, guard, picture):
    picture("benign_1").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as cut:
        for each in (guard, GuardAlign(None)):
            (answer,) = each.answer(host, [Request("a", (cut,))])
            assert answer.refused
            assert answer.reason.startswith("image 0 could not be ")
    assert host.asked == []


@pytest.mark.parametrize("on_error", ["review", "allow"])
def test_other_policies_go_on_without_what_cannot_be_opened(on_error, host, detector, picture):
    benign = picture("benign_1")
    guard = GuardAlign(detector, on_error=on_error)
    (answer,) = guard.answer(host, [Request("a", (BROKEN, benign))])
    assert host.asked[0][0].images == (benign,)
    assert not answer.refused
    assert len(answer.verdicts) == 2
    assert stages(answer)["screen"][1].endswith("goes on without image 0")


def test_without_calibration_nothing_is_cleared(host, detector, picture):
    """An uncalibrated detector can't judge: blocked by default; if allowed, the picture goes on as it is."""
    bare = Detector(detector.encoder, detector.policy, scoring="normalized:relative_epsilon=0.7")
    request = Request("a", (picture("weapons"),))
    (answer,) = GuardAlign(bare).answer(host, [request])
    assert answer.refused
    assert "uncalibrated" in answer.reason
    (answer,) = GuardAlign(bare, on_error="allow").answer(host, [request])
    assert host.asked[0][0].images == request.images
    assert "image 0 block: could not be judged (uncalibrated" in stages(answer)["screen"][1]


class FailingHost:
    """Screens by a tower that a black picture breaks."""

    name = "failing"

    def __init__(self, inner):
        self.inner = inner

    def generate(self, requests, **generation):
        return self.inner.generate(requests, **generation)

    def screen(self, detector, images):
        if any(not np.asarray(image).any() for image in images):
            raise ValueError("the tower gave nothing")
        return self.inner.screen(detector, images)


def test_a_picture_that_breaks_screening_takes_no_other_with_it(host, guard, picture):
    black = Image.new("RGB", (64, 64))
    requests = [Request("a", (picture("weapons"),)), Request("b", (black,)), Request("c", (picture("benign_1"),))]
    answers = guard.answer(FailingHost(host), requests)
    assert [answer.refused for answer in answers] == [False, True, False]
    assert answers[1].reason == "image 0 could not be judged: unreadable: ValueError: the tower gave nothing"
    assert answers[0].verdict.flagged


def test_a_request_that_the_host_cannot_encode_is_refused_alone(fake_host, guard):
    host = fake_host(refused=("b", "d"))
    answers = guard.answer(host, [Request(prompt) for prompt in "abcd"])
    assert [answer.refused for answer in answers] == [False, True, False, True]
    assert answers[1].reason == "holds a special token"
    assert stages(answers[1])["generate"] == (False, "refused: holds a special token")
    assert [request.prompt for request in host.asked[0]] == ["a", "c"]
    assert answers[2].text == "answer 0 to c"


def test_all_refused_asks_the_host_for_nothing(fake_host, guard):
    host = fake_host(refused=("a",))
    assert guard.answer(host, [Request("a")])[0].refused
    assert guard.answer(host, []) == []
    assert host.asked == []


def test_several_sequences_a_request(host, guard):
    answers = guard.answer(host, [Request("a"), Request("b", (BROKEN,)), Request("c")], num_return_sequences=2)
    assert [answer.text for answer in answers if not answer.refused] == [
        "answer 0 to a", "answer 1 to a", "answer 0 to c", "answer 1 to c",
    ]  # fmt: skip
    assert [answer.refused for answer in answers] == [False, False, True, True, False, False]


def test_a_model_with_a_number_of_its_own_gives_as_many(host, guard):
    own, host.generate = host.generate, lambda requests, **options: own(requests, num_return_sequences=2, **options)
    answers = guard.answer(host, [Request("a"), Request("b", (BROKEN,)), Request("c")])
    assert [answer.refused for answer in answers] == [False, False, True, True, False, False]
    assert [answer.text for answer in answers[4:]] == ["answer 0 to c", "answer 1 to c"]


def test_a_host_that_loses_a_generation_is_caught(host, guard):
    host.generate = lambda *_, **__: []
    with pytest.raises(RuntimeError, match="fake: expected a multiple of 1 generations; got 0"):
        guard.answer(host, [Request("a")])
    with pytest.raises(RuntimeError, match="fake: expected 4 generations; got 0"):
        guard.answer(host, [Request("a"), Request("b")], num_return_sequences=2)
    host.generate = lambda *_, **__: [None] * 3
    with pytest.raises(RuntimeError, match="fake: expected a multiple of 2 generations; got 3"):
        guard.answer(host, [Request("a"), Request("b")])
    with pytest.raises(ValueError, match="num_return_sequences: expected a whole number >= 1; got 'two'"):
        guard.answer(host, [Request("a")], num_return_sequences="two")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"redaction": "black"}, "redaction: expected one of zero, blur, pixelate; got 'black'"),
        ({"on_error": "ignore"}, "on_error: expected one of allow, review, block; got 'ignore'"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        GuardAlign(None, **settings)


def test_requests_only(host, guard):
    with pytest.raises(TypeError, match="requests: expected Request objects; got str at 1"):
        guard.answer(host, [Request("a"), "b"])
