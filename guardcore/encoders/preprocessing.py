"""From pictures to the pixels that a vision tower reads, with Pillow and torch alone.

Equal to open_clip's transform and to transformers' image processors on square pictures, where their resize to the
shorter side and center crop keep everything. Unlike them it never crops: what is not square is squeezed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """Resize to a square with antialiasing, scale to [0, 1], subtract the mean, divide by the standard deviation.

    Attributes:
        size: side S of the pixels that the tower takes.
        patch: side of its patches. Where it does not divide S (SigLIP SO400M 384/14) the tower never reads the last
            S mod patch rows and columns; the picture is then resized to what is read and its edge repeated, so that no
            part of it goes unseen. Here, and only here, we part from the libraries.
        mean: of red, green and blue, on the scale [0, 1].
        std: standard deviation of the same.
        interpolation: `bicubic` or `bilinear`.
        convert: whether a picture becomes RGB `before` the resize, what is transparent over white (transformers 5), or
            `after` it, transparency dropped (open_clip).
    """

    size: int
    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    convert: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        """Check the fields that come from files."""
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation: expected one of {sorted(_RESAMPLING)}; got {self.interpolation!r}")
        if not 1 <= self.patch <= self.size:
            raise ValueError(f"patch: expected a side between 1 and {self.size}; got {self.patch!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"mean, std: expected 3 numbers each, std above 0; got {self.mean!r}, {self.std!r}")

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.size // self.patch

    @property
    def digest(self) -> str:
        """SHA-256 hex over every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn pictures into `[B, 3, S, S]` fp32.

        Raises:
            TypeError: an entry is not a PIL image; the message names its index.
        """
        read = self.grid * self.patch
        levels = torch.empty((len(images), 3, read, read))
        for index, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise TypeError(f"images[{index}]: expected a PIL image; got {type(image).__name__}")
            levels[index] = torch.from_numpy(self._resized(image, read)).permute(2, 0, 1)
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        pixels = levels.div_(255).sub_(mean).div_(std)
        missing = self.size - read
        return functional.pad(pixels, (0, missing, 0, missing), mode="replicate") if missing else pixels

    def _resized(self, image: Image.Image, side: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        if self.convert == "before":
            image = _over_white(image)
        image = image.resize((side, side), resample=_RESAMPLING[self.interpolation])
        return np.array(image.convert("RGB"))


def _over_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
