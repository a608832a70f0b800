"""Gemma 3 and PaliGemma: SigLIP towers, and picture tokens that see each other whatever their order."""

from __future__ import annotations

from bench.tiny_models.tiny_model import TEXT, TinyModel, token_ids
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize

_SIZE, _PATCH = 48, 8
_VISION = {
    "image_size": _SIZE,
    "patch_size": _PATCH,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vision_use_head": False,
}
_POOLED = 9
# Gemma multiplies its embeddings by the root of the width: at this size they come out at 1.
_EMBEDDING = TEXT["hidden_size"] ** -0.5
_WINDOW = 16
_TEMPLATE = (
    "{{ bos_token }}"
    "{% set first = namespace(system='') %}"
    "{% if messages[0].role == 'system' %}"
    "{% set first.system = (messages[0].content if messages[0].content is string else messages[0].content[0].text)"
    " + '\n\n' %}{% endif %}"
    "{% for message in messages if message.role != 'system' %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{% if loop.first %}{{ first.system }}{% endif %}"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{% for part in message.content %}"
    "{{ '<start_of_image>' if part.type == 'image' else part.text | trim }}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma3() -> TinyModel:
    """Gemma 3: two layers of three see a sliding window of 16 tokens."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    tokenizer = build_tokenizer(
        _TEMPLATE,
        begin="<bos>",
        end="<eos>",
        pad="<pad>",
        special=["<start_of_turn>", "<end_of_turn>"],
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        bos=True,
    )
    images = Gemma3ImageProcessor(size={"height": _SIZE, "width": _SIZE})
    processor = Gemma3Processor(images, tokenizer, image_seq_length=_POOLED, chat_template=_TEMPLATE)
    text = Gemma3TextConfig(
        **TEXT,
        **token_ids(tokenizer),
        query_pre_attn_scalar=TEXT["head_dim"],
        sliding_window=_WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        tie_word_embeddings=False,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**_VISION),
        mm_tokens_per_image=_POOLED,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    return TinyModel("gemma3", randomize(Gemma3ForConditionalGeneration(config), _EMBEDDING), processor)


def paligemma() -> TinyModel:
    """PaliGemma: no chat template; the whole prompt sees itself, pictures and text alike."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    tokenizer = build_tokenizer(None, begin="<bos>", end="<eos>", pad="<pad>", named={"image_token": "<image>"})
    count = (_SIZE // _PATCH) ** 2
    images = SiglipImageProcessor(size={"height": _SIZE, "width": _SIZE}, image_seq_length=count)
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        text_config=GemmaConfig(**{**TEXT, **token_ids(tokenizer), "num_key_value_heads": 1}),
        vision_config=SiglipVisionConfig(**_VISION, projection_dim=TEXT["hidden_size"]),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
    )
    return TinyModel("paligemma", randomize(PaliGemmaForConditionalGeneration(config), _EMBEDDING), processor)
