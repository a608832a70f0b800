"""transformers encoders against transformers' own forward, image processors and float64 arithmetic."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore.encoders import Encoder, load_encoder
from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.transformers import TransformersEncoder, load_transformers, read_preprocessing

transformers = pytest.importorskip("transformers")

TEXTS = ["a photo of gun", "", "knife dog " * 20]  # plain, empty, longer than the context
SPACE = {"rtol": 0, "atol": 1e-5}
PIXELS = Preprocessing(40, 8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def library_patches(model: Any, pixels: Tensor) -> Tensor:
    """The library's tokens after its post-norm: projected (CLIP), or each alone through its pooling head (SigLIP)."""
    last = model.vision_model(pixels).last_hidden_state
    if model.config.model_type == "clip":
        return model.visual_projection(model.vision_model.post_layernorm(last[:, 1:]))
    return model.vision_model.head(last.reshape(-1, 1, last.shape[-1])).reshape(last.shape)


def float64_value_path(model: Any, pixels: Tensor, *, whole: bool) -> Tensor:
    """By hand, in float64: o(v(n1(x))) and, if whole, residual and MLP; then norm and projection or pool."""
    model = model.double()
    vision = model.vision_model
    x, layer = vision(pixels.double(), output_hidden_states=True).hidden_states[-2], vision.encoder.layers[-1]
    clip = model.config.model_type == "clip"
    x = x[:, 1:] if clip else x

    def norm(t: Tensor, module: Any) -> Tensor:
        centered = t - t.mean(-1, keepdim=True)
        return centered / (centered.pow(2).mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias

    def act(t: Tensor) -> Tensor:
        if clip:
            return t / (1 + torch.exp(-1.702 * t))
        return 0.5 * t * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (t + 0.044715 * t**3)))

    h = layer.self_attn.out_proj(layer.self_attn.v_proj(norm(x, layer.layer_norm1)))
    if whole:
        y = x + h
        h = y + layer.mlp.fc2(act(layer.mlp.fc1(norm(y, layer.layer_norm2))))
    h = norm(h, vision.post_layernorm)
    if clip:
        return h @ model.visual_projection.weight.T
    pool, width = vision.head, h.shape[-1]
    z = h @ pool.attention.in_proj_weight[2 * width :].T + pool.attention.in_proj_bias[2 * width :]
    z = z @ pool.attention.out_proj.weight.T + pool.attention.out_proj.bias
    return z + pool.mlp.fc2(act(pool.mlp.fc1(norm(z, pool.layernorm))))


def text_inputs(kind: str, tokenizer: Any, length: int) -> dict[str, Tensor]:
    padding = "max_length" if kind == "siglip" else True
    inputs = dict(tokenizer(TEXTS, padding=padding, truncation=True, max_length=length, return_tensors="pt"))
    return {name: inputs[name] for name in (["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"])}


@torch.no_grad()
def check_against_library(encoder: TransformersEncoder, model: Any, tokenizer: Any, pixels: Tensor) -> None:
    embedding, kind = encoder.embed_images(pixels), model.config.model_type
    image, inputs = model.get_image_features(pixel_values=pixels), text_inputs(kind, tokenizer, 12)
    text = model.get_text_features(**inputs)
    torch.testing.assert_close(embedding.image, getattr(image, "pooler_output", image), **SPACE)
    torch.testing.assert_close(encoder.embed_texts(TEXTS), getattr(text, "pooler_output", text), **SPACE)
    torch.testing.assert_close(embedding.patches, library_patches(model, pixels), **SPACE)
    assert embedding.patches.shape == (len(pixels), encoder.grid**2, encoder.width)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_equals_transformers(tiny_transformers: Callable[[str], Any], tokenizer: Any, kind: str) -> None:
    model = tiny_transformers(kind)
    encoder = TransformersEncoder(model, tokenizer, PIXELS, "tiny")
    assert isinstance(encoder, Encoder)
    check_against_library(encoder, model, tokenizer, torch.randn(3, 3, 40, 40))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("features", ["value-path", "value-only"])
@torch.no_grad()
def test_value_path_equals_float64(
    tiny_transformers: Callable[[str], Any], tokenizer: Any, kind: str, features: Any
) -> None:
    model, pixels = tiny_transformers(kind), torch.randn(2, 3, 40, 40)
    found = TransformersEncoder(model, tokenizer, PIXELS, "tiny", features).embed_images(pixels)
    plain = TransformersEncoder(model, tokenizer, PIXELS, "tiny").embed_images(pixels)
    assert torch.equal(found.image, plain.image)
    expected = float64_value_path(model, pixels, whole=features == "value-path")
    torch.testing.assert_close(found.patches.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("side", [1, 7, 40, 41, 501])  # 1 pixel, smaller, equal, one more, much larger and odd
def test_preprocessing_equals_the_image_processor(picture: Callable[..., Any], kind: str, mode: str, side: int) -> None:
    # transformers 5 has a Pillow and a torchvision processor each; ours is the Pillow one.
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4 has no processor of this name")
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    if kind == "clip":
        Processor = module.CLIPImageProcessorPil
        config = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
    else:
        Processor = module.SiglipImageProcessorPil
        config = {"size": {"height": 40, "width": 40}}
    processor, image = Processor(**config), picture(side, side, mode)
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    ours = read_preprocessing(processor.to_dict(), 40, 8)([image])
    torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=0, atol=1e-6)


