"""open_clip encoders against open_clip's own forward, transform and float64 arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guardcore.encoders import Encoder, load_encoder
from guardcore.encoders.open_clip import OpenClipEncoder, load_open_clip

open_clip = pytest.importorskip("open_clip")

TEXTS = ["a photo of a gun", "", "knife " * 200]  # plain, empty, longer than the context
SPACE = {"rtol": 0, "atol": 1e-5}


def wrap(model: Any, features: Any = "tokens") -> OpenClipEncoder:
    return OpenClipEncoder(model, "tiny", lambda: open_clip.get_tokenizer("ViT-B-32"), features)


def library_tokens(model: Any, pixels: Tensor) -> Tensor:
    """open_clip's own tokens after its last norm, class token dropped by open_clip itself, times its projection."""
    model.visual.output_tokens = True
    _, tokens = model.visual(pixels)
    model.visual.output_tokens = False
    return tokens @ model.visual.proj


def float64_value_path(visual: Any, pixels: Tensor, *, whole: bool) -> Tensor:
    """The value path by hand, in float64, from the modules' parameters: o(v(n1(x))) and, if whole, residual and MLP."""
    visual = visual.double()
    taken = visual.forward_intermediates(pixels.double(), indices=2, output_fmt="NLC")
    x, block = taken["image_intermediates"][0], visual.transformer.resblocks[-1]

    def norm(t: Tensor, module: Any) -> Tensor:
        centered = t - t.mean(-1, keepdim=True)
        return centered / (centered.pow(2).mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias

    width = x.shape[-1]
    v = norm(x, block.ln_1) @ block.attn.in_proj_weight[2 * width :].T + block.attn.in_proj_bias[2 * width :]
    h = v @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    if whole:
        y = x + h
        up = norm(y, block.ln_2) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
        h = y + (up / (1 + torch.exp(-1.702 * up))) @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
    return norm(h, visual.ln_post) @ visual.proj


@torch.no_grad()
def check_against_library(encoder: OpenClipEncoder, model: Any, pixels: Tensor) -> None:
    embedding = encoder.embed_images(pixels)
    tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS)
    torch.testing.assert_close(embedding.image, model.encode_image(pixels), **SPACE)
    torch.testing.assert_close(encoder.embed_texts(TEXTS), model.encode_text(tokens), **SPACE)
    torch.testing.assert_close(embedding.patches, library_tokens(model, pixels), **SPACE)
    assert embedding.patches.shape == (len(pixels), encoder.grid**2, encoder.width)


@pytest.mark.parametrize("quick_gelu", [True, False], ids=["quick-gelu", "gelu"])
def test_equals_open_clip(tiny_open_clip: Callable[..., Any], quick_gelu: bool) -> None:
    model = tiny_open_clip(quick_gelu=quick_gelu)
    encoder = wrap(model)
    assert isinstance(encoder, Encoder)
    check_against_library(encoder, model, torch.randn(3, 3, 40, 40))


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_global_vector_is_the_models_own_pooling(tiny_open_clip: Callable[..., Any], pool: str) -> None:
    model = tiny_open_clip(pool_type=pool, ls_init_value=0.1)
    pixels = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(wrap(model).embed_images(pixels).image, model.encode_image(pixels), **SPACE)


