"""A LLaVA of LLaVA-1.5's geometry at a width that this machine generates with in seconds; random weights.

What is as in LLaVA-1.5-7B: pictures of 336 pixels and 577 positions in the tower, 576 picture tokens, heads of width
128, the proportions of the layers, the tower's share of the weights (4 %). What is smaller: 16 layers of width 768 in
place of 32 of 4096, 6 blocks of width 256 in place of 24 of 1024, a vocabulary of 4096. Costs that do not shrink with
the width, such as resizing pictures and transport, weigh some sixty times as much here as they would there.

The tokenizer learns the sentences of this benchmark, so that their words are one token each, as common words are to
Llama's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bench.tiny_models.weights import randomize

SIZE, PATCH = 336, 14
PROMPT = "What is happening in this picture? Describe what you see in one sentence."
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_VISION: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
}
_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2064,
    "num_hidden_layers": 16,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}
_VOCABULARY = 4096
_TEMPLATE = (
    "{% for message in messages %}{{ message.role.upper() + ': ' }}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class PipelineModel:
    """The model twice, on the same weights, its processor, and an encoder whose tower is the model's.

    model: to be attached to; plain: never touched by guardcore. clip: `CLIPModel` with the tower's weights; tokenizer:
    of its texts.
    """

    model: Any
    plain: Any
    processor: Any
    clip: Any
    tokenizer: Any

    def to(self, dtype: torch.dtype) -> PipelineModel:
        """All weights in another precision, as a checkpoint has them: rotary frequencies stay as they are."""
        for parameter in (*self.clip.parameters(), *self.model.parameters()):
            parameter.data = parameter.data.to(dtype)
        self.plain.load_state_dict(self.model.state_dict(), assign=True)
        return self

    def encoder(self) -> Any:
        """The tower with its text side, as guardcore reads it."""
        from guardcore.encoders.preprocessing import Preprocessing
        from guardcore.encoders.transformers import TransformersEncoder

        preprocessing = Preprocessing(SIZE, PATCH, _MEAN, _STD)
        return TransformersEncoder(self.clip, self.tokenizer, preprocessing, "bench: random CLIP ViT-L/14-336")


def build(sentences: list[str], seed: int = 0) -> PipelineModel:
    """Build it in seconds; `sentences` are what the tokenizer learns."""
    from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer, text_tokenizer = trained_tokenizer(sentences, "<s> $A"), trained_tokenizer(sentences, "<s> $A </s>")
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = clip_model(text_tokenizer)
        model = randomize(LlavaForConditionalGeneration(llava_config(tokenizer)))
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict(), assign=True)
    with torch.device("meta"):
        plain = LlavaForConditionalGeneration(llava_config(tokenizer))
    plain.load_state_dict(model.state_dict(), assign=True)
    share_buffers(plain, model)
    return PipelineModel(model, plain.eval(), processor, clip, text_tokenizer)


def clip_model(tokenizer: Any) -> Any:
    """The tower and a small text side."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return randomize(CLIPModel(CLIPConfig(text_config=text, vision_config=dict(_VISION), projection_dim=256)))


def llava_config(tokenizer: Any) -> Any:
    """The configuration of the whole model."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**_TEXT, **ids, vocab_size=_VOCABULARY),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIZE // PATCH) ** 2,
    )


def share_buffers(own: Any, other: Any) -> None:
    """Give a model built without memory the tensors of another that are no part of its state, such as frequencies."""
    theirs = dict(other.named_buffers())
    for name, buffer in list(own.named_buffers()):
        if buffer.is_meta:
            *path, leaf = name.split(".")
            module = own.get_submodule(".".join(path))
            module.register_buffer(leaf, theirs[name], persistent=False)


def trained_tokenizer(sentences: list[str], form: str) -> Any:
    """Byte-level pairs merged until every word of the sentences is a token; `form` is what a text $A becomes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<image>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    raw.train_from_iterator([*sentences, "USER: ASSISTANT: " * 2], trainer)
    ids = [(token, raw.token_to_id(token)) for token in special[:2]]
    raw.post_processor = processors.TemplateProcessing(single=form, pair=f"{form} $B", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )
