"""Mistral 3: a Pixtral tower for pictures of any shape, with tokens that end each row of a picture."""

from __future__ import annotations

from bench.tiny_models.tiny_model import TEXT, TinyModel, token_ids
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize

_SIZE, _PATCH, _MERGE = 64, 8, 2
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' }}"
    "{{ message.content if message.content is string else message.content[0].text }}"
    "{{ '[/SYSTEM_PROMPT]' }}"
    "{% elif message.role == 'user' %}{{ '[INST]' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{{ '[/INST]' }}"
    "{% else %}{{ message.content[0].text + eos_token }}{% endif %}{% endfor %}"
)


def mistral3() -> TinyModel:
    """Mistral Small 3.1."""
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        MistralConfig,
        PixtralImageProcessor,
        PixtralProcessor,
        PixtralVisionConfig,
    )

    tokenizer = build_tokenizer(
        _TEMPLATE,
        begin="<s>",
        end="</s>",
        pad="<pad>",
        special=["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        bos=True,
    )
    images = PixtralImageProcessor(size={"longest_edge": _SIZE}, patch_size=_PATCH)
    processor = PixtralProcessor(
        images, tokenizer, patch_size=_PATCH, spatial_merge_size=_MERGE, chat_template=_TEMPLATE
    )
    vision = PixtralVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=_SIZE,
        patch_size=_PATCH,
    )
    config = Mistral3Config(
        vision_config=vision,
        text_config=MistralConfig(**TEXT, **token_ids(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=_MERGE,
        tie_word_embeddings=False,
    )
    return TinyModel("mistral3", randomize(Mistral3ForConditionalGeneration(config)), processor)
