"""Ways to generate: chunks, beams, samples, several sequences, windows, caches, precisions, streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.calibrated_batch import calibrated_batch, distance
from bench.tiny_models import FAMILIES
from guardcore.calibration.attention_calibration import AttentionCalibration

TOLERANCE = 1e-4


def same(found: Any, expected: Any) -> bool:
    return torch.equal(found.sequences, expected.sequences) and bool((distance(found, expected) <= TOLERANCE).all())


WAYS: tuple[dict[str, Any], ...] = (
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 17},
    {"prefill_chunk_size": 17, "cache_implementation": "static"},
    {"use_cache": False},
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "gemma3" else pytest.mark.slow) for n in FAMILIES])
def test_a_rule_without_effect_sees_what_the_model_sees(tiny: Callable[[str], Any], name: str) -> None:
    """Against the same way to generate: transformers cuts pictures at chunks, and gives each way other logits."""
    model = tiny(name)
    idle = AttentionCalibration(rules={"prefix": "log_gain:1.0000001"}, layers=(0, 1, 2, 3, 4, 5))
    batch = replace(calibrated_batch(model), calibrations=(idle,) * 3)
    for settings in WAYS:
        if name == "mllama" and "prefill_chunk_size" in settings:
            continue  # transformers refuses
        plain = batch.plain(model.model, **settings)
        assert same(batch.calibrated(model.model, **settings), plain), settings


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("llava", "dynamic"),
        ("gemma3", "dynamic"),
        pytest.param("llava", "static", marks=pytest.mark.slow),
        pytest.param("paligemma", "dynamic", marks=pytest.mark.slow),
        pytest.param("paligemma", "static", marks=pytest.mark.slow),
    ],
)
def test_prefill_in_chunks(tiny: Callable[[str], Any], name: str, cache: str) -> None:
    """17 slots at a time: chunks begin and end inside pictures, padding and spans, and the window of 16 is crossed."""
    model = tiny(name)
    batch = calibrated_batch(model)
    settings: dict[str, Any] = {"prefill_chunk_size": 17}
    if cache == "static":
        settings["cache_implementation"] = "static"
    found, session = batch.traced(model.model, **settings)
    assert same(found, batch.expected(model.model, prefill_chunk_size=17))
    assert len(session.masses()[0]) == 6


@pytest.mark.parametrize("name", ["llava", pytest.param("qwen2_vl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [
    {"num_beams": 3, "output_scores": True},
    {"num_beams": 3, "output_scores": True, "num_return_sequences": 2, "cache_implementation": "static"},
])  # fmt: skip
def test_beams(tiny: Callable[[str], Any], name: str, settings: dict[str, Any]) -> None:
    model = tiny(name)
    batch = calibrated_batch(model)
    found = batch.calibrated(model.model, **settings)
    expected = batch.expected(model.model, **{**settings, "cache_implementation": None})
    assert torch.equal(found.sequences, expected.sequences)
    assert found.sequences_scores.allclose(expected.sequences_scores, rtol=0, atol=1e-5)
    assert not found.sequences_scores.allclose(batch.plain(model.model, **settings).sequences_scores, atol=1e-3)


def test_samples_of_several_sequences(tiny: Callable[[str], Any]) -> None:
    model = tiny("llava")
    batch = calibrated_batch(model)
    settings = {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5}
    outputs = []
    for generate in (batch.calibrated, batch.expected, batch.plain):
        torch.manual_seed(3)
        outputs.append(generate(model.model, **settings))
    found, expected, plain = outputs
    assert same(found, expected)
    assert len(found.sequences) == 6
    assert not torch.equal(found.sequences[0], found.sequences[1])
    assert not torch.equal(found.sequences, plain.sequences)


def test_without_a_cache(tiny: Callable[[str], Any]) -> None:
    """Every pass is the whole sequence: rows of generated tokens are calibrated again and again."""
    model = tiny("llava")
    batch = calibrated_batch(model)
    found, session = batch.traced(model.model, use_cache=False)
    assert same(found, batch.expected(model.model))
    assert len(session.masses()[0]) == 6


def test_prompt_lookup_takes_several_tokens_a_step(tiny: Callable[[str], Any]) -> None:
    """Drafts are checked in passes of several rows, and the cache is cut back where they were wrong."""
    model = tiny("qwen2_vl")
    batch = calibrated_batch(model, requests=1)
    found, session = batch.traced(model.model, prompt_lookup_num_tokens=3)
    assert torch.equal(found.sequences, batch.expected(model.model).sequences)
    assert session.masses()[0] == batch.traced(model.model)[1].masses()[0]


def test_a_stream_gives_the_same_text(tiny: Callable[[str], Any]) -> None:
    from threading import Thread

    from transformers import TextIteratorStreamer

    model = tiny("llava")
    batch = calibrated_batch(model, requests=1)
    tokenizer = model.processor.tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=batch.calibrated, args=(model.model,), kwargs={"streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    prompt = batch.inputs["input_ids"].shape[1]
    assert text == tokenizer.decode(batch.expected(model.model).sequences[0, prompt:])


def test_eager_attention_is_the_original_of_eager_models(tiny: Callable[[str], Any]) -> None:
    """Its masks are numbers; layers without a rule run it, and layers with one agree with it."""
    model = tiny("gemma3")
    batch = calibrated_batch(model)
    expected = batch.expected(model.model)
    model.model.set_attn_implementation("eager")
    try:
        found = batch.calibrated(model.model)
        assert model.model.config.text_config._attn_implementation == "eager"
    finally:
        model.model.set_attn_implementation("sdpa")
    assert same(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_oracle(tiny: Callable[[str], Any], dtype: torch.dtype) -> None:
    from copy import deepcopy

    model = tiny("llava")
    batch, half = calibrated_batch(model), deepcopy(model.model).to(dtype)
    inputs = {name: each.to(dtype) if each.is_floating_point() else each for name, each in batch.inputs.items()}
    batch = type(batch)(inputs, batch.spans, batch.padding, batch.calibrations)
    settings = {"max_new_tokens": 1, "min_new_tokens": 1}  # later ones may part ways at a near tie
    found, expected = (generate(half, **settings) for generate in (batch.calibrated, batch.expected))
    assert found.logits[0].isfinite().all()
    rounding = 2**-7 if dtype == torch.bfloat16 else 2**-10
    assert (distance(found, expected) < 4 * rounding).all()
