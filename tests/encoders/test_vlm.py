"""A vision-language model's own tower against the encoder whose weights it shares."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore.encoders import Encoder
from guardcore.encoders.open_clip import OpenClipEncoder
from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.tower import read_tower, tower_hash
from guardcore.encoders.transformers import TransformersEncoder
from guardcore.encoders.vlm import TowerEncoder, TowerHead, TowerMismatchError, find_tower

transformers = pytest.importorskip("transformers")

PIXELS = Preprocessing(40, 8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SPACE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def make_encoder(tiny_transformers: Callable[[str], Any], tokenizer: Any) -> Callable[..., TransformersEncoder]:
    def make(kind: str, features: Any = "tokens") -> TransformersEncoder:
        torch.manual_seed(0)
        return TransformersEncoder(tiny_transformers(kind), tokenizer, PIXELS, f"tiny {kind}", features)

    return make


@pytest.fixture
def llava() -> Callable[..., Any]:
    """A LLaVA of one tiny language block around a copy of an encoder's tower, by default without the SigLIP head."""

    def make(encoder: TransformersEncoder, dropped: int = 0) -> Any:
        vision = copy.deepcopy(encoder._model.config.vision_config)
        vision.num_hidden_layers -= dropped
        if vision.model_type == "siglip_vision_model":
            vision.vision_use_head = False
        text = transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        model = transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
        ).eval()
        load_tower(model, encoder._model.vision_model.state_dict())
        return model

    return make


