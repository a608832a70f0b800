"""The Qwen vision-language models: a tower of their own, pictures of any shape, positions in three dimensions."""

from __future__ import annotations

from typing import Any

from bench.tiny_models.tiny_model import TEXT, TinyModel, token_ids
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize

_PATCH, _MERGE = 8, 2
_SIDE = _PATCH * _MERGE
# Between 4 and 12 tokens a picture.
_PIXELS = {"shortest_edge": 4 * _SIDE**2, "longest_edge": 12 * _SIDE**2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_VISION = {"depth": 2, "num_heads": 4, "patch_size": _PATCH, "spatial_merge_size": _MERGE}
_OWN_WIDTH = {"hidden_size": 48, "intermediate_size": 96, "out_hidden_size": TEXT["hidden_size"]}
_NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen2_vl() -> TinyModel:
    """Qwen2-VL."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = _tokenizer()
    processor = Qwen2VLProcessor(_images(), tokenizer, _videos(), chat_template=_TEMPLATE)
    vision = {**_VISION, "embed_dim": 48, "hidden_size": TEXT["hidden_size"], "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=_text(tokenizer), vision_config=vision, **_vision_tokens(tokenizer))
    return TinyModel("qwen2_vl", randomize(Qwen2VLForConditionalGeneration(config)), processor)


def qwen2_5_vl() -> TinyModel:
    """Qwen2.5-VL: attention within windows in the tower's first block."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = _tokenizer()
    processor = Qwen2_5_VLProcessor(_images(), tokenizer, _videos(), chat_template=_TEMPLATE)
    vision = {
        **_VISION,
        **_OWN_WIDTH,
        "window_size": 2 * _SIDE,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=_text(tokenizer), vision_config=vision, **_vision_tokens(tokenizer))
    return TinyModel("qwen2_5_vl", randomize(Qwen2_5_VLForConditionalGeneration(config)), processor)


def qwen3_vl() -> TinyModel:
    """Qwen3-VL: features of several depths of the tower enter several text layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = _tokenizer()
    videos = Qwen3VLVideoProcessor(patch_size=_PATCH, merge_size=_MERGE)
    processor = Qwen3VLProcessor(_images(), tokenizer, videos, chat_template=_TEMPLATE)
    vision = {
        **_VISION,
        **_OWN_WIDTH,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(text_config=_text(tokenizer), vision_config=vision, **_vision_tokens(tokenizer))
    return TinyModel("qwen3_vl", randomize(Qwen3VLForConditionalGeneration(config)), processor)


def _tokenizer() -> Any:
    return build_tokenizer(
        _TEMPLATE, begin=None, end="<|im_end|>", pad="<|endoftext|>", special=["<|im_start|>"], named=_NAMED
    )


def _images() -> Any:
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(size=_PIXELS, patch_size=_PATCH, merge_size=_MERGE)


def _videos() -> Any:
    from transformers import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor(patch_size=_PATCH, merge_size=_MERGE)


def _text(tokenizer: Any) -> dict[str, Any]:
    return {**TEXT, **token_ids(tokenizer), "rope_parameters": dict(_ROPE)}


def _vision_tokens(tokenizer: Any) -> dict[str, int]:
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    return {f"{name}_id": tokenizer.convert_tokens_to_ids(_NAMED[name]) for name in names}
