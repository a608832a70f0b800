"""Whoever reads a streamer comes to its end: refused, raised, or streamed as ever."""

from __future__ import annotations

import pytest

from guardcore.defenses.eta import ETA
from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.none import Undefended
from guardcore.defenses.prefix import PlainPrefix
from guardcore.defenses.protocol import Request
from guardcore.defenses.scorers import PhraseScorer

LOST = OSError("lost")
DEFENSES = [Undefended(), PlainPrefix(), GuardAlign(None)]


class Streamer:
    """Counts its ends; `timeout` is an attribute of its own."""

    timeout = 3.0

    def __init__(self):
        self.tokens, self.ends = [], 0

    def put(self, value):
        self.tokens.append(value)

    def end(self):
        self.ends += 1


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_refused_request_ends_the_streamer(defense, fake_host):
    for host, request in ((fake_host(), Request("a", (LOST,))), (fake_host(refused=("b",)), Request("b"))):
        streamer = Streamer()
        (answer,) = defense.answer(host, [request], streamer=streamer)
        assert answer.refused
        assert (streamer.tokens, streamer.ends) == ([], 1)


@pytest.mark.parametrize("defense", DEFENSES)
def test_an_exception_ends_the_streamer(defense, host):
    def fails(*_, **__):
        raise KeyError("broken")

    host.generate, streamer = fails, Streamer()
    with pytest.raises(KeyError, match="broken"):
        defense.answer(host, [Request("a")], streamer=streamer)
    assert streamer.ends == 1
    with pytest.raises(TypeError, match="requests: expected Request objects"):
        defense.answer(host, ["a"], streamer=streamer)
    assert streamer.ends == 2


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_host_that_ends_it_is_not_ended_twice(defense, fake_host):
    class Streams(fake_host):
        def generate(self, requests, **generation):
            streamer = generation["streamer"]
            assert streamer.timeout == 3.0
            streamer.put(7)
            streamer.end()
            return super().generate(requests, **generation)

    streamer = Streamer()
    (answer,) = defense.answer(Streams(), [Request("a")], streamer=streamer)
    assert not answer.refused
    assert (streamer.tokens, streamer.ends) == ([7], 1)


def test_eta_ends_the_streamer_that_it_refuses(host, detector):
    streamer = Streamer()
    with pytest.raises(ValueError, match="streamer: expected none with ETA"):
        ETA(detector.encoder, PhraseScorer()).answer(host, [Request("a")], streamer=streamer)
    assert streamer.ends == 1
    with pytest.raises(ValueError, match="streamer: expected none with ETA"):
        ETA(detector.encoder, PhraseScorer()).answer(host, [Request("a")], streamer="none")
