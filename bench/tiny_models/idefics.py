"""Idefics3 and SmolVLM: a SigLIP-like tower whose tokens are shuffled together; pictures become rows of tiles."""

from __future__ import annotations

from typing import Any

from bench.tiny_models.tiny_model import TEXT, TinyModel, token_ids
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize

_SIZE, _PATCH = 48, 8
_VISION = {
    "image_size": _SIZE,
    "patch_size": _PATCH,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_NAMED = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}
_PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{{ ':' if message.content[0].type == 'image' else ': ' }}"
    "{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def idefics3() -> TinyModel:
    """Idefics3: 9 tokens a tile."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    tokenizer = _tokenizer()
    images = Idefics3ImageProcessor(size={"longest_edge": 2 * _SIZE}, max_image_size={"longest_edge": _SIZE})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=_tokens(2), chat_template=_TEMPLATE)
    config = Idefics3Config(
        vision_config=dict(_VISION),
        text_config=LlamaConfig(**TEXT, **token_ids(tokenizer)),
        **_settings(tokenizer, 2),
    )
    return TinyModel("idefics3", randomize(Idefics3ForConditionalGeneration(config)), processor)


def smolvlm() -> TinyModel:
    """SmolVLM: 4 tokens a tile. Its processor needs the package num2words."""
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = _tokenizer()
    limits = {"size": {"longest_edge": 2 * _SIZE}, "max_image_size": {"longest_edge": _SIZE}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**limits),
        tokenizer,
        SmolVLMVideoProcessor(**limits),
        image_seq_len=_tokens(3),
        chat_template=_TEMPLATE,
    )
    config = SmolVLMConfig(
        vision_config=dict(_VISION),
        text_config=LlamaConfig(**TEXT, **token_ids(tokenizer)),
        **_settings(tokenizer, 3),
    )
    return TinyModel("smolvlm", randomize(SmolVLMForConditionalGeneration(config)), processor)


def _tokenizer() -> Any:
    return build_tokenizer(
        _TEMPLATE, begin="<|im_start|>", end="<end_of_utterance>", pad="<|im_end|>", special=_PLACES, named=_NAMED
    )


def _tokens(shuffle: int) -> int:
    return (_SIZE // _PATCH // shuffle) ** 2


def _settings(tokenizer: Any, shuffle: int) -> dict[str, Any]:
    return {
        "scale_factor": shuffle,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
    }
