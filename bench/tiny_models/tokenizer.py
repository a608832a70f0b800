"""Fast tokenizers that are built where they are needed: byte-level BPE over a few sentences, and a family's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Enough for words of several tokens beside words of one, and for spaces and punctuation that join what they touch.
_SENTENCES = (
    "As an AI assistant, I answer helpfully and I refuse what is harmful, illegal or unsafe.",
    "What is in this picture? Describe the image in one sentence, please.",
    "The person in the photo holds a knife; the dog next to the tree is harmless.",
    "How do I make the thing that is shown in the image?\nFirst look at it, then explain step by step.",
    "USER: what is this? ASSISTANT: This is a small picture of a house and a garden.",
    "You are a helpful assistant. Answer the question about the two pictures.",
)
_MERGES = 160


def build_tokenizer(
    template: str | None,
    *,
    begin: str | None,
    end: str,
    pad: str,
    special: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
    bos: bool = False,
    eos: bool = False,
) -> Any:
    """A `PreTrainedTokenizerFast` of transformers whose special tokens are a family's.

    Args:
        template: chat template (Jinja), or None for families without one.
        begin, end, pad: special tokens that every tokenizer of transformers knows by role.
        special: more of them.
        named: more of them that the family's processor reads as attributes, such as `image_token`.
        bos: whether `begin` is put before every text.
        eos: whether `end` is put after it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    named = dict(named or {})
    known = [token for token in dict.fromkeys([begin, end, pad, *special, *named.values()]) if token]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    size = len(known) + len(letters) + _MERGES
    raw.train_from_iterator(
        _SENTENCES,
        trainers.BpeTrainer(vocab_size=size, special_tokens=known, initial_alphabet=letters, show_progress=False),
    )
    around = ([begin] if bos and begin else []), ([end] if eos else [])
    if any(around):
        raw.post_processor = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[1], *(f"{token}:1" for token in around[0]), "$B:1"],
            special_tokens=[(token, raw.token_to_id(token)) for token in (*around[0], *around[1])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        extra_special_tokens=named or list(special),
        chat_template=template,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
