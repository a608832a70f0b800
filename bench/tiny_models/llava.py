"""LLaVA and its successors: a CLIP or SigLIP tower, a projector, a language model."""

from __future__ import annotations

from typing import Any

from bench.tiny_models.tiny_model import TEXT, TinyModel, token_ids
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize

_SIZE, _PATCH = 40, 8
_VISION = {
    "image_size": _SIZE,
    "patch_size": _PATCH,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_TILES = [[_SIZE, _SIZE], [_SIZE, 2 * _SIZE], [2 * _SIZE, _SIZE], [2 * _SIZE, 2 * _SIZE]]
# Pictures first, whatever their place among the parts, as LLaVA was trained.
_VICUNA = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content[0].text + ' ' }}{% else %}"
    "{{ message.role.upper() + ': ' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + ' ' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ '\n' + part.text }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def llava() -> TinyModel:
    """LLaVA 1.5: CLIP, one tile a picture, 25 tokens, center crop."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _vicuna_tokenizer()
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE}),
        tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_VICUNA,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**TEXT, **token_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(_SIZE // _PATCH) ** 2,
    )
    return TinyModel("llava", randomize(LlavaForConditionalGeneration(config)), processor)


def llava_next() -> TinyModel:
    """LLaVA-NeXT: as LLaVA, and up to four more tiles of an enlarged picture."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = _vicuna_tokenizer()
    images = LlavaNextImageProcessor(
        size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE}, image_grid_pinpoints=_TILES[1:]
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_VICUNA,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**TEXT, **token_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_TILES[1:],
        image_seq_length=(_SIZE // _PATCH) ** 2,
    )
    return TinyModel("llava_next", randomize(LlavaNextForConditionalGeneration(config)), processor)


def llava_onevision() -> TinyModel:
    """LLaVA-OneVision: SigLIP without its head, tiles for a single picture, one tile each for several."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = build_tokenizer(
        _CHATML,
        begin=None,
        end="<|im_end|>",
        pad="<|endoftext|>",
        special=["<|im_start|>"],
        named={"image_token": "<image>", "video_token": "<video>"},
    )
    side = {"height": _SIZE, "width": _SIZE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=_TILES),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=(_SIZE // _PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_CHATML,
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, **token_ids(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_TILES,
        vision_feature_select_strategy="full",
    )
    return TinyModel("llava_onevision", randomize(LlavaOnevisionForConditionalGeneration(config)), processor)


def _vicuna_tokenizer() -> Any:
    return build_tokenizer(
        _VICUNA, begin="<s>", end="</s>", pad="<pad>", special=["<unk>"], named={"image_token": "<image>"}, bos=True
    )
