"""Where the parts of a rendered request are among the tokens that its processor made.

A processor expands each picture's placeholder into many tokens, so that characters and tokens part. Pictures come
before the user's text: from there on the tokens must be those of the unexpanded text, and are compared one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardcore.adapters.transformers.rendering import Rendering
from guardcore.calibration.spans import Range, TokenSpans

# PaliGemma's processor ends every prompt with a newline of its own.
_ENDINGS = ("", "\n")


def token_spans(
    processor: Any, rendering: Rendering, ids: Sequence[int], image: Sequence[Range], unsafe: Sequence[Range]
) -> TokenSpans:
    """Spans of one request.

    Args:
        processor: has a fast tokenizer.
        rendering: the request as text.
        ids: the prompt's tokens as the processor made them, without padding.
        image: ranges of the tokens that stand for pictures.
        unsafe: those among them that look at unsafe regions.

    Raises:
        ValueError: the tokens are not those of the text.
    """
    offsets, shift = _aligned(processor, rendering, ids)

    def tokens(start: int, end: int) -> tuple[Range, ...]:
        inside = [index for index, (low, high) in enumerate(offsets) if max(low, start) < min(high, end)]
        return ((inside[0] + shift, inside[-1] + 1 + shift),) if inside else ()

    prefix = tokens(*rendering.prefix)
    instruction = _after(prefix, tokens(*rendering.instruction))
    turn = max((end for _, end in (*prefix, *instruction)), default=0)
    header = next((index + shift for index, (_, high) in enumerate(offsets) if high > rendering.answer), len(ids))
    return TokenSpans(
        length=len(ids),
        answer=max(turn, header),
        prefix=prefix,
        instruction=instruction,
        image=tuple(image),
        unsafe=tuple(unsafe),
    )


def _after(prefix: tuple[Range, ...], instruction: tuple[Range, ...]) -> tuple[Range, ...]:
    """The instruction without a token that is half the prefix's: it can be in one class only."""
    start = max((end for _, end in prefix), default=0)
    return tuple((max(low, start), high) for low, high in instruction if high > start)


def _aligned(processor: Any, rendering: Rendering, ids: Sequence[int]) -> tuple[list[Range], int]:
    """Character offsets of the unexpanded text's tokens, and how far these are from the processor's tokens."""
    start = rendering.user[0]
    token = getattr(processor, "image_token", None)
    if token is not None and token in rendering.text[start:]:
        raise ValueError("images: expected a chat template that puts pictures before the user's text; got one after it")
    for ending in _ENDINGS:
        encoding = processor.tokenizer(rendering.text + ending, add_special_tokens=False, return_offsets_mapping=True)
        plain, offsets = encoding["input_ids"], [(int(low), int(high)) for low, high in encoding["offset_mapping"]]
        first = next((index for index, (_, high) in enumerate(offsets) if high > start), len(offsets))
        tail = plain[first:]
        if list(ids[len(ids) - len(tail) :]) == tail:
            return offsets, len(ids) - len(plain)
    raise ValueError(
        "prompt: the processor's tokens after the pictures are not those of the text; the tokenizer joins the first "
        "of them with what the processor puts after a picture, or the processor changes the text"
    )
