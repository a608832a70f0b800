"""ETA stage by stage, with a scripted host and encoder: every number that decides is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image

from guardcore.defenses.eta import ETA
from guardcore.defenses.protocol import Defense, Generation, Request, RequestError
from guardcore.defenses.scorers import Scorer
from guardcore.encoders.protocol import ImageEmbedding

START = "As an AI assistant"


class AngleEncoder:
    """A picture's first pixel is its angle in degrees, a text's is the number in it; cosines follow."""

    name, fingerprint, image_size, grid, width = "angles", "a" * 64, 4, 1, 2

    def preprocess(self, images):
        return torch.tensor([[float(image.getpixel((0, 0))[0])] for image in images])

    def embed_images(self, pixels):
        if (pixels == 255).any():
            raise ValueError("255 is no angle")
        vectors = 3 * torch.cat((torch.cos(torch.deg2rad(pixels)), torch.sin(torch.deg2rad(pixels))), 1)
        vectors[(pixels == 254).flatten()] = math.nan
        return ImageEmbedding(vectors[:, None], vectors)

    def embed_texts(self, texts):
        numbers = [[word.strip(".,!") for word in text.split() if word.strip(".,!").isdigit()] for text in texts]
        if not all(numbers):
            raise ValueError("no number")
        angles = torch.deg2rad(torch.tensor([float(found[0]) for found in numbers]))
        return 7 * torch.stack((torch.cos(angles), torch.sin(angles)), 1)


def angle(degrees):
    return Image.new("RGB", (2, 2), (degrees, 0, 0))


@dataclass
class TableScorer:
    """Scores what an answer ends with."""

    table: dict
    threshold: float = 0.06
    name: str = "table"
    fingerprint: str = "t" * 64
    calls: list = field(default_factory=list)

    def score(self, prompts, answers):
        self.calls.append((list(prompts), list(answers)))
        return [next((v for k, v in self.table.items() if answer.endswith(k)), 0.0) for answer in answers]


def reply(pieces, vanilla="harm"):
    """A model that says `vanilla`, and after each forced beginning the pieces listed for it, one a sequence."""

    def said(request, index):
        new = pieces[request.answer_start][index] if request.answer_start else vanilla
        text, count = new if isinstance(new, tuple) else (new, 70)
        return Generation(request.answer_start + text, tuple(range(count)))

    return said


def eta(scorer, **settings):
    return ETA(AngleEncoder(), scorer, **{"harm": "harm at 0", "candidates": 2, **settings})


def stages(answer):
    return {stage.name: (stage.done, stage.reason) for stage in answer.trace.stages}


def test_a_safe_answer_is_final(fake_host):
    host, scorer = fake_host(reply({}, "fine")), TableScorer({"fine": 0.07})
    defense = eta(scorer)
    assert isinstance(defense, Defense)
    assert isinstance(scorer, Scorer)
    (answer,) = defense.answer(host, [Request("q", (angle(0),))], max_new_tokens=9)
    assert answer.text == "fine"
    assert host.options == [{"max_new_tokens": 9, "num_return_sequences": 1}]
    assert stages(answer)["answer check"] == (True, "safe: table 0.07, safe above 0.06")
    assert stages(answer)["picture check"] == (False, "the answer is safe")
    assert scorer.calls == [(["q"], ["fine"])]


@pytest.mark.parametrize("score", [0.06, math.nan])  # the threshold itself, and no number at all
def test_what_is_not_above_the_threshold_is_unsafe(score, fake_host):
    (answer,) = eta(TableScorer({"harm": score})).answer(fake_host(reply({})), [Request("q", (angle(90),))])
    assert stages(answer)["answer check"][1].startswith("unsafe")
    assert answer.text == "harm"  # the picture is at right angles to harm, hence safe


@pytest.mark.parametrize(("degrees", "safe"), [(80, False), (81, True)])  # cosines 0.174 and 0.156
def test_an_unsafe_answer_on_a_safe_picture_is_final(degrees, safe, fake_host):
    host = fake_host(reply({START: [(" no.", 2)] * 2}))
    (answer,) = eta(TableScorer({})).answer(host, [Request("q", (angle(degrees),))])
    word = "safe" if safe else "unsafe"
    cosine = math.cos(math.radians(degrees))
    assert stages(answer)["picture check"] == (True, f"{word}: cosine {cosine:.4g}, safe below 0.16")
    assert answer.text == ("harm" if safe else f"{START} no.")
    assert stages(answer)["align"] == (
        (False, "the picture is safe") if safe else (True, "best of 2 for each of 1 sentence")
    )


def test_the_picture_nearest_to_harm_counts(fake_host):
    host = fake_host(reply({START: [(" no.", 2)] * 2}))
    (answer,) = eta(TableScorer({})).answer(host, [Request("q", (angle(90), angle(10), angle(85)))])
    assert "unsafe: cosine 0.9848" in stages(answer)["picture check"][1]


@pytest.mark.parametrize("degrees", [254, 255])  # an embedding that is NaN, an encoder that fails
def test_a_picture_that_the_encoder_fails_on_is_unsafe(degrees, fake_host):
    host = fake_host(reply({START: [(" no.", 2)] * 2}))
    (answer,) = eta(TableScorer({})).answer(host, [Request("q", (angle(degrees),))])
    assert stages(answer)["picture check"][1] == "unsafe: cosine nan, safe below 0.16"
    assert answer.text == f"{START} no."


def test_without_pictures_the_answer_alone_decides(fake_host):
    host = fake_host(reply({START: [(" no.", 2)] * 2}))
    (answer,) = eta(TableScorer({})).answer(host, [Request("q")])
    assert stages(answer)["picture check"] == (False, "no pictures")
    assert answer.text == f"{START} no."


def test_sentences_are_cut_scored_and_chained(fake_host):
    """Reward alone for the first; alpha / 2 * cosine(sentence, picture at 0) on top for the second."""
    pieces = {
        START: [", I refuse at 60. Then more", ", I comply at 0. Then more"],
        f"{START}, I refuse at 60.": [" Turn to 90. And so", " Turn to 0! And so"],
        f"{START}, I refuse at 60. Turn to 0!": [(" Bye.", 3), (" Go.", 3)],
    }
    rewards = {"at 60.": 0.5, "to 90.": 0.4, "to 0!": 0.1, "Bye.": 0.3, "Go.": 0.2}
    host, scorer = fake_host(reply(pieces)), TableScorer(rewards)
    (answer,) = eta(scorer, alpha=1.0).answer(host, [Request("q", (angle(0),))], max_new_tokens=500, do_sample=False)
    # 0.4 + cos 90 / 2 = 0.4 against 0.1 + cos 0 / 2 = 0.6; without the nearness "to 90." would win
    assert answer.text == f"{START}, I refuse at 60. Turn to 0! Bye."
    assert answer.generation.text == answer.text
    assert [request[0].answer_start for request in host.asked] == ["", *pieces]
    sampled = {"do_sample": True, "top_k": 5, "temperature": 1.5, "max_new_tokens": 70, "num_return_sequences": 2}
    first = {"max_new_tokens": 500, "do_sample": False, "num_return_sequences": 1}
    assert host.options == [first, sampled, sampled, sampled]
    assert stages(answer)["align"] == (True, "best of 2 for each of 3 sentences")
    assert not answer.refused


def test_alpha_is_divided_by_the_sentences_number(fake_host):
    pieces = {
        START: [" One 0. x"] * 2,
        f"{START} One 0.": [" Two 0. x"] * 2,
        f"{START} One 0. Two 0.": [" Good 90. x", " Near 0. x"],
        f"{START} One 0. Two 0. Good 90.": [(" End.", 1)] * 2,
        f"{START} One 0. Two 0. Near 0.": [(" End.", 1)] * 2,
    }
    for reward, word in ((0.32, "Near"), (0.34, "Good")):  # against alpha / 3
        host = fake_host(reply(pieces))
        (answer,) = eta(TableScorer({"90.": reward})).answer(host, [Request("q", (angle(0),))])
        assert word in answer.text


def test_nearness_does_not_count_for_the_first_sentence(fake_host):
    pieces = {START: [" Far 90. x", " Near 0. x"], f"{START} Far 90.": [(" End.", 1)] * 2}
    (answer,) = eta(TableScorer({"90.": 0.1})).answer(fake_host(reply(pieces)), [Request("q", (angle(0),))])
    assert answer.text == f"{START} Far 90. End."


def test_what_was_cut_off_after_a_sentence_has_not_ended_the_answer(fake_host):
    pieces = {START: [(" One. Two.", 6)] * 2, f"{START} One.": [(" Other two.", 4)] * 2}
    (answer,) = eta(TableScorer({})).answer(fake_host(reply(pieces)), [Request("q", (angle(0),))])
    assert answer.text == f"{START} One. Other two."


def test_nearness_does_not_count_once_a_candidate_has_ended(fake_host):
    pieces = {START: [" One 0. x"] * 2, f"{START} One 0.": [" Far 90. x", (" Near 0.", 3)]}
    pieces[f"{START} One 0. Far 90."] = [(" End.", 1)] * 2
    (answer,) = eta(TableScorer({"90.": 0.1})).answer(fake_host(reply(pieces)), [Request("q", (angle(0),))])
    assert answer.text == f"{START} One 0. Far 90. End."


@pytest.mark.parametrize(
    ("piece", "kept"),
    [
        (" Pay 3.50 now. Or else", " Pay 3.50 now."),  # a decimal point ends nothing
        (" Really?! Yes", " Really?!"),
        ("\n\n First line\nsecond", "\n\n First line\n"),
        (" no end in seventy tokens", " no end in seventy tokens"),
        (" \u4f60\u597d\u3002\u518d\u89c1", " \u4f60\u597d\u3002"),
    ],
)
def test_where_a_sentence_ends(piece, kept, fake_host):
    pieces = {START: [piece] * 2, START + kept: [("", 0)] * 2}
    (answer,) = eta(TableScorer({})).answer(fake_host(reply(pieces)), [Request("q", (angle(0),))])
    assert answer.text == START + kept


def test_the_budget_ends_what_the_model_does_not(fake_host):
    class Endless(fake_host):
        """Says as many words as it may."""

        def generate(self, requests, **options):
            count = options["max_new_tokens"]
            self.reply = lambda request, _: Generation(request.answer_start + " word" * count, tuple(range(count)))
            return super().generate(requests, **options)

    host = Endless()
    (answer,) = eta(TableScorer({})).answer(host, [Request("q", (angle(0),))], max_new_tokens=200)
    assert [each["max_new_tokens"] for each in host.options] == [200, 70, 70, 60]
    assert len(answer.generation.token_ids) == 200
    (answer,) = eta(TableScorer({})).answer(Endless(), [Request("q", (angle(0),))], max_new_tokens=6)
    assert answer.text == START + " word" * 6
    host = fake_host(lambda request, _: Generation(request.answer_start + " a.", ()))  # a host that counts nothing
    eta(TableScorer({}), max_new_tokens=4).answer(host, [Request("q", (angle(0),))])
    assert len(host.asked) <= 1 + 4


def test_a_batch_is_aligned_together_and_only_where_needed(fake_host):
    pieces = {START: [(" No.", 2), (" Nope.", 2)]}

    def said(request, index):
        return reply(pieces, "fine" if request.prompt == "b" else "harm")(request, index)

    host = fake_host(said)
    requests = [
        Request("a", (angle(0),)),
        Request("b", (angle(0),)),
        Request("c", (angle(90),)),
        Request("d", (angle(5),)),
    ]
    answers = eta(TableScorer({"fine": 1.0, "Nope.": 0.1})).answer(host, requests)
    assert [answer.text for answer in answers] == [f"{START} Nope.", "fine", "harm", f"{START} Nope."]
    assert [[request.prompt for request in asked] for asked in host.asked] == [list("abcd"), ["a", "d"]]


def test_unopened_pictures_are_refused_or_left_out(fake_host):
    request = Request("q", (OSError("cut"), angle(90)))
    (answer,) = eta(TableScorer({})).answer(fake_host(reply({})), [request])
    assert answer.reason == "image 0 could not be opened: cut"
    host = fake_host(reply({}))
    (answer,) = eta(TableScorer({}), on_error="allow").answer(host, [request])
    assert len(host.asked[0][0].images) == 1
    assert stages(answer)["open"] == (False, "image 0 could not be opened: cut; goes on without")


def test_an_answer_that_no_candidate_of_which_can_be_judged_is_refused(fake_host):
    host = fake_host(reply({START: [" No. x"] * 2}))
    scorer = TableScorer({"No.": math.nan})
    (answer,) = eta(scorer).answer(host, [Request("q", (angle(0),))])
    assert answer.refused
    assert answer.reason == "table gave no number for any candidate"
    (answer,) = eta(scorer, on_error="review").answer(host, [Request("q", (angle(0),))])
    assert (answer.refused, answer.text) == (False, START)


def test_a_draft_that_the_host_cannot_go_on_with_is_refused_alone(fake_host):
    class Strict(fake_host):
        def generate(self, requests, **generation):
            for index, request in enumerate(requests):
                if request.prompt == "a" and request.answer_start:
                    raise RequestError(index, "holds a special token")
            return super().generate(requests, **generation)

    host = Strict(reply({START: [(" No.", 2)] * 2}))
    answers = eta(TableScorer({})).answer(host, [Request("a", (angle(0),)), Request("b", (angle(0),))])
    assert [answer.reason for answer in answers] == ["holds a special token", None]
    assert answers[1].text == f"{START} No."


def test_nan_scores_never_win(fake_host):
    host = fake_host(reply({START: [(" Odd.", 2), (" Fine.", 2)]}))
    (answer,) = eta(TableScorer({"Odd.": math.nan, "Fine.": -3.0})).answer(host, [Request("q", (angle(0),))])
    assert answer.text == f"{START} Fine."


def test_drafts_near_the_end_of_the_budget_do_not_shorten_the_others(fake_host):
    def said(request, _):
        sentence = " Long." if request.prompt == "a" else " Short."
        return Generation(request.answer_start + sentence, tuple(range(7 if request.prompt == "a" else 3)))

    host = fake_host(said)
    answers = eta(TableScorer({}), sentence_tokens=7).answer(
        host, [Request("a", (angle(0),)), Request("b", (angle(0),))], max_new_tokens=10
    )
    steps = [
        ("".join(request.prompt for request in asked), options["max_new_tokens"])
        for asked, options in zip(host.asked[1:], host.options[1:], strict=True)
    ]
    assert steps[0] == ("ab", 7)
    assert ("a", 3) in steps
    assert all(len(answer.generation.token_ids) >= 3 for answer in answers)