@pytest.mark.parametrize("features", ["value-path", "value-only"])
@torch.no_grad()
def test_value_path_equals_float64(tiny_open_clip: Callable[..., Any], features: str) -> None:
    model, pixels = tiny_open_clip(), torch.randn(2, 3, 40, 40)
    found = wrap(model, features).embed_images(pixels)
    torch.testing.assert_close(found.image, model.encode_image(pixels), **SPACE)
    expected = float64_value_path(model.visual, pixels, whole=features == "value-path")
    torch.testing.assert_close(found.patches.double(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_siglip_of_timm_equals_open_clip(tiny_siglip_of_timm: Any) -> None:
    model, pixels = tiny_siglip_of_timm, torch.randn(2, 3, 40, 40)
    found = wrap(model).embed_images(pixels)
    trunk = model.visual.trunk
    torch.testing.assert_close(found.image, model.encode_image(pixels), **SPACE)
    tokens = trunk.forward_features(pixels)
    # The pool over one token at a time, by the library.
    alone = trunk.attn_pool(tokens.reshape(-1, 1, tokens.shape[-1])).reshape(tokens.shape)
    torch.testing.assert_close(found.patches, alone, **SPACE)


@torch.no_grad()
def test_value_path_of_siglip_is_the_last_block_without_mixing(tiny_siglip_of_timm: Any) -> None:
    model, pixels = tiny_siglip_of_timm, torch.randn(2, 3, 40, 40)
    trunk = model.visual.trunk
    x = trunk.forward_intermediates(pixels, indices=2, norm=False, output_fmt="NLC", intermediates_only=True)[0]
    # A block over one token attends to that token alone: the library's own module is the value path.
    alone = trunk.norm(trunk.blocks[-1](x.reshape(-1, 1, x.shape[-1])))
    expected = trunk.attn_pool(alone).reshape(x.shape)
    torch.testing.assert_close(wrap(model, "value-path").embed_images(pixels).patches, expected, **SPACE)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
# 1 pixel, smaller, equal, one more (a barely-there resize), much larger, odd.
@pytest.mark.parametrize("side", [1, 7, 40, 41, 501])
def test_preprocessing_equals_open_clip(
    tiny_open_clip: Callable[..., Any], picture: Callable[..., Any], mode: str, side: int
) -> None:
    model = tiny_open_clip(layers=1)
    transform = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
    )
    image = picture(side, side, mode)
    torch.testing.assert_close(wrap(model).preprocess([image])[0], transform(image), rtol=0, atol=1e-6)


@pytest.fixture
def small_name(tmp_path: Path) -> Iterator[str]:
    """A tiny architecture under a name of its own, by open_clip's way of adding configurations."""
    (tmp_path / "tiny-guardcore.json").write_text(
        '{"embed_dim": 20,'
        ' "vision_cfg": {"image_size": 40, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},'
        ' "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}}'
    )
    open_clip.add_model_config(tmp_path)
    yield "tiny-guardcore"
    open_clip.factory._MODEL_CONFIGS.pop("tiny-guardcore")


def test_random_weights_follow_the_seed_and_spare_the_global_generator(small_name: str) -> None:
    state = torch.get_rng_state()
    first = load_encoder(f"open_clip:{small_name}/random")
    assert torch.equal(state, torch.get_rng_state())
    assert first.fingerprint == load_encoder(f"open_clip:{small_name}/random").fingerprint
    assert first.fingerprint != load_encoder(f"open_clip:{small_name}/random", seed=1).fingerprint


def test_a_safetensors_checkpoint_and_plain_tensors_load_and_fingerprint_alike(small_name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = open_clip.create_model(small_name, pretrained=None, load_weights=False)
    safe, plain = tmp_path / "weights.safetensors", tmp_path / "weights.pt"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, safe)
    torch.save(model.state_dict(), plain)
    expected = OpenClipEncoder(model, "other name", lambda: open_clip.get_tokenizer("ViT-B-32"))
    for path in (safe, plain):
        assert load_encoder(f"open_clip:{small_name}/{path}").fingerprint == expected.fingerprint


class Bomb:
    """An object whose unpickling would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_checkpoint_that_would_run_code_is_refused(small_name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "exploded")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="does not load as plain tensors"):
        load_open_clip(f"{small_name}/{tmp_path / 'bad.pt'}")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"], ids=["empty", "text"])
def test_a_broken_checkpoint_is_refused_by_name(small_name: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.bin"):
        load_open_clip(f"{small_name}/{tmp_path / 'broken.bin'}")


def test_a_checkpoint_of_another_model_is_refused_by_name(small_name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"visual.proj": torch.zeros(3, 5)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    torch.save({"weights": [1, 2]}, tmp_path / "odd.pt")
    for name in ("other.safetensors", "broken.safetensors", "odd.pt"):
        with pytest.raises(ValueError, match=f"{name}.* is no checkpoint of {small_name}"):
            load_open_clip(f"{small_name}/{tmp_path / name}")


def test_preprocessing_can_be_given(small_name: str) -> None:
    given = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear"}
    found = load_open_clip(f"{small_name}/random", **given).preprocessing  # type: ignore[arg-type]
    assert (found.mean, found.std, found.interpolation) == tuple(given.values())
    with pytest.raises(ValueError, match=r"interpolation: .*lanczos"):
        load_open_clip(f"{small_name}/random", interpolation="lanczos")


def test_wrong_names_are_refused_with_what_is_known() -> None:
    for name in ("ViT-Z-99", "hf-hub:somebody", "local-dir:."):  # open_clip's own schemas would fetch or read a folder
        with pytest.raises(ValueError, match=rf"unknown model '{name}'.*ViT-B-32"):
            load_open_clip(f"{name}/openai")
    with pytest.raises(ValueError, match=r"tags.*openai"):
        load_open_clip("ViT-B-32/no-such-tag")
    with pytest.raises(ValueError, match="MODEL/random"):
        load_open_clip("ViT-B-32")


def test_other_architectures_are_refused_by_name(tiny_open_clip: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="ModifiedResNet"):
        wrap(tiny_open_clip(layers=[1, 1, 1, 1], width=16, image_size=32))
    with pytest.raises(ValueError, match="attn_pool"):
        wrap(tiny_open_clip(attentional_pool=True, attn_pooler_heads=4))
    with pytest.raises(ValueError, match="at least 2 blocks"):
        wrap(tiny_open_clip(layers=1), "value-path")


def test_fingerprint_covers_features_preprocessing_weights_and_activation(tiny_open_clip: Callable[..., Any]) -> None:
    model = tiny_open_clip()
    prints = {wrap(model, features).fingerprint for features in ("tokens", "value-path", "value-only")}
    gelu = tiny_open_clip(quick_gelu=False)
    gelu.load_state_dict(model.state_dict())
    prints.add(wrap(gelu).fingerprint)
    model.visual.preprocess_cfg = model.visual.preprocess_cfg | {"mean": (0.5, 0.5, 0.5)}
    prints.add(wrap(model).fingerprint)
    with torch.no_grad():
        model.token_embedding.weight[7, 3] += 1e-3
    prints.add(wrap(model).fingerprint)
    assert len(prints) == 6


def test_half_precision_gives_fp32_vectors_near_the_full_ones(tiny_open_clip: Callable[..., Any]) -> None:
    model, pixels = tiny_open_clip(), torch.randn(2, 3, 40, 40)
    full = wrap(model).embed_images(pixels)
    half = wrap(model.bfloat16()).embed_images(pixels)
    assert half.patches.dtype == half.image.dtype == torch.float32
    assert torch.cosine_similarity(half.patches, full.patches, dim=-1).min() > 0.99


def test_bad_arguments_are_named(tiny_open_clip: Callable[..., Any]) -> None:
    model = tiny_open_clip()
    encoder = wrap(model)
    with pytest.raises(ValueError, match=r"pixels: expected \[B, 3, 40, 40\]; got \[3, 40, 40\]"):
        encoder.embed_images(torch.zeros(3, 40, 40))
    with pytest.raises(ValueError, match="texts"):
        encoder.embed_texts("one string")
    with pytest.raises(ValueError, match=r"features: .*value-path"):
        wrap(model, "keys")
    with pytest.raises(TypeError, match=r"images\[0\]"):
        encoder.preprocess([torch.zeros(3, 4, 4)])  # type: ignore[list-item]


def test_empty_batches_have_their_shapes(tiny_open_clip: Callable[..., Any]) -> None:
    encoder = wrap(tiny_open_clip())
    assert encoder.preprocess([]).shape == (0, 3, 40, 40)
    embedding = encoder.embed_images(encoder.preprocess([]))
    assert embedding.patches.shape == (0, 25, 20)
    assert embedding.image.shape == (0, 20)
    assert encoder.embed_texts([]).shape == (0, 20)


def test_many_texts_are_embedded_in_batches(tiny_open_clip: Callable[..., Any]) -> None:
    encoder = wrap(tiny_open_clip())
    texts = [f"a photo of {number}" for number in range(130)]  # one batch and two over
    together = encoder.embed_texts(texts)
    torch.testing.assert_close(together[[0, 129]], encoder.embed_texts([texts[0], texts[129]]), **SPACE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-L-14-336-quickgelu"], ids=["B-32", "B-32-quick", "L-14-336"]
)
@torch.no_grad()
def test_real_architectures_equal_open_clip(name: str) -> None:
    encoder = load_open_clip(f"{name}/random")
    pixels = torch.randn(1, 3, encoder.image_size, encoder.image_size)
    check_against_library(encoder, encoder._model, pixels)
    if encoder.tower.depth > 12:  # float64 of the large one takes minutes and shows nothing more
        return
    value = OpenClipEncoder(encoder._model, name, lambda: open_clip.get_tokenizer(name), "value-only")
    found = value.embed_images(pixels).patches.double()
    torch.testing.assert_close(found, float64_value_path(encoder._model.visual, pixels, whole=False), rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_real_siglip_equals_open_clip() -> None:
    encoder = load_open_clip("ViT-B-16-SigLIP/random", mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels, trunk = torch.randn(1, 3, 224, 224), encoder._model.visual.trunk
    found = encoder.embed_images(pixels)
    torch.testing.assert_close(found.image, encoder._model.encode_image(pixels), **SPACE)
    tokens = trunk.forward_features(pixels)
    alone = trunk.attn_pool(tokens.reshape(-1, 1, 768)).reshape(tokens.shape)
    torch.testing.assert_close(found.patches, alone, **SPACE)
