"""The tokens by which a model's own software speaks to it, and which no text of a request may write.

A prompt that says "<image>" would make a picture out of words, one that says "<|im_end|>" would end the user's turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_PLACEHOLDERS = ("image_token", "video_token", "audio_token", "boi_token", "eoi_token", "fake_image_token")


@dataclass(frozen=True)
class ControlTokens:
    """Of one processor.

    Attributes:
        strings: what the processor or its tokenizer reads as control tokens.
        ids: the same as tokens, but for the one that stands for what a vocabulary lacks: it is no attack.
        tokenizer: of the processor.
    """

    strings: frozenset[str]
    ids: frozenset[int]
    tokenizer: Any

    @classmethod
    def of(cls, processor: Any) -> ControlTokens:
        """Ask a processor and its fast tokenizer; some vocabularies have thousands."""
        tokenizer = processor.tokenizer
        added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = [getattr(holder, name, None) for holder in (processor, tokenizer) for name in _PLACEHOLDERS]
        strings = {*tokenizer.all_special_tokens, *added.values(), *filter(None, named)}
        ids = {*tokenizer.all_special_ids, *added} - {tokenizer.unk_token_id}
        return cls(frozenset(map(str, strings)), frozenset(ids), tokenizer)

    def refuse(self, name: str, text: str) -> None:
        """Raise ValueError if a text holds a control token, written out or made by the tokenizer, or is no Unicode."""
        if not text:
            return
        _check_unicode(name, text)
        written = sorted(token for token in self.strings if token in text)
        # Normalization makes tokens out of look-alikes.
        made = self.ids.intersection(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if written or made:
            found = written[0] if written else self.tokenizer.convert_ids_to_tokens(min(made))
            raise ValueError(f"{name}: expected no special token of the model; got {found!r}")


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: expected Unicode text; got {text[error.start]!r}, which is half a character"
        ) from error
