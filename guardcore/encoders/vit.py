"""What the encoders of both libraries share: everything but running the towers and reading text."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from guardcore.encoders.fingerprint import tensors_digest
from guardcore.encoders.preprocessing import Preprocessing
from guardcore.encoders.protocol import ImageEmbedding
from guardcore.encoders.tail import Features, Tail, check_features
from guardcore.encoders.tower import Tower

# Sentences a forward pass: a policy has thousands of prompts, and their hidden states need not fit at once.
_TEXT_BATCH = 128

# Tokenized into the fingerprint: tokenizers of one name differ between versions (lower case, punctuation, padding).
_PROBE_TEXT = "A photo of 2 Guns, 1 knife & a dog's toy."


class HiddenStates(NamedTuple):
    """Of a batch: tokens before and after the tower's last block, `[B, T, W]`, and the global vector `[B, D]`."""

    before: Tensor
    after: Tensor
    image: Tensor


class VisionTextEncoder(ABC):
    """An `Encoder` over a library's CLIP or SigLIP. Subclasses run the library's own forward.

    Args:
        name: what to call it.
        tower: the vision tower's canonical weights.
        preprocessing: from pictures to pixels.
        features: reading of the patches, see `guardcore.encoders.tail`.

    Raises:
        ValueError: `features` is unknown or needs a deeper tower, or pictures and tower disagree on the grid.
    """

    def __init__(self, name: str, tower: Tower, preprocessing: Preprocessing, features: Features = "tokens") -> None:
        self.name = name
        self.tower = tower
        self.preprocessing = preprocessing
        self.features = check_features(features)
        self.tail = Tail(tower)
        if features != "tokens" and tower.depth < 2:
            raise ValueError(f"{name}: features {features!r} need a tower of at least 2 blocks; got {tower.depth}")
        positions, patches = len(tower.weights["embed.position"]) - self.tail.prefix, preprocessing.grid**2
        if positions != patches:
            raise ValueError(
                f"{name}: expected {positions} patches, the tower's positions; the pictures have {patches}"
            )

    @property
    def image_size(self) -> int:
        """Side of a tile in pixels."""
        return self.preprocessing.size

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.preprocessing.grid

    @property
    def width(self) -> int:
        """Dimension of the joint space."""
        return self.tail.width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all weights, the vision settings, the preprocessing, the tokenizer and the feature path."""
        parts = {
            "format": 1,
            "weights": tensors_digest(self._state()),
            "vision": [self.tower.heads, self.tower.activation, self.tower.epsilon],
            "preprocessing": self.preprocessing.digest,
            "features": self.features,
            "text": self._tokens([_PROBE_TEXT]).tolist(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn pictures into `[B, 3, S, S]` fp32 on the CPU; see `Preprocessing`."""
        return self.preprocessing(images)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        """Embed `[B, 3, S, S]` tiles.

        Raises:
            ValueError: the pixels have another shape.
        """
        check_pixels(pixels, self.image_size)
        weight = self.tower.weights["embed.patch.weight"]
        if not len(pixels):
            return ImageEmbedding(
                weight.new_zeros(0, self.grid**2, self.width).float(), weight.new_zeros(0, self.width).float()
            )
        states = self._hidden_states(pixels.to(weight))
        patches = self.tail.patches(states.before, states.after, self.features)
        return ImageEmbedding(patches.float(), states.image.float())

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed sentences: `[T, D]` fp32. Longer ones are cut to the model's context.

        Raises:
            ValueError: `texts` is one string, or an entry is none.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts: expected a sequence of strings; got {type(texts).__name__} {texts!r:.80}")
        return torch.cat(
            [self.tower.weights["norm.weight"].new_zeros(0, self.width).float(), *self._text_batches(texts)]
        )

    def _text_batches(self, texts: Sequence[str]) -> Iterator[Tensor]:
        for start in range(0, len(texts), _TEXT_BATCH):
            yield self._text_features(texts[start : start + _TEXT_BATCH]).float()

    @abstractmethod
    def _state(self) -> Mapping[str, Tensor]:
        """Return every weight of the model, text side included."""

    @abstractmethod
    def _tokens(self, texts: Sequence[str]) -> Tensor:
        """Return token ids `[T, L]`, as the text tower takes them."""

    @abstractmethod
    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Return text vectors `[T, D]`."""

    @abstractmethod
    def _hidden_states(self, pixels: Tensor) -> HiddenStates:
        """Run the vision tower."""


def check_pixels(pixels: Tensor, size: int) -> None:
    """Raise ValueError unless `pixels` is `[B, 3, size, size]`."""
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        raise ValueError(f"pixels: expected [B, 3, {size}, {size}]; got {list(pixels.shape)}")
