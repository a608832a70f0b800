"""No defense, and a prefix alone."""

from __future__ import annotations

import math

import pytest
from PIL import Image

from guardcore.defenses.none import Undefended
from guardcore.defenses.prefix import SAFETY_PREFIX, PlainPrefix
from guardcore.defenses.protocol import Defense, Request


@pytest.mark.parametrize("defense", [Undefended(), PlainPrefix()])
def test_unopened_pictures_are_refused_alone_and_nothing_is_screened(defense, host, picture):
    benign = picture("benign_1")
    assert isinstance(defense, Defense)
    answers = defense.answer(host, [Request("a", (benign,)), Request("b", (benign, OSError("cut")))], do_sample=True)
    assert [answer.refused for answer in answers] == [False, True]
    assert answers[1].reason == "image 1 could not be opened: cut"
    assert host.screened == []
    assert host.asked[0][0].images == (benign,)
    assert host.options == [{"do_sample": True}]
    assert answers[0].verdict is None
    assert answers[0].text == "answer 0 to a"


def test_undefended_changes_nothing(host):
    request = Request("a", answer_start="Well, ", system="Be brief.")
    (answer,) = Undefended().answer(host, [request])
    (asked,) = host.asked[0]
    assert (asked.prompt, asked.prefix, asked.answer_start, asked.system) == ("a", "", "Well, ", "Be brief.")
    assert asked.calibration is None
    assert [stage.name for stage in answer.trace.stages] == ["generate"]
    assert answer.trace.stage("generate").reason == "5 new tokens (encode 0.100 s, generate 0.400 s)"


def test_every_picture_is_shown_as_rgb_and_changes_are_told(host):
    glass = Image.new("RGBA", (2, 1), (200, 100, 0, 0))
    glass.putpixel((1, 0), (200, 100, 0, 255))
    gray, deep, odd = Image.new("L", (1, 1), 7), Image.new("I;16", (1, 1), 40000), Image.new("F", (1, 1), math.nan)
    (answer,) = Undefended().answer(host, [Request("a", (glass, gray, deep))])
    shown = host.asked[0][0].images
    assert [image.mode for image in shown] == ["RGB"] * 3
    assert [shown[0].getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 0)]  # on white, as files are
    assert shown[1].getpixel((0, 0)) == (7, 7, 7)
    assert answer.trace.stage("open").reason.startswith("image 0: alpha composited on white")
    assert "image 2: 16-bit scaled to 8" in answer.trace.stage("open").reason
    assert Undefended().answer(host, [Request("a", (odd,))])[0].refused
    assert Undefended().answer(host, [Request("a", ("x.png",))])[0].reason.endswith("expected a PIL image; got str")


def test_a_prefix_is_all_that_is_added(host):
    answers = PlainPrefix("Be kind.").answer(host, [Request("a"), Request("b", prefix="Be brief.")])
    assert [request.prefix for request in host.asked[0]] == ["Be kind.", "Be brief."]
    assert all(request.calibration is None for request in host.asked[0])
    assert answers[0].trace.stage("prefix").reason == "'Be kind.' before the instruction"


def test_fingerprints_and_errors():
    built = [Undefended(), PlainPrefix(), PlainPrefix("Be kind.")]
    assert len({each.fingerprint for each in built}) == 3
    assert PlainPrefix().fingerprint == PlainPrefix(SAFETY_PREFIX).fingerprint
    with pytest.raises(ValueError, match="text: expected a prefix; got none"):
        PlainPrefix(" ")
