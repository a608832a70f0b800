"""The CLIP or SigLIP that a tiny model's tower would have come from: the same vision weights, and a text side."""

from __future__ import annotations

from typing import Any

import torch

from bench.tiny_models.tiny_model import TinyModel
from bench.tiny_models.tokenizer import build_tokenizer
from bench.tiny_models.weights import randomize
from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.transformers import TransformersEncoder
from guardcore.encoders.vlm import find_tower

_JOINT, _LONGEST = 20, 24
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


def tower_encoder(tiny: TinyModel, seed: int = 0, features: Any = "tokens") -> TransformersEncoder:
    """An encoder whose vision tower is a copy of the tower of a tiny LLaVA, PaliGemma, Gemma 3 or their like.

    Raises:
        ValueError: the model has no such tower.
    """
    tower: Any = find_tower(tiny.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomize(_with_text_side(tower.config, _tokenizer()))
    held = tower.state_dict()
    own = {name: held.get(name, tensor) for name, tensor in model.vision_model.state_dict().items()}
    model.vision_model.load_state_dict(own)
    return TransformersEncoder(model, _tokenizer(), _preprocessing(tiny), f"encoder of {tiny.name}", features)


def _tokenizer() -> Any:
    return build_tokenizer(None, begin="<s>", end="</s>", pad="<pad>", bos=True, eos=True)


def _with_text_side(vision: Any, tokenizer: Any) -> Any:
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": _LONGEST,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    settings = vision.to_dict()
    if vision.model_type == "clip_vision_model":
        return CLIPModel(CLIPConfig(text_config=text, vision_config=settings, projection_dim=_JOINT))
    text["projection_size"] = settings["hidden_size"]
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**settings, "vision_use_head": True}))


def _preprocessing(tiny: TinyModel) -> Preprocessing:
    images, vision = tiny.processor.image_processor, tiny.model.config.vision_config
    return Preprocessing(
        vision.image_size,
        vision.patch_size,
        tuple(images.image_mean),
        tuple(images.image_std),
        _RESAMPLING[int(images.resample)],  # type: ignore[arg-type]
    )
