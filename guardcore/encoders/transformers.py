"""CLIP, SigLIP and fixed-resolution SigLIP 2 of transformers as encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.tail import Features
from guardcore.encoders.tower import read_tower
from guardcore.encoders.vit import HiddenStates, VisionTextEncoder

_RESAMPLE = {2: "bilinear", 3: "bicubic"}


class TransformersEncoder(VisionTextEncoder):
    """An encoder over a loaded `CLIPModel` or `SiglipModel`.

    Args:
        model: put it on its device and in its dtype before.
        tokenizer: the model's tokenizer.
        preprocessing: from pictures to pixels; `read_preprocessing` makes it of a preprocessor_config.json.
        name: what to call it.
        features: reading of the patches, see `guardcore.encoders.tail`.

    Raises:
        ValueError: the model is another one, or its picture size disagrees with the preprocessing.
    """

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, name: str, features: Features = "tokens"
    ) -> None:
        check_model_type(model.config, name)
        projection = model.visual_projection.weight if hasattr(model, "visual_projection") else None
        super().__init__(name, read_tower(model.vision_model, projection), preprocessing, features)
        self._model = model.eval()
        self._tokenizer = tokenizer

    def _state(self) -> Mapping[str, Tensor]:
        state: Mapping[str, Tensor] = self._model.state_dict()
        return state

    def _inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        limit = self._model.config.text_config.max_position_embeddings
        # SigLIP was trained on sentences padded to the full length, padding visible: no mask.
        siglip = self._model.config.model_type == "siglip"
        inputs = self._tokenizer(
            list(texts),
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        kept = ("input_ids",) if siglip else ("input_ids", "attention_mask")
        return {name: inputs[name].to(self._model.device) for name in kept}

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        return self._inputs(texts)["input_ids"]

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        return _pooled(self._model.get_text_features(**self._inputs(texts)))

    def _hidden_states(self, pixels: Tensor) -> HiddenStates:
        output = self._model.vision_model(pixel_values=pixels, output_hidden_states=True)
        image = output.pooler_output
        if hasattr(self._model, "visual_projection"):
            image = self._model.visual_projection(image)
        return HiddenStates(output.hidden_states[-2], output.hidden_states[-1], image)


def load_transformers(
    source: str,
    *,
    features: Features = "tokens",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = False,
    revision: str | None = None,
) -> TransformersEncoder:
    """Load a CLIP, SigLIP or SigLIP 2 checkpoint: safetensors only, without running its code.

    Args:
        source: a directory, or an id of the hub.
        features: reading of the patches, see `guardcore.encoders.tail`.
        device: where the model runs.
        dtype: of its weights.
        local_files_only: never ask the network; the files must be in the directory or in the cache.
        revision: of an id of the hub.

    Raises:
        ValueError: another architecture (the NaFlex variant of SigLIP 2 included), or a preprocessor that does more
            than resize, rescale and normalize.
        OSError: files are missing, or there are no safetensors weights.
        ImportError: transformers is not installed.
    """
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin

    where: dict[str, Any] = {"local_files_only": local_files_only, "revision": revision}
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
    check_model_type(config, source)
    image_config, _ = ImageProcessingMixin.get_image_processor_dict(source, **where)
    family = transformers.CLIPModel if config.model_type == "clip" else transformers.SiglipModel
    model = family.from_pretrained(source, use_safetensors=True, dtype=dtype, **where)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False, **where)
    vision = config.vision_config
    preprocessing = read_preprocessing(image_config, vision.image_size, vision.patch_size)
    return TransformersEncoder(model.to(device), tokenizer, preprocessing, f"transformers:{source}", features)


def check_model_type(config: Any, name: str) -> None:
    """Raise ValueError unless a configuration is CLIP's or SigLIP's."""
    kind = getattr(config, "model_type", None)
    if kind == "siglip2":
        raise ValueError(
            f"{name}: this is the NaFlex variant of SigLIP 2 (model_type siglip2), whose pictures have no fixed grid; "
            "use a fixed-resolution checkpoint such as google/siglip2-base-patch16-256 (model_type siglip)"
        )
    if kind not in ("clip", "siglip"):
        raise ValueError(f'{name}: expected model_type "clip" or "siglip"; got {kind!r}')


def read_preprocessing(config: Mapping[str, Any], image_size: int, patch_size: int) -> Preprocessing:
    """Read a preprocessor_config.json; its resize and center crop are one and the same on a square picture.

    Raises:
        ValueError: it leaves out a step, rescales by another factor, or resizes to another size than the tower reads.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ValueError(f"preprocessor: expected {step} true; got {config[step]!r}")
    factor = config.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"preprocessor: expected rescale_factor 1/255; got {factor!r}")
    sides = {side for key in ("size", "crop_size") for side in _sides(config.get(key))}
    if sides - {image_size}:
        raise ValueError(f"preprocessor: expected size {image_size}, which the tower reads; got {sorted(sides)}")
    resample = config.get("resample", 3)
    if resample not in _RESAMPLE:
        raise ValueError(f"preprocessor: expected resample 2 (bilinear) or 3 (bicubic); got {resample!r}")
    if not {"image_mean", "image_std"} <= set(config):
        raise ValueError(f"preprocessor: expected image_mean and image_std; got only {sorted(config)}")
    kind: Any = _RESAMPLE[resample]
    return Preprocessing(image_size, patch_size, tuple(config["image_mean"]), tuple(config["image_std"]), kind)


def _sides(size: Any) -> list[int]:
    if size is None:
        return []
    return list(size.values()) if isinstance(size, Mapping) else [size]


def _pooled(features: Any) -> Tensor:
    # transformers 5 returns the whole text output, 4 only its vector.
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return pooled
