"""The vision tower of a loaded vision-language model as an encoder, so that a served model pays for its features once.

Such checkpoints carry no text side, and their features are comparable only with prototypes of the very same CLIP or
SigLIP. A `TowerHead` is what is kept of the encoder that embedded the prompts: the last block, post-norm and projection
or pool, which vision-language models drop or ignore, and hashes of the rest. A tower with other weights is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from guardcore.encoders.fingerprint import tensors_digest
from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.protocol import ImageEmbedding
from guardcore.encoders.tail import Features, Tail
from guardcore.encoders.tower import Tower, read_tower, tower_hash
from guardcore.encoders.vit import VisionTextEncoder, check_pixels

_TOWER_CLASSES = ("CLIPVisionModel", "SiglipVisionModel")
# Checkpoints of vision-language models are stored in half precision: the same weights, rounded.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FORMAT = "1"


class TowerMismatchError(ValueError):
    """A vision tower's weights are not those that the prototypes were made with; the message has both hashes."""


@dataclass(frozen=True)
class TowerHead:
    """What must be kept of an encoder to read patch vectors off another copy of its vision tower.

    Attributes:
        name: of the encoder.
        fingerprint: of the encoder, hence of the banks that go with it.
        features: reading of the patches.
        preprocessing: from pictures to pixels.
        tower: settings, and only those weights that come after the last but one block.
        sections: data type ("float16") to digests of embeddings and blocks in that type, see `Tower.sections`.
    """

    name: str
    fingerprint: str
    features: Features
    preprocessing: Preprocessing
    tower: Tower
    sections: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_encoder(cls, encoder: VisionTextEncoder, dtypes: Sequence[torch.dtype] = _DTYPES) -> TowerHead:
        """Take the head off an open_clip or transformers encoder; hashing takes seconds for each of `dtypes`."""
        whole = encoder.tower
        last = ("embed.class", "norm.", "projection", "pool.", f"block.{whole.depth - 1}.")
        weights = {name: tensor for name, tensor in whole.weights.items() if name.startswith(last)}
        tower = Tower(weights, whole.depth, whole.heads, whole.activation, whole.epsilon)
        sections = {_dtype_name(dtype): whole.sections(dtype) for dtype in dtypes}
        return cls(encoder.name, encoder.fingerprint, encoder.features, encoder.preprocessing, tower, sections)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, everything but the weights in its metadata."""
        from safetensors.torch import save_file

        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tower.weights.items()}
        settings = {field: getattr(self, field) for field in ("name", "fingerprint", "features", "sections")}
        settings["preprocessing"] = asdict(self.preprocessing)
        settings["tower"] = [getattr(self.tower, field) for field in _TOWER_SETTINGS]
        metadata = {"format": _FORMAT, "digest": tensors_digest(weights), "settings": json.dumps(settings)}
        save_file(weights, path, metadata)

    @classmethod
    def load(cls, path: str | Path) -> TowerHead:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is no tower head, of another format, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except SafetensorError as error:
            raise ValueError(f"path: expected the safetensors file of a tower head; got {path} ({error})") from error
        if metadata.get("format") != _FORMAT or metadata.get("digest") != tensors_digest(weights):
            raise ValueError(f"path: expected an undamaged tower head of format {_FORMAT}; got {path}")
        settings: dict[str, Any] = json.loads(metadata["settings"])
        fields: dict[str, Any] = settings["preprocessing"]
        fields |= {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])}
        settings["preprocessing"] = Preprocessing(**fields)
        settings["tower"] = Tower(weights, *settings["tower"])
        settings["sections"] = {name: tuple(digests) for name, digests in settings["sections"].items()}
        return cls(**settings)


_TOWER_SETTINGS = ("depth", "heads", "activation", "epsilon")


class TowerEncoder:
    """An `Encoder` that runs the vision tower of a loaded vision-language model.

    Its fingerprint is that of the encoder the head came from: banks and calibrations of that encoder fit. In half
    precision vectors drift by the rounding of the tower, about 1e-3 of cosine.

    Args:
        model: a LLaVA-style model of transformers, or its `CLIPVisionModel` or `SiglipVisionModel`, on its device.
        source: the encoder that embedded the prompts (which then also embeds texts), or the head kept of it.

    Raises:
        ValueError: the model has no such tower, or more than one; its depth or heads differ.
        TowerMismatchError: the weights differ.
    """

    def __init__(self, model: nn.Module, source: VisionTextEncoder | TowerHead) -> None:
        self.module: Any = find_tower(model)
        own = read_tower(self.module)
        self._text = source if isinstance(source, VisionTextEncoder) else None
        head = TowerHead.from_encoder(source, _exact_dtypes(own)) if isinstance(source, VisionTextEncoder) else source
        _check_same(own, head)
        self._missing = head.tower.depth - own.depth
        self._dtype = own.dtype
        self._head = head
        self._tail = Tail(_moved(head.tower, own.weights["embed.patch.weight"].device))
        self.name, self.fingerprint, self.width = f"tower of {head.name}", head.fingerprint, self._tail.width
        self.image_size, self.grid = head.preprocessing.size, head.preprocessing.grid

    @property
    def preprocessing(self) -> Preprocessing:
        """From pictures to pixels, as for the encoder of the prompts."""
        return self._head.preprocessing

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn pictures into `[B, 3, S, S]` fp32 on the CPU, as the encoder of the prompts would."""
        return self._head.preprocessing(images)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        """Embed `[B, 3, S, S]` tiles by a forward pass of the tower."""
        check_pixels(pixels, self.image_size)
        pixels = pixels.to(self.module.device, self._dtype)
        states = self.module(pixel_values=pixels, output_hidden_states=True).hidden_states
        return self.embed_hidden(states[-1]) if self._missing else self.embed_hidden(states[-2], states[-1])

    @torch.no_grad()
    def embed_hidden(self, before: Tensor, after: Tensor | None = None) -> ImageEmbedding:
        """Embed from hidden states that the model has computed anyway: no pass of the tower, at most its last block.

        Args:
            before: `[B, T, W]`, the input of the last block: `hidden_states[-2]`, which LLaVA feeds its language model
                (`hidden_states[-1]` where the model left the last block out). With the class token, if there is one.
            after: `[B, T, W]`, the output of the last block; computed when None.

        Raises:
            ValueError: a shape is another.
        """
        positions = self.grid**2 + self._tail.prefix
        for name, states in (("before", before), ("after", before if after is None else after)):
            if states.ndim != 3 or states.shape[1] != positions:
                raise ValueError(
                    f"{name}: expected [B, {positions}, W], class token included; got {list(states.shape)}"
                )
        before = before.to(self._tail.tower.weights["norm.weight"])
        after = self._tail.block(self._tail.tower.depth - 1, before) if after is None else after.to(before)
        patches = self._tail.patches(before, after, self._head.features)
        return ImageEmbedding(patches.float(), self._tail.image(after).float())

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed sentences by the encoder that was given.

        Raises:
            ValueError: only a head was given, which has no text side.
        """
        if self._text is None:
            raise ValueError(f"{self.name} has no text side: load the prototypes that {self._head.name} made")
        return self._text.embed_texts(texts)


def find_tower(model: nn.Module) -> nn.Module:
    """Return the one CLIP or SigLIP vision model in `model`, or `model` itself.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = {name: module for name, module in model.named_modules() if type(module).__name__ in _TOWER_CLASSES}
    if len(found) != 1:
        wanted, got = " or ".join(_TOWER_CLASSES), sorted(found) or "none"
        raise ValueError(f"model: expected one {wanted} in {type(model).__name__}; got {got}")
    tower: nn.Module = next(iter(found.values()))
    return tower


