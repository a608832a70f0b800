"""What a defended model refuses, by name: before anything is generated, and without taking other requests along."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import guardcore
from guardcore.adapters.transformers.attach import Guarded, attach
from guardcore.adapters.transformers.support import UnsupportedError
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.none import Undefended
from guardcore.defenses.protocol import Request

NEW = 6


def tokens(answers: list[Any]) -> list[tuple[int, ...]]:
    return [answer.generation.token_ids for answer in answers]


def text_only() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))


def test_a_bad_request_leaves_the_others_alone(guarded: Guarded, picture: Callable[..., Image.Image]) -> None:
    sound = (picture(), "What is this?")
    alone = guarded.generate(*sound, max_new_tokens=NEW)
    answers = guarded.generate_batch([(picture(), "Show <image> again"), sound], max_new_tokens=NEW)
    assert answers[0].refused
    assert "<image>" in answers[0].reason
    assert answers[1].text == alone.text


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"attention_mask": torch.ones(1, 3)}, TypeError, "attention_mask"),
        ({"past_key_values": object()}, TypeError, "past_key_values"),
        ({"output_attentions": True}, UnsupportedError, "output_attentions"),
        ({"cache_implementation": "paged"}, UnsupportedError, "paged"),
        ({"guidance_scale": 2.0}, UnsupportedError, "guidance_scale: guidance by a second prompt"),
        ({"generation_config": GenerationConfig(guidance_scale=2.0)}, UnsupportedError, "guidance_scale"),
        ({"guidance_scale": 1.0, "negative_prompt_ids": torch.ones(1, 9, dtype=torch.long)}, UnsupportedError, "negat"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_by_name(
    guarded: Guarded, settings: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        guarded.generate(None, "Hello", max_new_tokens=2, **settings)
    assert guarded.generate(None, "Hello", max_new_tokens=2).generation.token_ids


def test_guidance_is_refused_before_anything_is_generated_and_only_under_a_calibration(
    guarded: Guarded, tiny: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative prompt of the prompt's own length can't be told from the prompt by its passes."""
    model = tiny("llava").model
    spans = guarded.generate(None, "Hello", max_new_tokens=2).generation.spans
    negative = torch.ones(1, spans.length, dtype=torch.long)
    settings = {"max_new_tokens": 2, "guidance_scale": 3.0, "negative_prompt_ids": negative}
    assert guarded.host.generate([Request("Hello")], **settings)[0].token_ids
    monkeypatch.setattr(model.generation_config, "guidance_scale", 3.0)
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("generated"))
    with pytest.raises(UnsupportedError, match="guidance_scale"):
        guarded.generate(None, "Hello", max_new_tokens=2)
    with pytest.raises(UnsupportedError, match="guidance_scale"):
        guarded.generate(None, "Hello", **settings)


def test_an_implementation_exchanged_while_attached_is_refused(guarded: Guarded, tiny: Callable[[str], Any]) -> None:
    model = tiny("llava").model
    attached = model.config.text_config._attn_implementation
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="exchanged for 'sdpa' while a defense is attached"):
        guarded.generate(None, "Hello", max_new_tokens=2)
    assert guarded.host.generate([Request("Hello")], max_new_tokens=2)
    model.set_attn_implementation({"text_config": attached})
    assert guarded.generate(None, "Hello", max_new_tokens=2).trace.masses


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (AttentionCalibration(layers=(99,)), "layers: expected below the model's 6 layers; got 99"),
        (AttentionCalibration(layers=(1,), heads={1: (99,)}), "heads: expected below the model's 4 heads; got 99"),
        (AttentionCalibration(layers=(1,), heads={2: (0,)}), r"heads: expected layers among \[1\]; got 2"),
    ],
)
def test_a_calibration_for_another_model_is_refused_alone(
    guarded: Guarded, calibration: AttentionCalibration, reason: str
) -> None:
    answers = guarded.generate_batch(
        [Request("Hello"), Request("How are you?", calibration=calibration), Request("Good day")], max_new_tokens=NEW
    )
    assert [answer.refused for answer in answers] == [False, True, False]
    assert re.search(reason, answers[1].reason)
    sound = guarded.generate_batch([(None, "Hello"), (None, "Good day")], max_new_tokens=NEW)
    assert tokens([answers[0], answers[2]]) == tokens(sound)


def test_a_request_of_the_wrong_type_ends_its_stream(guarded: Guarded) -> None:
    """Whoever reads the stream would wait forever for an answer that nobody started."""
    ends: list[bool] = []
    streamer = SimpleNamespace(put=lambda _: None, end=lambda: ends.append(True))
    with pytest.raises(TypeError):
        guarded.generate_batch(["hello"], streamer=streamer)  # type: ignore[list-item]
    guarded.generate(None, "Hello", max_new_tokens=1, streamer=streamer)
    assert ends == [True, True]


@pytest.mark.parametrize("wrong", ["hello", "ab", (None,), (None, "a", "b"), 5, None])
def test_something_else_among_the_requests_is_named(guarded: Guarded, wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"expected Request objects or pairs .*got {type(wrong).__name__} at 1"):
        guarded.generate_batch([(None, "Hello"), wrong])


def test_a_bad_request_of_another_group_costs_no_generation(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("mllama")
    calls: list[int] = []
    own = model.model.generate

    def counted(**settings: Any) -> Any:
        calls.append(len(settings["input_ids"]))
        return own(**settings)

    with attach(GuardAlign(None), model.model, model.processor) as guarded:
        monkeypatch.setattr(model.model, "generate", counted)
        answers = guarded.generate_batch([(picture(), "What is this?"), (None, "a <|image|> b")], max_new_tokens=1)
    assert [answer.refused for answer in answers] == [False, True]
    assert calls == [1]


def test_double_precision_is_refused(tiny: Callable[[str], Any]) -> None:
    model = tiny("llava")
    double = deepcopy(model.model).double()
    with attach(GuardAlign(None), double, model.processor) as guarded:
        with pytest.raises(UnsupportedError, match=r"float32, bfloat16 or float16; got torch\.float64"):
            guarded.generate(None, "Hello", max_new_tokens=1)
        assert guarded.host.generate([Request("Hello")], max_new_tokens=1)


def test_a_model_in_training_is_refused(guarded: Guarded, tiny: Callable[[str], Any]) -> None:
    model = tiny("llava").model.train()
    try:
        with pytest.raises(UnsupportedError, match="eval"):
            guarded.generate(None, "Hello", max_new_tokens=2)
    finally:
        model.eval()


def test_attach_says_what_is_wrong(tiny: Callable[[str], Any], guarded: Guarded) -> None:
    model = tiny("llava")
    with pytest.raises(TypeError, match="guard: expected a defense"):
        attach(object(), model.model, model.processor)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the class GuardAlign"):
        attach(GuardAlign, model.model, model.processor)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM is no vision-language model"):
        attach(Undefended(), text_only(), model.processor)
    with pytest.raises(UnsupportedError, match="LlavaModel can't generate"):
        attach(Undefended(), model.model.model, model.processor)
    with pytest.raises(ValueError, match="processor"):
        attach(Undefended(), model.model, object())
    with pytest.raises(RuntimeError, match="attached already"):
        guardcore.attach(Undefended(), model.model, model.processor)
    guarded.detach()
    with pytest.raises(RuntimeError, match="detached"):
        guarded.generate(None, "Hello")
    guardcore.attach(Undefended(), model.model, model.processor).detach()
