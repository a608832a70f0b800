"""Llama 3.2 Vision: pictures are no tokens of the text; two of its layers attend to them across."""

from __future__ import annotations

import torch

from bench.tiny_models.tiny_model import TEXT, TinyModel, token_ids
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize

_SIZE, _PATCH, _TILES, _WIDTH = 32, 8, 4, 48
_CROSS = [1, 4]
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def mllama() -> TinyModel:
    """Llama 3.2 Vision."""
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
    )

    tokenizer = build_tokenizer(
        _TEMPLATE,
        begin="<|begin_of_text|>",
        end="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        special=["<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>"],
        bos=True,
    )
    images = MllamaImageProcessor(size={"height": _SIZE, "width": _SIZE}, max_image_tiles=_TILES)
    processor = MllamaProcessor(images, tokenizer, chat_template=_TEMPLATE)
    text = {**TEXT, **token_ids(tokenizer), "cross_attention_layers": _CROSS, "rope_parameters": _ROPE}
    config = MllamaConfig(
        vision_config={
            "image_size": _SIZE,
            "patch_size": _PATCH,
            "max_num_tiles": _TILES,
            "hidden_size": _WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 2 * _WIDTH,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = randomize(MllamaForConditionalGeneration(config))
    _open_gates(model)
    return TinyModel("mllama", model, processor)


_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@torch.no_grad()
def _open_gates(model: torch.nn.Module) -> None:
    """Let the pictures be heard: the gates of the cross-attention start at tanh(0)."""
    for name, parameter in model.named_parameters():
        if "gate" in name.rsplit(".", 1)[-1] and parameter.ndim == 1:
            parameter.add_(1.0)
