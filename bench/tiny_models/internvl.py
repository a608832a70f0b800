"""InternVL: a tower of its own, tokens shuffled together, up to four tiles and a thumbnail a picture."""

from __future__ import annotations

from bench.tiny_models.tiny_model import TEXT, TinyModel, token_ids
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize

_SIZE, _PATCH = 48, 8
_TOKENS = (_SIZE // _PATCH // 2) ** 2
_NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{{ '<IMG_CONTEXT>\n' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def internvl() -> TinyModel:
    """InternVL 3."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    tokenizer = build_tokenizer(
        _TEMPLATE, begin=None, end="<|im_end|>", pad="<|endoftext|>", special=["<|im_start|>"], named=_NAMED
    )
    side = {"height": _SIZE, "width": _SIZE}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=side, crop_to_patches=True, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=side),
        image_seq_length=_TOKENS,
        chat_template=_TEMPLATE,
    )
    config = InternVLConfig(
        vision_config={
            "image_size": [_SIZE, _SIZE],
            "patch_size": [_PATCH, _PATCH],
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        text_config=Qwen2Config(**TEXT, **token_ids(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=_TOKENS,
        tie_word_embeddings=False,
    )
    return TinyModel("internvl", randomize(InternVLForConditionalGeneration(config)), processor)
