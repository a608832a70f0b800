"""A defense on a model, from pictures and words to answers: `attach`, `Guarded` and the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench.calibration_oracle import oracle
from bench.tiny_models import FAMILIES
from guardcore.adapters.transformers.attach import Guarded, attach
from guardcore.adapters.transformers.prompt import encode
from guardcore.adapters.transformers.support import UnsupportedError
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.none import Undefended
from guardcore.defenses.protocol import Host, Request, RequestError

STRONG = AttentionCalibration(rules={"prefix": "log_gain:20"}, layers=(0, 1, 2, 3, 4, 5))
PREFIX = "Refuse what is harmful."
NEW = 6


def tokens(answers: list[Any]) -> list[tuple[int, ...]]:
    return [answer.generation.token_ids for answer in answers]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "qwen2_vl" else pytest.mark.slow) for n in FAMILIES])
def test_answers_are_what_the_oracle_generates_from_the_same_prompts(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], name: str
) -> None:
    """Whole path: rendering, spans after expansion, padding, calibration; one request has none, one its own."""
    model = tiny(name)
    own = AttentionCalibration(rules={"prefix": "gated:3", "image": "log_gain:2"}, layers=(1, 3, 4), rows="instruction")
    requests = [
        Request("What is this?", (picture(60, 40),), PREFIX, calibration=STRONG),
        Request("How do I make what is shown in the picture?", (picture(50, 70, 1),), PREFIX),
        Request("Describe it.", (picture(44, 44, 2),), PREFIX, calibration=own),
    ]
    calibrations = [request.calibration for request in requests]
    encoded = encode(model.processor, requests)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    with oracle(model.model, encoded.spans, encoded.padding, calibrations) as truth:
        expected = model.model.generate(**encoded.inputs, **settings)[:, encoded.inputs["input_ids"].shape[1] :]
    plain = model.model.generate(**encoded.inputs, **settings)[:, encoded.inputs["input_ids"].shape[1] :]
    assert not torch.equal(expected, plain)
    with attach(Undefended(), model.model, model.processor) as guarded:
        answers = guarded.generate_batch(requests, **settings)
    assert [list(row) for row in tokens(answers)] == expected.tolist()
    for mass in answers[0].trace.masses:
        assert torch.tensor(mass.after).allclose(truth.masses[mass.layer][0], atol=1e-5)
    assert answers[1].trace.masses == ()
    assert [answer.generation.spans for answer in answers] == list(encoded.spans)


def test_switched_off_it_is_the_model_itself(tiny: Callable[[str], Any], picture: Callable[..., Image.Image]) -> None:
    model = tiny("llava")
    request = Request("What is this?", (picture(),))
    encoded = encode(model.processor, [request])
    expected = model.model.generate(**encoded.inputs, max_new_tokens=NEW, do_sample=False)
    with attach(GuardAlign(None, prefix=None, calibration=None), model.model, model.processor) as guarded:
        answer = guarded.generate(picture(), "What is this?", max_new_tokens=NEW, do_sample=False)
    new = expected[0, encoded.inputs["input_ids"].shape[1] :].tolist()
    assert list(answer.generation.token_ids) == new
    assert answer.text == model.processor.tokenizer.decode(new, skip_special_tokens=True)
    assert not answer.trace.stage("calibrate").done


def test_the_trace_tells_that_the_prefix_is_heard(guarded: Guarded, picture: Callable[..., Image.Image]) -> None:
    answer = guarded.generate([picture(), picture(seed=1)], "Compare the two pictures.", max_new_tokens=2)
    assert [mass.layer for mass in answer.trace.masses] == [0, 1, 2, 3, 4, 5]
    for mass in answer.trace.masses:
        for before, after in zip(mass.before, mass.after, strict=True):
            assert after == pytest.approx(20 * before / (1 + 19 * before), abs=1e-5)
    assert answer.trace.stage("calibrate").done
    assert isinstance(guarded.host, Host)


def test_without_a_trace_nothing_is_recorded(tiny: Callable[[str], Any], picture: Callable[..., Image.Image]) -> None:
    model, guard = tiny("llava"), GuardAlign(None, prefix=PREFIX, calibration=STRONG)
    answers = []
    for trace in (True, False):
        with attach(guard, model.model, model.processor, trace=trace) as guarded:
            answers.append(guarded.generate(picture(), "What is this?", max_new_tokens=NEW))
    assert answers[0].trace.masses
    assert not answers[1].trace.masses
    assert answers[0].generation.token_ids == answers[1].generation.token_ids


def test_pictures_come_as_files_bytes_or_not_at_all(
    guarded: Guarded, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    buffer = BytesIO()
    picture().save(buffer, "png")
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    answers = [guarded.generate(each, "What is this?", max_new_tokens=NEW) for each in (picture(), path, str(path))]
    assert len({answer.text for answer in answers}) == 1
    assert guarded.generate(buffer.getvalue(), "What is this?", max_new_tokens=NEW).text == answers[0].text
    assert guarded.generate(None, "What is this?", max_new_tokens=NEW).generation.token_ids
    refused = guarded.generate(tmp_path / "none.png", "What is this?", max_new_tokens=NEW)
    assert refused.refused
    assert "not-found" in refused.reason


def test_models_that_cannot_mix_kinds_of_requests_get_them_apart(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    """Llama 3.2 Vision: with and without pictures; answers and indices stay in the order of the requests."""
    model = tiny("mllama")
    with attach(GuardAlign(None, prefix=PREFIX, calibration=STRONG), model.model, model.processor) as guarded:
        pairs = [(None, "Hello there"), (picture(), "What is this?"), (None, "How are you?")]
        together = guarded.generate_batch(pairs, max_new_tokens=NEW, num_return_sequences=2, num_beams=2)
        apart = [guarded.generate_batch([p], max_new_tokens=NEW, num_return_sequences=2, num_beams=2) for p in pairs]
        assert tokens(together) == [each for answers in apart for each in tokens(answers)]
        with pytest.raises(RequestError) as caught:
            guarded.host.generate([Request("fine", (picture(),)), Request("a <|image|> b")])
        assert caught.value.index == 1


def test_pictures_in_turn_are_refused_by_a_rule_for_cross_attention(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    """The prefix's rule does not touch those layers, so that it serves two pictures as well."""
    model = tiny("mllama")
    request = Request("Compare them", (picture(), picture(seed=1)), PREFIX)
    with attach(Undefended(), model.model, model.processor) as guarded:
        host = guarded.host
        heard = host.generate([replace(request, calibration=STRONG)], max_new_tokens=2)
        assert [mass.layer for mass in heard[0].masses] == [0, 2, 3, 5]
        image = AttentionCalibration(rules={"image": "log_gain:2"}, layers=(0, 1))
        assert host.generate([replace(request, images=request.images[:1], calibration=image)], max_new_tokens=2)
        with pytest.raises(UnsupportedError, match="see different pictures"):
            host.generate([replace(request, calibration=image)], max_new_tokens=2)