def load_tower(model: Any, held: dict[str, Tensor]) -> None:
    tower = find_tower(model)
    # transformers 4 has one more module between.
    tower.load_state_dict({name: held[name.removeprefix("vision_model.")] for name in tower.state_dict()})


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("features", ["tokens", "value-path", "value-only"])
@pytest.mark.parametrize("dropped", [0, 1], ids=["whole", "last block dropped"])
def test_equals_the_encoder(
    make_encoder: Callable[..., Any], llava: Callable[..., Any], kind: str, features: str, dropped: int
) -> None:
    encoder, pixels = make_encoder(kind, features), torch.randn(2, 3, 40, 40)
    tower = TowerEncoder(llava(encoder, dropped), encoder)
    assert isinstance(tower, Encoder)
    assert tower.fingerprint == encoder.fingerprint
    found, expected = tower.embed_images(pixels), encoder.embed_images(pixels)
    torch.testing.assert_close(found.patches, expected.patches, **SPACE)
    torch.testing.assert_close(found.image, expected.image, **SPACE)
    texts = ["a photo of gun"]
    assert torch.equal(tower.embed_texts(texts), encoder.embed_texts(texts))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_states_that_llava_feeds_its_language_model_suffice(
    make_encoder: Callable[..., Any], llava: Callable[..., Any], kind: str
) -> None:
    encoder, pixels = make_encoder(kind, "value-path"), torch.randn(2, 3, 40, 40)
    model = llava(encoder)
    tower, seen = TowerEncoder(model, encoder), []
    hook = find_tower(model).register_forward_hook(lambda _, __, output: seen.append(output.hidden_states[-2]))
    with torch.no_grad():
        model.get_image_features(pixel_values=pixels, vision_feature_layer=-2)
    hook.remove()
    assert len(seen) == 1
    found, expected = tower.embed_hidden(seen[0]), encoder.embed_images(pixels)
    torch.testing.assert_close(found.patches, expected.patches, **SPACE)
    torch.testing.assert_close(found.image, expected.image, **SPACE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("loaded_back", [False, True], ids=["half", "half loaded as fp32"])
def test_half_precision_is_the_same_tower_rounded(
    make_encoder: Callable[..., Any], llava: Callable[..., Any], dtype: torch.dtype, loaded_back: bool
) -> None:
    encoder, pixels = make_encoder("clip"), torch.randn(2, 3, 40, 40)
    model = llava(encoder).to(dtype)
    model = model.float() if loaded_back else model
    found, expected = TowerEncoder(model, encoder).embed_images(pixels), encoder.embed_images(pixels)
    assert found.patches.dtype == torch.float32
    assert torch.cosine_similarity(found.patches, expected.patches, dim=-1).min() > 0.99


def test_another_tower_is_refused_with_both_hashes(make_encoder: Callable[..., Any], llava: Callable[..., Any]) -> None:
    encoder = make_encoder("clip")
    model = llava(encoder)
    with torch.no_grad():
        next(find_tower(model).parameters()).view(-1)[0] += 1e-3
    with pytest.raises(TowerMismatchError) as caught:
        TowerEncoder(model, encoder)
    ours = tower_hash(read_tower(find_tower(model)).sections(), 3)
    theirs = tower_hash(encoder.tower.sections(), 3)
    assert ours != theirs
    assert re.search(f"expected {theirs}, got {ours}", str(caught.value))


def test_another_shape_is_refused(make_encoder: Callable[..., Any], llava: Callable[..., Any]) -> None:
    encoder = make_encoder("clip")
    with pytest.raises(ValueError, match=r"3 blocks.*got 1 of 4"):
        TowerEncoder(llava(encoder, dropped=2), encoder)
    with pytest.raises(ValueError, match=r"in Linear; got none"):
        TowerEncoder(torch.nn.Linear(2, 2), encoder)
    two = torch.nn.ModuleList([llava(encoder), llava(encoder)])
    with pytest.raises(ValueError, match=r"0\..*1\."):
        TowerEncoder(two, encoder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_saved_head_serves_without_the_encoder(
    make_encoder: Callable[..., Any], llava: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    encoder, pixels = make_encoder(kind, "value-only"), torch.randn(2, 3, 40, 40)
    TowerHead.from_encoder(encoder).save(tmp_path / "head.safetensors")
    head = TowerHead.load(tmp_path / "head.safetensors")
    for dtype in (torch.float32, torch.float16):
        tower = TowerEncoder(llava(encoder).to(dtype), head)
        assert tower.fingerprint == encoder.fingerprint
    tower = TowerEncoder(llava(encoder), head)
    torch.testing.assert_close(tower.embed_images(pixels).patches, encoder.embed_images(pixels).patches, **SPACE)
    assert tower.image_size == encoder.image_size
    assert tower.width == encoder.width
    with pytest.raises(ValueError, match="no text side"):
        tower.embed_texts(["gun"])


def test_a_damaged_or_foreign_head_is_refused(make_encoder: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    TowerHead.from_encoder(make_encoder("clip"), [torch.float32]).save(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="undamaged"):
        TowerHead.load(path)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="safetensors"):
        TowerHead.load(path)


def test_wrong_hidden_states_are_refused(make_encoder: Callable[..., Any], llava: Callable[..., Any]) -> None:
    encoder = make_encoder("clip")
    tower = TowerEncoder(llava(encoder), encoder)
    # LLaVA's `default` feature selection drops the class token: 25 of 26.
    with pytest.raises(ValueError, match=r"before: expected \[B, 26, W\], class token included; got \[1, 25, 48\]"):
        tower.embed_hidden(torch.zeros(1, 25, 48))


def as_transformers(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tower under transformers' names, by hand."""
    found = {
        "embeddings.class_embedding": held["class_embedding"],
        "embeddings.patch_embedding.weight": held["conv1.weight"],
        "embeddings.position_embedding.weight": held["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        found[f"pre_layrnorm.{kind}"] = held[f"ln_pre.{kind}"]
        found[f"post_layernorm.{kind}"] = held[f"ln_post.{kind}"]
        for index in range(3):
            ours, theirs = f"encoder.layers.{index}", f"transformer.resblocks.{index}"
            fused = held[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            found |= {f"{ours}.self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", fused, strict=True)}
            found[f"{ours}.self_attn.out_proj.{kind}"] = held[f"{theirs}.attn.out_proj.{kind}"]
            found[f"{ours}.layer_norm1.{kind}"] = held[f"{theirs}.ln_1.{kind}"]
            found[f"{ours}.layer_norm2.{kind}"] = held[f"{theirs}.ln_2.{kind}"]
            found[f"{ours}.mlp.fc1.{kind}"] = held[f"{theirs}.mlp.c_fc.{kind}"]
            found[f"{ours}.mlp.fc2.{kind}"] = held[f"{theirs}.mlp.c_proj.{kind}"]
    return found


def test_the_hash_is_the_weights_whichever_library_holds_them(
    tiny_open_clip: Callable[..., Any], make_encoder: Callable[..., Any], llava: Callable[..., Any]
) -> None:
    open_clip = tiny_open_clip()
    model, pixels = llava(make_encoder("clip")), torch.randn(2, 3, 40, 40)
    load_tower(model, as_transformers(open_clip.visual.state_dict()))
    encoder = OpenClipEncoder(open_clip, "tiny", lambda: lambda texts: torch.zeros(len(texts), 77, dtype=torch.long))
    assert read_tower(find_tower(model)).sections() == encoder.tower.sections()
    found, expected = TowerEncoder(model, encoder).embed_images(pixels), encoder.embed_images(pixels)
    torch.testing.assert_close(found.patches, expected.patches, **SPACE)
    torch.testing.assert_close(found.image, expected.image, **SPACE)


def test_quantized_weights_are_refused() -> None:
    quantized = torch.nn.Module()
    quantized.conv1 = torch.nn.Module()
    quantized.conv1.register_buffer("weight", torch.zeros(4, 3, 8, 8, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"quantized embed\.patch\.weight"):
        read_tower(quantized)
