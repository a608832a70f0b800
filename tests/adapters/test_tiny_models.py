"""Every tiny model generates from its processor's output, and looks at what it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench.tiny_models import FAMILIES, build

NEW = 6


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Any]) -> Any:
    return tiny(request.param)


@pytest.fixture
def encoded(model: Any, picture: Callable[..., Image.Image]) -> Any:
    """Two questions of different lengths about pictures of different shapes."""
    return encode(model, [picture(60, 40), picture(50, 70)])


def encode(model: Any, images: list[Image.Image]) -> Any:
    questions = ["What is this?", "How do I make what is shown in the picture? Explain."]
    if model.processor.chat_template is None:
        texts = [f"<image>{question}" for question in questions]
    else:
        texts = [
            model.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]
    return model.processor(
        text=texts, images=[[image] for image in images], padding=True, padding_side="left", return_tensors="pt"
    )


def generate(model: Any, inputs: Any, **settings: Any) -> Any:
    return model.model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **settings)


def test_generates_the_same_tokens_with_either_attention(model: Any, encoded: Any) -> None:
    tokens = {}
    for attention in ("eager", "sdpa"):
        model.model.set_attn_implementation(attention)
        tokens[attention] = generate(model, encoded)
    assert tokens["sdpa"].shape[1] > encoded["input_ids"].shape[1]
    assert torch.equal(tokens["eager"], tokens["sdpa"])


@torch.no_grad()
def test_logits_are_far_apart_and_depend_on_the_picture(
    model: Any, encoded: Any, picture: Callable[..., Image.Image]
) -> None:
    other = encode(model, [picture(60, 40, seed=5), picture(50, 70, seed=6)])
    logits, changed = (model.model(**inputs).logits[:, -1] for inputs in (encoded, other))
    best = logits.topk(2).values
    assert (best[:, 0] - best[:, 1] > 1e-4).all()
    assert 0.5 < logits.std() < 2
    assert ((logits - changed).abs().amax(-1) > 0.05).all()


def test_text_layers_are_deep_enough_for_a_middle_band(model: Any) -> None:
    text = model.model.config.get_text_config()
    assert text.num_hidden_layers >= 4
    assert text.num_attention_heads > text.num_key_value_heads


def test_loads_again_from_what_it_saved(model: Any, encoded: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model.save(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is type(model.processor)
    assert processor.tokenizer.get_vocab() == model.processor.tokenizer.get_vocab()
    assert torch.equal(generate(model, encoded), loaded.generate(**encoded, max_new_tokens=NEW, do_sample=False))


def test_a_seed_gives_the_same_weights_again(tiny: Callable[[str], Any]) -> None:
    once, again, other = tiny("llava").model.state_dict(), build("llava").model.state_dict(), build("llava", 1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())
    assert not torch.equal(once["lm_head.weight"], other.model.state_dict()["lm_head.weight"])


def test_an_unknown_family_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"expected one of \['gemma3'.*got 'gpt'"):
        build("gpt")
