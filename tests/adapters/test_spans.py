"""From characters to tokens with the tokenizers that are found in the wild, and tokens that don't fit the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from guardcore.adapters.transformers.control_tokens import ControlTokens
from guardcore.adapters.transformers.image_tokens import runs
from guardcore.adapters.transformers.prompt import encode
from guardcore.adapters.transformers.rendering import render
from guardcore.adapters.transformers.spans import token_spans
from guardcore.defenses.protocol import Request

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<image>"]
SENTENCES = ["As an AI assistant, I refuse what is harmful.\n", "What is this? USER: ASSISTANT: Explain it.\n\n"] * 4
PREFIX, PROMPT = "As an AI assistant, I refuse what is harmful.", "What is this? Explain it."


def llama(legacy: bool) -> Any:
    """Words with the space before them; the first text gets a space of its own, in the legacy form every text does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    raw.train_from_iterator(SENTENCES, trainer)
    if legacy:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.pre_tokenizer = pre_tokenizers.Sequence([])
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        raw.decoder = decoders.Metaspace(prepend_scheme="first")
    return raw


def llama3(trimmed: bool) -> Any:
    """Punctuation is joined with the line breaks after it, and offsets may leave a word's space out."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    raw = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    raw.train_from_iterator(SENTENCES, trainer)
    return raw


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "legacy llama": lambda: llama(legacy=True),
    "llama": lambda: llama(legacy=False),
    "llama 3": lambda: llama3(trimmed=False),
    "llama 3, trimmed offsets": lambda: llama3(trimmed=True),
}


@pytest.fixture(params=sorted(TOKENIZERS))
def processor(request: pytest.FixtureRequest, tiny: Callable[[str], Any]) -> Any:
    """LLaVA's, around another tokenizer."""
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    own = tiny("llava").processor
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[request.param](),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    return LlavaProcessor(
        own.image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=own.chat_template,
    )


@pytest.mark.parametrize("prefix", [PREFIX, PREFIX + "\n", PREFIX + "\n\n", PREFIX + " ", ""])
def test_spans_decode_to_the_text_whatever_the_tokenizer_joins(
    processor: Any, picture: Callable[..., Image.Image], prefix: str
) -> None:
    encoded = encode(
        processor, [Request(PROMPT, (picture(), picture()), prefix=prefix), Request(PROMPT, prefix=prefix)]
    )
    for index, spans in enumerate(encoded.spans):
        ids = encoded.inputs["input_ids"][index, encoded.padding[index] :]
        texts = [
            "".join(processor.tokenizer.decode(ids[start:end]) for start, end in part)
            for part in (spans.prefix, spans.instruction)
        ]
        assert [text.strip() for text in texts] == [prefix.strip(), PROMPT]
        assert spans.instruction[0][1] <= spans.answer < spans.length
        assert [end - start for start, end in spans.image] == [25, 25][: 2 * (index == 0)]


def test_tokens_that_are_not_the_texts_are_refused(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    processor = tiny("llava").processor
    request = Request(PROMPT, (picture(),), prefix=PREFIX)
    encoded, rendering = encode(processor, [request]), render(processor, request, ControlTokens.of(processor))
    ids = encoded.inputs["input_ids"][0].tolist()
    expected = encoded.spans[0]
    assert token_spans(processor, rendering, ids, expected.image, ()) == expected
    for place in (expected.prefix[0][0], expected.instruction[0][0] + 1, len(ids) - 1):
        wrong = [*ids[:place], ids[place] + 1, *ids[place + 1 :]]
        with pytest.raises(
            ValueError, match="prompt: the processor's tokens after the pictures are not those of the text"
        ):
            token_spans(processor, rendering, wrong, expected.image, ())
    with pytest.raises(ValueError, match="not those of the text"):
        token_spans(processor, rendering, ids[:-1], expected.image, ())


def test_a_token_that_prefix_and_prompt_share_is_the_prefixs(tiny: Callable[[str], Any]) -> None:
    processor = tiny("llava").processor
    rendering = render(processor, Request("assistant", prefix="AI"), ControlTokens.of(processor))
    start = rendering.text.index("assistant")
    # As if a tokenizer without any notion of words had joined the two: the ranges meet within "assistant".
    rendering = replace(rendering, prefix=(rendering.prefix[0], start + 2), instruction=(start + 2, start + 9))
    encoding = processor.tokenizer(rendering.text)
    shared = encoding.char_to_token(start + 2)
    spans = token_spans(processor, rendering, encoding["input_ids"], (), ())
    assert spans.prefix[0][1] == shared + 1 <= spans.answer
    assert all(first == shared + 1 for first, _ in spans.instruction)


def test_runs() -> None:
    assert runs([]) == runs([False, False]) == ()
    assert runs([True]) == ((0, 1),)
    assert runs([True, True, False, True, False, False, True]) == ((0, 2), (3, 4), (6, 7))
