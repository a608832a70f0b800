"""ETA's settings are named if bad and part of the fingerprint; its host keeps the contract; its encoder reads."""

from __future__ import annotations

import math

import pytest

from guardcore.defenses.best_of_n import Draft, SentenceSearch
from guardcore.defenses.eta import ETA
from guardcore.defenses.protocol import Generation, Request
from guardcore.defenses.scorers import PhraseScorer
from guardcore.defenses.similarity import Similarity

START = "As an AI assistant"


class Reader:
    """An encoder as far as settings look: it reads all texts but one."""

    fingerprint = "r" * 64

    def embed_texts(self, texts):
        if "unreadable" in texts:
            raise ValueError("no word known")


def eta(scorer, **settings):
    return ETA(Reader(), scorer, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"candidates": 0}, "candidates: expected a whole number >= 1; got 0"),
        ({"sentence_tokens": 0}, "sentence_tokens: expected"),
        ({"top_k": 1.5}, "top_k: expected a whole number >= 1; got 1.5"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"alpha": math.nan}, "alpha: expected a finite number >= 0; got nan"),
        ({"image_threshold": 16.0}, r"image_threshold: expected a cosine in \[-1, 1\]; got 16.0"),
        ({"on_error": "x"}, "on_error: expected one of allow, review, block"),
        ({"harm": "unreadable"}, "harm: the encoder can't read 'unreadable'"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        eta(PhraseScorer(), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": "hot"}, "temperature: expected a number; got str"),
        ({"image_threshold": None}, "image_threshold: expected a number; got NoneType"),
        ({"answer_start": None}, "answer_start: expected a string; got NoneType"),
        ({"harm": 5}, "harm: expected a string; got int"),
    ],
)
def test_settings_of_other_types_are_named(settings, words):
    with pytest.raises(TypeError, match=words):
        eta(PhraseScorer(), **settings)
    with pytest.raises(TypeError, match="encoder: expected one such as"):
        ETA("clip", PhraseScorer())
    with pytest.raises(TypeError, match="scorer: expected one such as"):
        ETA(Reader(), "phrases")


@pytest.mark.parametrize("option", [{"num_return_sequences": 2}, {"streamer": object()}])
def test_what_cannot_be_taken_back_is_refused(option, fake_host):
    with pytest.raises(ValueError, match=f"{next(iter(option))}: expected none with ETA"):
        eta(PhraseScorer()).answer(fake_host(), [Request("q")], **option)


def test_fingerprints_change_with_every_setting():
    changes = [
        {}, {"harm": "harm at 1"}, {"image_threshold": 0.2}, {"answer_start": "No"}, {"candidates": 3}, {"top_k": 6},
        {"temperature": 1.0}, {"alpha": 0.5}, {"sentence_tokens": 60}, {"max_new_tokens": 9}, {"on_error": "allow"},
        {"refusal": "No."},
    ]  # fmt: skip
    prints = {eta(PhraseScorer(), **change).fingerprint for change in changes}
    assert len(prints | {eta(PhraseScorer(["no"])).fingerprint}) == len(changes) + 1


def test_the_built_in_encoder_reads_the_sentence_about_harm(detector, picture, fake_host):
    host = fake_host(lambda request, _: Generation(request.answer_start + " I won't.", (1, 2)))
    defense = ETA(detector.encoder, PhraseScorer(), image_threshold=-1.0)
    (answer,) = defense.answer(host, [Request("q", (picture("weapons"),))])
    assert answer.text == " I won't."
    host = fake_host(lambda request, _: Generation(f"{request.answer_start} sure, a gun.", (1, 2)))
    (answer,) = defense.answer(host, [Request("q", (picture("weapons"),))])
    assert answer.text == f"{START} sure, a gun."
    assert "unsafe: cosine" in answer.trace.stage("picture check").reason


def test_hosts_that_break_the_contract_are_caught(fake_host):
    search = SentenceSearch(PhraseScorer(), 2, 1.0, 70, {})
    draft = Draft(Request("q"), Similarity(Reader(), ()), START)
    with pytest.raises(RuntimeError, match="fake: expected a text that begins with answer_start"):
        search.run(fake_host(lambda *_: Generation("else")), [draft], 9)
    host = fake_host()
    host.generate = lambda *_, **__: []
    with pytest.raises(RuntimeError, match="fake: expected 2 generations; got 0"):
        search.run(host, [draft], 9)
