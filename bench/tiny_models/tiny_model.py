"""What a builder makes, and the sizes that the families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Six text layers: the default middle band of an attention calibration holds one of them. Grouped queries: 2 heads a
# key head. A head width of 16.
TEXT: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "attention_dropout": 0.0,
}


@dataclass(frozen=True)
class TinyModel:
    """A random-weight vision-language model and its processor.

    Attributes:
        name: of the family.
        model: a `...ForConditionalGeneration` of transformers, float32 on the CPU, in evaluation mode.
        processor: of the family's class, with a tokenizer and an image processor of its own.
    """

    name: str
    model: Any
    processor: Any

    def save(self, path: Any) -> None:
        """Write both, for `AutoModelForImageTextToText` and `AutoProcessor` to read."""
        self.model.save_pretrained(path)
        self.processor.save_pretrained(path)


def token_ids(tokenizer: Any) -> dict[str, Any]:
    """Vocabulary size and the ids by role, as a text configuration takes them."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
