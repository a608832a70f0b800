"""Cover parts of a picture: black as in GuardAlign's Eq. 11, or unrecognizable but less glaring."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

RedactionStyle = Literal["zero", "blur", "pixelate"]

# Detail that survives, as a share of the picture's longer side: an object of half the picture keeps about six blocks,
# or as many blurred spots, which is too little to name it and enough to see that something was there.
_BLOCK = 1 / 12
_BLUR = 1 / 14


def redact(image: Image.Image, mask: NDArray[np.bool_], style: RedactionStyle = "zero") -> Image.Image:
    """Return an RGB copy of the picture with the masked pixels covered; all others are unchanged.

    Args:
        image: any mode; transparency is dropped.
        mask: bool [height, width], True = cover.
        style: `zero` (black), `blur` (Gaussian) or `pixelate` (mean of square blocks).

    Raises:
        ValueError: an unknown style, or a mask of another size; both are named.
    """
    if style not in get_args(RedactionStyle):
        raise ValueError(f"style: expected one of {', '.join(get_args(RedactionStyle))}; got {style!r}")
    if mask.shape != image.size[::-1]:
        raise ValueError(f"mask: expected [height, width] = {list(image.size[::-1])}; got {list(mask.shape)}")
    picture = image.convert("RGB")
    if not mask.any():
        return picture.copy()
    cover = {"zero": _zero, "blur": _blur, "pixelate": _pixelate}[style](picture)
    return Image.composite(cover, picture, Image.fromarray(mask))


def _zero(picture: Image.Image) -> Image.Image:
    return Image.new("RGB", picture.size)


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(2.0, _BLUR * max(picture.size))))


def _pixelate(picture: Image.Image) -> Image.Image:
    block = max(2, round(_BLOCK * max(picture.size)))
    blocks = (-(-picture.width // block), -(-picture.height // block))
    coarse = picture.resize(blocks, Image.Resampling.BOX)
    whole = coarse.resize((blocks[0] * block, blocks[1] * block), Image.Resampling.NEAREST)
    return whole.crop((0, 0, *picture.size))