def _check_same(own: Tower, head: TowerHead) -> None:
    if own.depth not in (head.tower.depth, head.tower.depth - 1) or own.heads != head.tower.heads:
        raise ValueError(
            f"model: expected a tower of {head.tower.depth} blocks (or all but the last) of {head.tower.heads} heads, "
            f"as {head.name} has; got {own.depth} of {own.heads}"
        )
    pairs = [
        (tower_hash(own.sections(dtype), own.depth), tower_hash(head.sections[_dtype_name(dtype)], own.depth))
        for dtype in _exact_dtypes(own)
        if _dtype_name(dtype) in head.sections
    ]
    if not any(ours == theirs for ours, theirs in pairs):
        ours, theirs = pairs[0] if pairs else (f"weights in {own.dtype}", f"hashes in {sorted(head.sections)}")
        raise TowerMismatchError(
            f"model: its vision tower is not that of {head.name}: expected {theirs}, got {ours}. Embed the policy with "
            "the tower's own CLIP or SigLIP; a tower that was fine-tuned with its language model has none"
        )


def _exact_dtypes(own: Tower) -> tuple[torch.dtype, ...]:
    # A half-precision checkpoint loaded in float32 still equals its encoder only after rounding.
    return tuple(dtype for dtype in dict.fromkeys((own.dtype, *_DTYPES)) if own.exact_in(dtype))


def _moved(tower: Tower, device: torch.device) -> Tower:
    weights = {name: tensor.to(device) for name, tensor in tower.weights.items()}
    return Tower(weights, tower.depth, tower.heads, tower.activation, tower.epsilon)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
