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


def llava(seed: int) -> TinyModel:
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
    return TinyModel("llava", randomize(LlavaForConditionalGeneration(config), seed), processor)


def _vicuna_tokenizer() -> Any:
    return build_tokenizer(
        _VICUNA, begin="<s>", end="</s>", pad="<pad>", named={"image_token": "<image>"}, special=["<unk>"], bos=True
    )
