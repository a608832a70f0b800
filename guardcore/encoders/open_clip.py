"""open_clip's CLIP and SigLIP models as encoders."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.tail import Features
from guardcore.encoders.tower import read_tower
from guardcore.encoders.vit import HiddenStates, VisionTextEncoder

Tokenizer = Callable[[list[str]], Tensor]
"""Sentences to token ids `[T, L]` int64, padded."""


class OpenClipEncoder(VisionTextEncoder):
    """An encoder over a loaded open_clip model with a plain ViT tower, its own or timm's SigLIP.

    Args:
        model: from `open_clip.create_model`; put it on its device and in its dtype before.
        name: what to call it.
        make_tokenizer: called at first use; `open_clip.get_tokenizer` may need files of its own.
        features: reading of the patches, see `guardcore.encoders.tail`.

    Raises:
        ValueError: the tower is no plain CLIP or SigLIP ViT (a ResNet, a ConvNeXt, CoCa's pooler).
    """

    def __init__(
        self, model: Any, name: str, make_tokenizer: Callable[[], Tokenizer], features: Features = "tokens"
    ) -> None:
        tower = read_tower(model.visual)
        super().__init__(name, tower, _preprocessing(model.visual, tower.patch), features)
        self._model = model.eval()
        self._make_tokenizer = make_tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._make_tokenizer()

    def _state(self) -> Mapping[str, Tensor]:
        state: Mapping[str, Tensor] = self._model.state_dict()
        return state

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        return self._tokenizer(list(texts))

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokens(texts).to(self.tower.weights["norm.weight"].device)
        features: Tensor = self._model.encode_text(tokens)
        return features

    def _hidden_states(self, pixels: Tensor) -> HiddenStates:
        # The two last blocks' outputs where there are two: a tower of one block has only `tokens`.
        wanted = min(2, self.tower.depth)
        output = self._model.visual.forward_intermediates(
            pixels, indices=wanted, output_fmt="NLC", output_extra_tokens=bool(self.tail.prefix)
        )
        states = output["image_intermediates"]
        if self.tail.prefix:
            prefixes = output["image_intermediates_prefix"]
            states = [torch.cat(pair, dim=1) for pair in zip(prefixes, states, strict=True)]
        return HiddenStates(states[0], states[-1], output["image_features"])


def load_open_clip(
    spec: str,
    *,
    features: Features = "tokens",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
) -> OpenClipEncoder:
    """Load `MODEL/PRETRAINED`.

    Args:
        spec: an open_clip model name, a slash, and a pretrained tag (downloaded or found in the cache), the path of a
            checkpoint, or `random`. A checkpoint should be safetensors; another is read only if it holds plain tensors.
        features: reading of the patches, see `guardcore.encoders.tail`.
        device: where the model runs.
        dtype: of its weights.
        seed: of `random` weights; the global generators are left alone.
        tokenizer: in place of the model's own, sentences to ids `[T, L]`.
        mean: of red, green and blue in [0, 1], for checkpoints that were trained with another than OpenAI's.
        std: standard deviation of the same.
        interpolation: `bicubic` or `bilinear`.

    Raises:
        ValueError: the model or tag is unknown (those known are listed), the checkpoint does not load without executing
            code or does not fit the model, or the tower is no plain CLIP or SigLIP ViT.
        ImportError: open_clip is not installed.
    """
    import open_clip

    model_name, _, weights = spec.partition("/")
    if not model_name or not weights:
        raise ValueError(f'open_clip: expected "MODEL/PRETRAINED", "MODEL/PATH" or "MODEL/random"; got {spec!r}')
    if model_name not in open_clip.list_models():
        raise ValueError(f"open_clip: unknown model {model_name!r}; known: {', '.join(open_clip.list_models())}")
    preprocessing = {"mean": mean, "std": std, "interpolation": interpolation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(open_clip, model_name, weights, preprocessing)
    return OpenClipEncoder(
        model.to(device=device, dtype=dtype),
        f"open_clip:{spec}",
        (lambda: tokenizer) if tokenizer else (lambda: open_clip.get_tokenizer(model_name)),
        features,
    )


def _create(open_clip: Any, model_name: str, weights: str, preprocessing: dict[str, Any]) -> Any:
    from safetensors import SafetensorError

    source = _source(open_clip, model_name, weights)
    try:
        return open_clip.create_model(model_name, **source, weights_only=True, force_preprocess_cfg=preprocessing)
    except (RuntimeError, SafetensorError, AttributeError, KeyError, TypeError, StopIteration) as error:
        # open_clip looks into a checkpoint before it checks it: what it stumbles over depends on what is missing.
        if not Path(weights).is_file():
            raise
        raise ValueError(f"open_clip: {weights!r} is no checkpoint of {model_name} ({error!s:.300})") from error


def _source(open_clip: Any, model_name: str, weights: str) -> dict[str, Any]:
    """Arguments of `create_model` that say where the weights come from."""
    if weights == "random":
        return {"pretrained": None, "load_weights": False}
    tag = open_clip.pretrained.get_pretrained_cfg(model_name, weights)
    if tag:
        # open_clip only warns when weights trained with QuickGELU meet a model without it; the vectors would be wrong.
        return {"pretrained": weights, "force_quick_gelu": bool(tag.get("quick_gelu"))}
    if not Path(weights).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model_name)) or "none"
        raise ValueError(f"open_clip: {weights!r} is no file and no tag of {model_name}; tags: {known}")
    if not weights.endswith(".safetensors"):
        _check_plain(weights)
    return {"pretrained": weights}


def _check_plain(path: str) -> None:
    """Raise ValueError unless the checkpoint holds nothing but tensors, so that loading it runs no code."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"open_clip: refused {path!r}: it is not safetensors and does not load as plain tensors; "
            f"convert it to safetensors where you trust it ({type(error).__name__}: {error!s:.200})"
        ) from error


def _preprocessing(visual: Any, patch: int) -> Preprocessing:
    given = visual.preprocess_cfg
    height, width = given["size"] if isinstance(given["size"], Sequence) else (given["size"],) * 2
    if height != width:
        raise ValueError(f"open_clip: expected a square picture size; got {height} x {width}")
    mean, std = tuple(given["mean"]), tuple(given["std"])
    return Preprocessing(height, patch, mean, std, given["interpolation"], convert="after")
