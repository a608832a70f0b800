"""Any Pillow mode becomes 8-bit RGB, and whatever was changed on the way is said in a note.

A guard must judge what a model would be shown. Models get 8-bit RGB in sRGB, upright, without an alpha channel; each
function below takes one step toward that and returns the picture with the notes of what the step did.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from PIL import Image


class Alpha(str, Enum):
    """What lies behind a see-through pixel."""

    WHITE = "white"  # a white page: what browsers and most viewers show
    BLACK = "black"
    DROP = "drop"  # ignore alpha: the stored colors, also of invisible pixels; what a bare convert("RGB") hands a model


_SUN_TO_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION_TAG = 0x0112  # EXIF 2.32, table 4


def to_rgb(image: Image.Image, alpha: Alpha = Alpha.WHITE) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert a loaded Pillow image of any mode to RGB.

    Args:
        image: a loaded image [H, W] of any mode; it is not changed.
        alpha: what see-through pixels are laid on.

    Returns:
        a new RGB image of the same size and the notes of what was changed (none for RGB and grayscale).

    Raises:
        ValueError: a float picture has no finite pixel, or Pillow has no conversion for the mode.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _integers_to_rgb(image)
    if image.mode == "F":
        return _floats_to_rgb(image)
    if image.has_transparency_data:
        return _flatten(image, alpha)
    notes = (f"{image.mode} converted to RGB",) if image.mode in {"CMYK", "LAB", "HSV"} else ()
    return image.convert("RGB"), notes


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror a picture as its EXIF orientation (1 to 8) says; 1 and anything unknown leave it alone."""
    transpose = _SUN_TO_TRANSPOSE.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def profile_note(profile: Any) -> str | None:
    """Say that an embedded ICC profile is not applied, unless it is sRGB or absent.

    Image models read the stored numbers as sRGB, so the guard does too; a profile is never parsed, hence a broken one
    is harmless.
    """
    if not profile or not isinstance(profile, bytes):
        return None
    named_srgb = b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    return None if named_srgb else f"ICC profile of {len(profile)} bytes ignored, colors read as sRGB"


def _integers_to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Scale 16- and 32-bit gray to 8 bits: by 65535 where the values fit it, else by their own range."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        return _gray((values.astype(np.uint32) + 128) // 257), ("16-bit scaled to 8",)
    return _gray(_stretch(values.astype(np.float64), low, high)), (
        f"32-bit values {low:.0f} to {high:.0f} stretched to 8 bits",
    )


def _floats_to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Scale a float picture to 8 bits: 0..1 and 0..255 are taken at face value, any other range is stretched."""
    values = np.asarray(image).astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no pixel of this float picture is finite")
    low, high = float(values[finite].min()), float(values[finite].max())
    holes = int(values.size - finite.sum())
    values = np.where(finite, values, low)
    notes = (f"{holes} NaN or infinite pixels painted black",) if holes else ()
    if low >= 0 and high <= 1:
        scaled, how = values * 255.0, "0 to 1"
    elif low >= 0 and high <= 255:
        scaled, how = values, "0 to 255"
    else:
        scaled, how = _stretch(values, low, high), f"{low:.4g} to {high:.4g}, stretched"
    return _gray(np.where(finite, scaled, 0.0)), (f"float values {how} to 8 bits", *notes)


def _stretch(values: np.ndarray[Any, Any], low: float, high: float) -> np.ndarray[Any, Any]:
    """Map low..high to 0..255; halving first keeps the span of the largest doubles finite."""
    span = high / 2 - low / 2
    return np.zeros_like(values) if span == 0 else (values / 2 - low / 2) / span * 255.0


def _gray(values: np.ndarray[Any, Any]) -> Image.Image:
    """Round gray levels [H, W] in 0..255 to an RGB image."""
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


def _flatten(image: Image.Image, alpha: Alpha) -> tuple[Image.Image, tuple[str, ...]]:
    """Lay a picture with transparency on a plain ground; an alpha channel that is opaque everywhere is just dropped."""
    straight = image.convert("LA") if image.mode == "La" else image  # Pillow turns premultiplied gray into LA only
    rgba = straight.convert("RGBA")
    opacity = rgba.getchannel("A")
    hidden = 1.0 - opacity.histogram()[255] / (rgba.width * rgba.height)
    if hidden == 0:
        return rgba.convert("RGB"), ()
    share = f"{100 * hidden:.3g} % of the pixels are see-through"
    if alpha is Alpha.DROP:
        return rgba.convert("RGB"), (f"alpha dropped ({share}), stored colors judged",)
    ground = Image.new("RGB", rgba.size, alpha.value)
    ground.paste(rgba.convert("RGB"), mask=opacity)
    return ground, (f"alpha composited on {alpha.value} ({share}), what they hide is not judged",)
