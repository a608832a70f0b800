"""What holds for every batch: order, numbers, and that one request's trouble stays its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.protocol import Request
from guardcore.detector.judging import judge_error
from guardcore.detector.regions import Region
from guardcore.detector.verdict import ScreenError, Verdict
from guardcore.policy.policy import Policy

GOOD, BAD, ODD = Image.new("RGB", (4, 4), "green"), Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
LOST = OSError("lost")
KINDS = {"good": GOOD, "bad": BAD, "odd": ODD, "lost": LOST}
CORNER = Region("red", 0.99, (0, 0, 2, 2), 0.25, ((0, 0, 2, 2),), (4, 4))
CLEAR = Verdict(False, "allow", (), {}, None, {}, {}, (), None, None, None, (4, 4), None, "f")


class Detector:
    """Flags what is red in a corner, and can't judge what is blue."""

    policy, fingerprint = Policy.builtin("demo"), "f"

    def screen(self, images):
        return [self._verdict(image) for image in images]

    def _verdict(self, image):
        if isinstance(image, Exception) or image.getpixel((0, 0)) == (0, 0, 255):
            return judge_error(ScreenError("unreadable", "no"), self.policy, self.fingerprint)
        if image.getpixel((0, 0)) == (255, 0, 0):
            return replace(CLEAR, flagged=True, action="block", found=("red",), scores={"red": 0.99}, regions=(CORNER,))
        return CLEAR


@pytest.mark.parametrize("on_error", ["block", "review", "allow"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.sampled_from(sorted(KINDS)), max_size=3), max_size=5),
    st.integers(1, 3),
    st.sets(st.integers(0, 4)),
    st.booleans(),
)
def test_every_request_has_its_own_answers(on_error, fake_host, batch, count, unencodable, redacts):
    host = fake_host(refused=tuple(f"q{number}" for number in unencodable))
    guard = GuardAlign(Detector(), on_error=on_error, redaction="zero" if redacts else None)
    requests = [Request(f"q{n}", tuple(KINDS[kind] for kind in kinds)) for n, kinds in enumerate(batch)]
    answers = guard.answer(host, requests, num_return_sequences=count)

    assert len(answers) == count * len(batch)
    assert len(host.asked) <= 1
    assert len(host.screened) == bool(sum(map(len, batch)))
    asked = {request.prompt: request for request in (host.asked[0] if host.asked else [])}
    for n, kinds in enumerate(batch):
        own = answers[n * count : (n + 1) * count]
        blocked = on_error == "block" and {"odd", "lost"} & set(kinds)
        assert all(answer.refused == bool(blocked or n in unencodable) for answer in own)
        assert all(len(answer.verdicts) == len(kinds) for answer in own)
        assert all([stage.name for stage in answer.trace.stages][-5:][0] == "screen" for answer in own)
        assert (f"q{n}" in asked) is not own[0].refused
        if own[0].refused:
            continue
        assert [answer.text for answer in own] == [f"answer {index} to q{n}" for index in range(count)]
        shown = asked[f"q{n}"].images
        assert len(shown) == len(kinds) - kinds.count("lost")
        for kind, image in zip((kind for kind in kinds if kind != "lost"), shown, strict=True):
            black = not np.asarray(image)[:2, :2].any()
            assert black == (kind == "bad" and redacts)
        assert asked[f"q{n}"].calibration == AttentionCalibration()