def test_several_sequences_belong_to_their_request(guarded: Guarded, picture: Callable[..., Image.Image]) -> None:
    torch.manual_seed(0)
    settings = {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 3}
    answers = guarded.generate_batch([(picture(), "What is this?"), (None, "Hello")], **settings)
    assert len(answers) == 6
    assert [answer.generation.spans == answers[0].generation.spans for answer in answers] == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match=r"num_return_sequences: expected 1.*got 3"):
        guarded.generate(picture(), "What is this?", **settings)


def test_an_answer_ends_where_it_ends(guarded: Guarded, tiny: Callable[[str], Any]) -> None:
    """The batch goes on for the others: neither padding nor what follows the end belongs to an answer."""
    tokenizer = tiny("llava").processor.tokenizer
    free = guarded.generate_batch([(None, "Hello"), (None, "How are you today?")], max_new_tokens=12)
    end = free[0].generation.token_ids[2]
    answers = guarded.generate_batch(
        [(None, "Hello"), (None, "How are you today?")], max_new_tokens=12, eos_token_id=[end, tokenizer.eos_token_id]
    )
    cut = free[0].generation.token_ids.index(end) + 1
    assert answers[0].generation.token_ids == free[0].generation.token_ids[:cut]
    assert tokenizer.pad_token_id not in answers[0].generation.token_ids


def test_a_forced_beginning_is_part_of_the_answer(guarded: Guarded, tiny: Callable[[str], Any]) -> None:
    tokenizer = tiny("llava").processor.tokenizer
    request = Request("What is this?", answer_start="Sure, here is a")
    generation = guarded.host.generate([request], max_new_tokens=NEW)[0]
    start, new = tokenizer("Sure, here is a")["input_ids"], list(generation.token_ids)
    assert generation.text == tokenizer.decode(start + new, skip_special_tokens=True)


def test_masses_are_of_a_row_that_is_calibrated(guarded: Guarded) -> None:
    """By instruction only: of the instruction's last row; without any instruction there is none."""
    generated = AttentionCalibration(rules={"prefix": "log_gain:20"}, layers=(0, 1))
    instruction = replace(generated, rows="instruction")
    last, own, none = guarded.host.generate(
        [
            Request("What is this?", prefix=PREFIX, calibration=generated),
            Request("What is this?", prefix=PREFIX, calibration=instruction),
            Request("", prefix=PREFIX, calibration=instruction),
        ],
        max_new_tokens=1,
    )
    assert none.masses == ()
    assert [mass.layer for mass in own.masses] == [mass.layer for mass in last.masses] == [0, 1]
    assert own.masses[0].before != pytest.approx(last.masses[0].before, abs=1e-4)
    for before, after in zip(own.masses[0].before, own.masses[0].after, strict=True):
        assert after == pytest.approx(20 * before / (1 + 19 * before), abs=1e-5)


def test_a_block_that_fails_gives_the_model_back(tiny: Callable[[str], Any]) -> None:
    model = tiny("llava")
    own = model.model.config.text_config._attn_implementation

    def fail() -> None:
        with attach(Undefended(), model.model, model.processor):
            assert model.model.config.text_config._attn_implementation != own
            raise KeyError("from within")

    with pytest.raises(KeyError, match="from within"):
        fail()
    assert model.model.config.text_config._attn_implementation == own
