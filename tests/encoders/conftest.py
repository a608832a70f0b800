"""Tiny models of the real architectures, with random weights, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

# Odd on purpose: 3 blocks (so that the last but one is not the first), 5 x 5 patches, a joint width unlike the tower's.
SIZE, PATCH, WIDTH, HEADS, DEPTH, JOINT = 40, 8, 48, 4, 3, 20


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    def make(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
        # An opaque picture first: a palette cannot be made of RGBA by conversion.
        return Image.fromarray(pixels) if mode == "RGBA" else Image.fromarray(pixels[..., :3]).convert(mode)

    return make


@pytest.fixture
def scrambled() -> Callable[[Any], Any]:
    """Give every weight, norms and biases included, a random value: initial zeros and ones hide swapped parts."""

    def scramble(model: Any) -> Any:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                center = 1.0 if "norm" in name or "ln_" in name else 0.0
                scale = 0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
                parameter.copy_(center * (parameter.ndim < 2) + scale * torch.randn_like(parameter))
        return model.eval()

    return scramble


@pytest.fixture
def tiny_open_clip(scrambled: Callable[[Any], Any]) -> Callable[..., Any]:
    open_clip = pytest.importorskip("open_clip")

    def make(**vision: Any) -> Any:
        quick_gelu = vision.pop("quick_gelu", True)
        vision_cfg = {
            "image_size": SIZE,
            "patch_size": PATCH,
            "width": WIDTH,
            "layers": DEPTH,
            "head_width": 12,
        } | vision
        text_cfg = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
        return scrambled(
            open_clip.create_model(
                "ViT-B-32",
                pretrained=None,
                load_weights=False,
                embed_dim=JOINT,
                quick_gelu=quick_gelu,
                vision_cfg=vision_cfg,
                text_cfg=text_cfg,
            )
        )

    return make


@pytest.fixture
def tiny_siglip_of_timm(tiny_open_clip: Callable[..., Any], scrambled: Callable[[Any], Any]) -> Any:
    """open_clip's SigLIP: a timm tower with an attention pool and no class token."""
    timm = pytest.importorskip("timm")
    from open_clip.timm_model import TimmModel

    visual = TimmModel("test_vit", embed_dim=WIDTH, image_size=SIZE, pool="", proj="")
    visual.trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    visual.head = torch.nn.Sequential()
    model = tiny_open_clip()
    visual.preprocess_cfg = model.visual.preprocess_cfg
    model.visual = visual
    return scrambled(model)


@pytest.fixture
def tiny_transformers(scrambled: Callable[[Any], Any]) -> Callable[[str], Any]:
    transformers = pytest.importorskip("transformers")

    def make(kind: str) -> Any:
        vision = {"image_size": SIZE, "patch_size": PATCH, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH}
        vision |= {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
        text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 4, "max_position_embeddings": 12, "eos_token_id": 2, "pad_token_id": 1}
        if kind == "clip":
            config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT)
            return scrambled(transformers.CLIPModel(config))
        config = transformers.SiglipConfig(text_config=text | {"projection_size": WIDTH}, vision_config=vision)
        return scrambled(transformers.SiglipModel(config))

    return make


@pytest.fixture
def tokenizer() -> Any:
    """A real fast tokenizer over a dozen words, so that no vocabulary has to be downloaded."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<unk>", "<pad>", "<end>", "a", "photo", "of", "gun", "knife", "dog", "cat", "2"]
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.post_processor = tokenizers.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=12
    )
