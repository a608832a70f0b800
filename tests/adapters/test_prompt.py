"""Requests as batches: every family, pictures and prompts of different numbers and lengths, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bench.tiny_models import FAMILIES
from guardcore.adapters.transformers.prompt import encode, groups
from guardcore.defenses.protocol import Request, RequestError

PREFIX = "As an AI assistant, I refuse what is harmful."
LONG = "How do I make the thing in the picture? Explain it step by step, with naïve emoji \N{FIRE} and 漢字."
NEEDS_PICTURES = ("paligemma", "mllama")  # the one always, the other within a batch that has any
NO_SYSTEM = ("paligemma",)


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest, tiny: Callable[[str], Any]) -> Any:
    return tiny(request.param)


@pytest.fixture
def requests(model: Any, picture: Callable[..., Image.Image]) -> list[Request]:
    """Text alone, one picture, two pictures of different shapes; with and without a prefix."""
    found = [
        Request("What is this?", (picture(60, 40),), prefix=PREFIX),
        Request(LONG, (picture(48, 48, 1), picture(30, 70, 2)), prefix=PREFIX + "\n"),
        Request("What is this?", (picture(33, 33, 3),)),
    ]
    return found if model.name in NEEDS_PICTURES else [*found, Request(LONG, prefix=PREFIX)]


def text_of(model: Any, ids: torch.Tensor, spans: tuple[tuple[int, int], ...]) -> str:
    tokens = [token for start, end in spans for token in ids[start:end].tolist()]
    return str(model.processor.tokenizer.decode(tokens))


def unpadded(encoded: Any, index: int) -> torch.Tensor:
    row: torch.Tensor = encoded.inputs["input_ids"][index, encoded.padding[index] :]
    return row


def test_spans_decode_to_the_text_they_stand_for(model: Any, requests: list[Request]) -> None:
    encoded = encode(model.processor, requests)
    assert max(encoded.padding) > 0
    for index, (request, spans) in enumerate(zip(requests, encoded.spans, strict=True)):
        ids = unpadded(encoded, index)
        assert spans.length == len(ids)
        assert text_of(model, ids, spans.prefix).strip() == request.prefix.strip()
        assert text_of(model, ids, spans.instruction).strip() == request.prompt
        assert len(spans.instruction) == 1
        assert spans.instruction[0][1] <= spans.answer < len(ids)
        assert request.prompt not in text_of(model, ids, ((spans.answer, len(ids)),))


def test_image_spans_hold_the_image_tokens_and_no_other(model: Any, requests: list[Request]) -> None:
    encoded = encode(model.processor, requests, image_token_id=model.model.config.image_token_id)
    for index, (request, spans) in enumerate(zip(requests, encoded.spans, strict=True)):
        ids, inside = unpadded(encoded, index), torch.zeros(spans.length, dtype=torch.bool)
        for start, end in spans.image:
            inside[start:end] = True
        if model.name == "mllama":
            assert not spans.image
        else:
            assert torch.equal(inside, ids == model.model.config.image_token_id)
            assert bool(spans.image) == bool(request.images)
    assert encode(model.processor, requests).spans == encoded.spans


def test_a_batch_says_what_its_requests_say_alone(model: Any, requests: list[Request]) -> None:
    batch = encode(model.processor, requests)
    generated = model.model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
    length = batch.inputs["input_ids"].shape[1]
    for index, request in enumerate(requests):
        alone = encode(model.processor, [request])
        assert alone.padding == (0,)
        assert alone.spans[0] == batch.spans[index]
        assert torch.equal(alone.inputs["input_ids"][0], unpadded(batch, index))
        tokens = model.model.generate(**alone.inputs, max_new_tokens=4, do_sample=False)
        new = tokens[0, alone.spans[0].length :]  # shorter where it ends before the batch does
        assert torch.equal(new, generated[index, length : length + len(new)])


def test_equals_the_processors_own_way_from_messages_to_tokens(model: Any, requests: list[Request]) -> None:
    if model.processor.chat_template is None:
        pytest.skip("no chat template")
    request = requests[1]
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in request.images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": request.prefix + request.prompt}]}]
    expected = model.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs = encode(model.processor, [request]).inputs
    for name in ("input_ids", "pixel_values"):
        assert torch.equal(inputs[name], expected[name])


def test_the_answer_starts_as_it_is_told(model: Any, requests: list[Request]) -> None:
    start = "As an AI assistant, I"
    if model.name in NO_SYSTEM:
        with pytest.raises(RequestError, match=r"request 0: answer_start: expected none, PaliGemmaProcessor has no"):
            encode(model.processor, [Request("What?", requests[0].images, answer_start=start)])
        return
    told = Request("What?", requests[0].images, prefix=PREFIX, answer_start=start)
    encoded = encode(model.processor, [told])
    plain = encode(model.processor, [Request("What?", requests[0].images, prefix=PREFIX)])
    ids, spans = unpadded(encoded, 0), encoded.spans[0]
    assert text_of(model, ids, ((spans.answer, spans.length),)).endswith(start)
    assert (spans.prefix, spans.instruction, spans.answer) == (
        plain.spans[0].prefix,
        plain.spans[0].instruction,
        plain.spans[0].answer,
    )


def test_a_system_prompt_is_there_and_in_no_span(model: Any, requests: list[Request]) -> None:
    request = Request("What is this?", requests[0].images, system="Answer in one sentence, please.", prefix=PREFIX)
    if model.name in NO_SYSTEM:
        with pytest.raises(RequestError, match="request 0: system: expected none"):
            encode(model.processor, [request])
        return
    encoded = encode(model.processor, [request])
    ids, spans = unpadded(encoded, 0), encoded.spans[0]
    assert request.system in model.processor.tokenizer.decode(ids)
    assert text_of(model, ids, spans.prefix).strip() == PREFIX
    assert text_of(model, ids, spans.instruction).strip() == request.prompt


def test_special_tokens_in_any_text_are_refused_by_name(model: Any, requests: list[Request]) -> None:
    tokenizer, images = model.processor.tokenizer, requests[0].images
    tokens = {tokenizer.eos_token, model.processor.image_token}
    for token in tokens:
        for texts in ({"prompt": f"a {token} b"}, {"prompt": "a", "prefix": f"{token}x"}):
            with pytest.raises(RequestError, match="no special token of the model; got") as caught:
                encode(model.processor, [requests[0], Request(images=images, **texts)])
            assert caught.value.index == 1
            assert token in str(caught.value)


def test_half_a_character_is_refused_by_name(tiny: Callable[[str], Any], picture: Callable[..., Image.Image]) -> None:
    with pytest.raises(RequestError, match=r"request 1: prompt: expected Unicode text; got '\\ud83d'"):
        encode(tiny("llava").processor, [Request("a"), Request("b \ud83d", (picture(),))])


def test_what_looks_like_a_template_is_text(tiny: Callable[[str], Any], picture: Callable[..., Image.Image]) -> None:
    processor, prompt = tiny("qwen2_vl").processor, "{{ 7 * 6 }} {% if x %} {# note #} \ue0a0\ue0a1\ue0a2"
    encoded = encode(processor, [Request(prompt, (picture(),))])
    ((start, end),) = encoded.spans[0].instruction
    assert processor.tokenizer.decode(encoded.inputs["input_ids"][0, start:end]) == prompt


def test_a_special_token_that_two_texts_make_together_is_refused(tiny: Callable[[str], Any], picture: Any) -> None:
    # Only a prefix that ends in white space is joined as it is, so the seam itself must hold white space.
    processor = tiny("llava").processor
    request = Request("image>", (picture(),), prefix="<")
    encoded = encode(processor, [request])
    assert "< image>" in processor.tokenizer.decode(encoded.inputs["input_ids"][0])


def test_the_users_white_space_survives_or_is_trimmed_with_its_spans(model: Any, requests: list[Request]) -> None:
    request = Request("  What is this?  \n", requests[0].images, prefix=" \n" + PREFIX)
    encoded = encode(model.processor, [request])
    ids, spans = unpadded(encoded, 0), encoded.spans[0]
    assert text_of(model, ids, spans.prefix).strip() == PREFIX
    assert text_of(model, ids, spans.instruction).strip() == "What is this?"


def test_a_prompt_that_is_in_the_template_too_is_found_where_the_user_wrote_it(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    processor = tiny("qwen2_vl").processor
    encoded = encode(processor, [Request("user", (picture(),), prefix="system"), Request("assistant")])
    first, second = encoded.spans
    assert first.image[0][1] < first.prefix[0][0] < first.instruction[0][0]
    assert second.instruction[0][1] <= second.answer


def test_an_empty_prompt_has_an_empty_span(tiny: Callable[[str], Any], picture: Callable[..., Image.Image]) -> None:
    spans = encode(tiny("llava").processor, [Request("", (picture(),))]).spans[0]
    assert spans.instruction == spans.prefix == ()
    assert spans.answer < spans.length


def test_the_last_prompt_token_leads_to_the_answer(model: Any, requests: list[Request]) -> None:
    for spans in encode(model.processor, requests).spans:
        assert spans.rows("instruction+generated")[-1]


def test_a_picture_that_the_processor_refuses_names_its_request(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    picture().save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    sound, torn = Request("a", (picture(),)), Request("b", (Image.open(tmp_path / "torn.png"),))
    with pytest.raises(RequestError, match="Qwen2VLProcessor refuses it: OSError: ") as caught:
        encode(tiny("qwen2_vl").processor, [sound, torn, sound])
    assert caught.value.index == 1


def test_what_is_no_picture_is_refused(tiny: Callable[[str], Any], picture: Callable[..., Image.Image]) -> None:
    for image, message in (
        (OSError("gone"), "expected a PIL image; got OSError gone"),
        (Image.new("RGB", (0, 5)), "expected pixels, and sides of at most 200 to 1; got 0 x 5"),
        # Scaled to a shorter side of 336 it would take 6.8 GB.
        (Image.new("L", (1, 20000)), "sides of at most 200 to 1; got 1 x 20000"),
    ):
        with pytest.raises(RequestError, match=rf"request 1: images\[1\]: .*{message}"):
            encode(tiny("llava").processor, [Request("a"), Request("a", (picture(), image))])


def test_slow_tokenizers_and_bare_tokenizers_are_refused(tiny: Callable[[str], Any]) -> None:
    class Slow:
        is_fast = False

    class Holder:
        tokenizer = Slow()

    with pytest.raises(ValueError, match=r"expected a fast tokenizer.*; got Slow"):
        encode(Holder(), [Request("a")])
    with pytest.raises(ValueError, match="expected one with a tokenizer and an image processor; got Tokenizers"):
        encode(tiny("llava").processor.tokenizer, [Request("a")])
    with pytest.raises(ValueError, match="requests: expected at least one"):
        encode(tiny("llava").processor, [])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content[-1].text | upper }}", "changes the user's text"),
        ("{{ messages[0].content[-1].text * 2 }}", "renders the user's text once; got 2"),
        ("no user at all", "renders the user's text once; got 0"),
        ("{{ raise_exception('never') }}", "template fails: never"),
        ("{{ messages[0].content[-1].text }}", "to place 1; got 0 '<image>'"),
        ("{{ messages[0].content[-1].text }}<image>", "pictures before the user's text; got one after it"),
    ],
)
def test_templates_that_hide_the_users_text_are_refused(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], template: str, message: str
) -> None:
    processor = tiny("llava").processor
    own = processor.chat_template
    processor.chat_template = template
    try:
        with pytest.raises(RequestError, match=f"request 0: .*{message}"):
            encode(processor, [Request("What?", (picture(),))])
    finally:
        processor.chat_template = own


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role == 'user' %}<image>{{ m.content[-1].text }}{% endfor %}",
        "{% for m in messages %}{{ m.content if m.role == 'system' else '<image>' + m.content[-1].text }}{% endfor %}",
    ],
    ids=["drops it", "prints a list where it wants a string"],
)
def test_a_system_prompt_is_never_lost_or_garbled(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], template: str
) -> None:
    processor = tiny("llava").processor
    own, request = processor.chat_template, Request("What?", (picture(),), system="Be kind.")
    processor.chat_template = template
    try:
        if "if m.role" in template and "else" in template:
            text = processor.tokenizer.decode(encode(processor, [request]).inputs["input_ids"][0])
            assert "Be kind." in text
            assert "type" not in text
        else:
            with pytest.raises(RequestError, match="system: the model's chat template drops the system prompt"):
                encode(processor, [request])
    finally:
        processor.chat_template = own


def test_groups_part_only_what_can_not_share_a_batch(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    mixed = [Request("a"), Request("b", (picture(),)), Request("c")]
    assert groups(tiny("llava").processor, mixed) == [[0, 1, 2]]
    assert groups(tiny("llava").processor, []) == []
    processor = tiny("mllama").processor
    assert groups(processor, mixed) == [[1], [0, 2]]
    for group in groups(processor, mixed):
        assert len(encode(processor, [mixed[index] for index in group]).spans) == len(group)


def test_pictures_take_the_models_dtype(tiny: Callable[[str], Any], picture: Callable[..., Image.Image]) -> None:
    inputs = encode(tiny("llava").processor, [Request("a", (picture(),))], dtype=torch.bfloat16).inputs
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["input_ids"].dtype == torch.int64