@pytest.fixture
def saved(tiny_transformers: Callable[[str], Any], tokenizer: Any, tmp_path: Path) -> Callable[[str], Path]:
    def save(kind: str) -> Path:
        tiny_transformers(kind).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        size = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
        config = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3, "do_resize": True}
        config |= size if kind == "clip" else {"size": {"height": 40, "width": 40}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        return tmp_path

    return save


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_directory_loads_to_the_same_encoder(
    saved: Callable[[str], Path], tiny_transformers: Callable[[str], Any], tokenizer: Any, kind: str
) -> None:
    directory = saved(kind)
    encoder = load_encoder(f"transformers:{directory}", local_files_only=True)
    torch.manual_seed(0)
    model = tiny_transformers(kind)
    check_against_library(encoder, encoder._model, tokenizer, torch.randn(2, 3, 40, 40))
    assert encoder.fingerprint == load_encoder(f"transformers:{directory}").fingerprint
    assert encoder.image_size == 40
    assert encoder.grid == 5
    assert encoder.width == (20 if kind == "clip" else 48)
    assert model.config.model_type == kind


def test_pickled_weights_are_refused(saved: Callable[[str], Path]) -> None:
    directory = saved("clip")
    weights = directory / "model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), directory / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_transformers(str(directory), local_files_only=True)


def test_naflex_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(ValueError, match=r"NaFlex.*siglip2-base-patch16-256"):
        load_transformers(str(tmp_path), local_files_only=True)


def test_other_models_and_code_of_the_repository_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r'"clip" or "siglip"; got .bert'):
        load_transformers(str(tmp_path), local_files_only=True)
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('code of the repository ran')")
    with pytest.raises(ValueError, match=r"trust_remote_code|mine"):
        load_transformers(str(tmp_path), local_files_only=True)


def test_local_files_only_never_asks_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(OSError):
        load_transformers("nobody/such-a-model", local_files_only=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"size": {"height": 64, "width": 64}}, r"size 40.*64"),
        ({"size": {"height": 40, "width": 64}}, r"size 40.*64"),
        ({"resample": 0}, "resample"),
        ({"image_std": None}, "image_std|std"),
    ],
)
def test_a_preprocessor_that_does_something_else_is_refused(change: dict[str, Any], match: str) -> None:
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 40, "width": 40}} | change
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(ValueError, match=match):
        read_preprocessing(config, 40, 8)


def test_a_size_that_patches_do_not_divide_is_still_read_whole(picture: Callable[..., Any]) -> None:
    # 43 = 5 * 8 + 3, as SigLIP SO400M reads 378 of 384 pixels: the right and lower edge must be among the 40.
    image = picture(43, 43)
    pixels = Preprocessing(43, 8, (0.5,) * 3, (0.5,) * 3)([image])
    whole = Preprocessing(40, 8, (0.5,) * 3, (0.5,) * 3)([image])
    assert pixels.shape == (1, 3, 43, 43)
    assert torch.equal(pixels[..., :40, :40], whole)


def test_pictures_of_another_grid_than_the_towers_are_refused(
    tiny_transformers: Callable[[str], Any], tokenizer: Any
) -> None:
    with pytest.raises(ValueError, match=r"25 patches.*36"):
        TransformersEncoder(
            tiny_transformers("siglip"), tokenizer, Preprocessing(48, 8, (0.5,) * 3, (0.5,) * 3), "tiny"
        )


def test_fingerprint_covers_the_tokenizer(tiny_transformers: Callable[[str], Any], tokenizer: Any) -> None:
    model = tiny_transformers("clip")
    first = TransformersEncoder(model, tokenizer, PIXELS, "tiny").fingerprint
    tokenizer.add_tokens(["Guns"])
    assert TransformersEncoder(model, tokenizer, PIXELS, "tiny").fingerprint != first


# The published shapes; weights are random, depth and widths are real.
REAL = {
    "CLIP ViT-B-32": ("clip", {"hidden_size": 768, "intermediate_size": 3072, "patch_size": 32, "image_size": 224}, 12),
    "CLIP ViT-L-14-336": (
        "clip",
        {"hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14, "image_size": 336},
        24,
    ),
    "SigLIP B-16-224": (
        "siglip",
        {"hidden_size": 768, "intermediate_size": 3072, "patch_size": 16, "image_size": 224},
        12,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@torch.no_grad()
def test_real_architectures_equal_transformers(name: str, tokenizer: Any) -> None:
    kind, vision, layers = REAL[name]
    vision = vision | {"num_hidden_layers": layers, "num_attention_heads": vision["hidden_size"] // 64}
    text = {"vocab_size": 64, "max_position_embeddings": 12, "eos_token_id": 2}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)
        model = transformers.CLIPModel(config).eval()
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model = transformers.SiglipModel(config).eval()
    pixels = Preprocessing(vision["image_size"], vision["patch_size"], (0.5,) * 3, (0.5,) * 3)
    encoder = TransformersEncoder(model, tokenizer, pixels, name)
    check_against_library(encoder, model, tokenizer, torch.randn(1, 3, pixels.size, pixels.size))
