"""The built-in image-text encoder: a small network trained by this repository on drawn scenes.

It exists so that the demo, the tests and the end-to-end measurements have real semantics without a download. It knows a
few hundred drawn objects and the words for them, and nothing else: see `guardcore/data/MODEL_CARD.md`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from guardcore.encoders.builtin_network import MAX_SCALE, BuiltinConfig, BuiltinNetwork
from guardcore.encoders.fingerprint import tensors_digest
from guardcore.encoders.protocol import ImageEmbedding

# Fixed statistics of the training pictures' channels; part of the fingerprint.
MEAN, STD = 0.5, 0.27


def split_words(text: str) -> list[str]:
    """Lower-case words of a text; everything but letters and digits separates them."""
    return re.findall(r"[a-z0-9]+", text.lower())


class Vocabulary:
    """Words and their numbers, from 1 upward; a plural in -s falls back to its singular."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._number = {word: i + 1 for i, word in enumerate(words)}

    def numbers(self, text: str) -> list[int]:
        """Numbers of the known words, in order. Raises ValueError for a text without any known word."""
        found = (self._number.get(w) or self._number.get(w.removesuffix("s")) for w in split_words(text))
        numbers = [n for n in found if n is not None]
        if not numbers:
            raise ValueError(f"texts: the built-in encoder knows none of the words in {text!r}")
        return numbers

    def pad(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Number lists -> int64 [T, longest], padded with 0."""
        longest = max(len(t) for t in texts)
        return torch.tensor([[*t, *[0] * (longest - len(t))] for t in texts], dtype=torch.int64)


class BuiltinEncoder:
    """The trained encoder behind the `Encoder` protocol. Vectors have unit length.

    network: in evaluation mode. vocabulary: its words. fingerprint: sha256 over weights, words and preprocessing.
    `scale` is the factor on cosines under which a softmax over texts gives the probabilities of training.
    """

    name = "builtin"

    def __init__(self, network: BuiltinNetwork, vocabulary: Vocabulary) -> None:
        self.network = network.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.image_size = network.config.image_size
        self.grid = network.config.grid
        self.width = network.config.width
        self.scale = float(network.scales[0].clamp(max=MAX_SCALE).exp())
        self.fingerprint = _fingerprint(network, vocabulary)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of any mode and size -> float32 [B, 3, S, S].

        Bicubic resize to S x S without a crop, then a fixed mean and deviation. No pictures give [0, 3, S, S].
        """
        if not images:
            return torch.empty(0, 3, self.image_size, self.image_size)
        size = (self.image_size, self.image_size)
        arrays = [np.asarray(i.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for i in images]
        return normalize_pixels(torch.from_numpy(np.stack(arrays)))

    @torch.inference_mode()
    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        """float32 [B, 3, S, S] -> patches [B, N, D] (rows first) and image [B, D], float32 unit vectors."""
        patches, image = self.network.image(pixels)
        return ImageEmbedding(patches=patches, image=image)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> float32 unit vectors [T, D]; T = 0 gives [0, D]. Unknown words are dropped.

        Raises ValueError for a text without any known word.
        """
        if not texts:
            return torch.empty(0, self.width)
        return self.network.text(self.vocabulary.pad([self.vocabulary.numbers(t) for t in texts]))


def normalize_pixels(images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] with the network's mean and deviation."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def _fingerprint(network: nn.Module, vocabulary: Vocabulary) -> str:
    """SHA-256 hex over the weights, the words and the preprocessing."""
    parts = [tensors_digest(network.state_dict()), vocabulary.words, MEAN, STD, "bicubic"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_encoder(path: Path | str) -> BuiltinEncoder:
    """Reads an encoder from a safetensors file whose header holds `config` and `words` as JSON.

    Raises FileNotFoundError, and ValueError when the header lacks either entry.
    """
    with safe_open(str(path), framework="pt") as archive:
        header: Mapping[str, str] = archive.metadata() or {}
        if "config" not in header or "words" not in header:
            raise ValueError(f"{path}: expected 'config' and 'words' in the header, got {sorted(header)}")
        state = {name: _widen(archive.get_tensor(name)) for name in archive.keys()}  # noqa: SIM118 - not a dict
    network = BuiltinNetwork(BuiltinConfig(**json.loads(header["config"])))
    network.load_state_dict(state)
    return BuiltinEncoder(network.to(memory_format=torch.channels_last), Vocabulary(json.loads(header["words"])))


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def header_of(config: BuiltinConfig, vocabulary: Vocabulary) -> dict[str, str]:
    """The safetensors header that `read_encoder` expects."""
    return {"config": json.dumps(asdict(config)), "words": json.dumps(vocabulary.words)}


def load_builtin() -> BuiltinEncoder:
    """The encoder that ships with the package."""
    with resources.as_file(resources.files("guardcore") / "data" / "builtin.safetensors") as path:
        return read_encoder(path)
