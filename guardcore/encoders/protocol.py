"""What guardcore needs from an image-text model: pictures to patches, sentences to the same space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class ImageEmbedding:
    """A batch of square tiles in the joint image-text space.

    Attributes:
        patches: `[B, N, D]` fp32, N = grid**2, row by row from the top left. Not normalized.
        image: `[B, D]` fp32, the model's own global vector. Not normalized.
    """

    patches: Tensor
    image: Tensor


@runtime_checkable
class Encoder(Protocol):
    """An image-text model whose patches and sentences share one space of `width` dimensions.

    Everything runs without gradients and in evaluation mode. Implementations put results on their own device.
    """

    @property
    def name(self) -> str:
        """How a person would call the encoder; usually the spec string that `load_encoder` takes."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) over weights, preprocessing and feature path: equal means comparable vectors."""

    @property
    def image_size(self) -> int:
        """Side S in pixels of the square tile that the model reads."""

    @property
    def grid(self) -> int:
        """Patches a side, so that a tile has N = grid**2 patches."""

    @property
    def width(self) -> int:
        """Dimension D of the joint space."""

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn pictures of any mode and size into `[B, 3, S, S]` fp32; resized whole, never cropped."""

    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        """Embed `[B, 3, S, S]` tiles that `preprocess` made."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed sentences: `[T, D]` fp32, not normalized; T = 0 gives an empty `[0, D]`."""
