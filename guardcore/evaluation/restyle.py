"""Changes of drawing style, so that a model trained on a few art sets meets more than a few.

Each function keeps the silhouette (apart from an added outline), so the ground truth of the pixels stays valid.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps


def restyle(rng: np.random.Generator, sprite: Image.Image, strength: float) -> Image.Image:
    """A sprite (RGBA) redrawn at random: colors, number of tones, inner edges, outline.

    strength is the probability scale of each change; 0 returns the sprite untouched.
    """
    if strength == 0 or rng.random() > strength:
        return sprite
    alpha = sprite.getchannel("A")
    colors = _recolor(rng, sprite.convert("RGB"))
    if rng.random() < 0.25:
        colors = _ink(colors, rng.uniform(0.5, 1.0))
    sprite = Image.merge("RGBA", (*colors.split(), alpha))
    if rng.random() < 0.35:
        sprite = _outline(sprite, dark=rng.random() < 0.75)
    return sprite


def _recolor(rng: np.random.Generator, colors: Image.Image) -> Image.Image:
    choice = rng.random()
    if choice < 0.12:
        colors = ImageOps.grayscale(colors).convert("RGB")
    elif choice < 0.17:
        colors = ImageOps.invert(colors)
    elif choice < 0.45:
        colors = _mix(rng, colors)
    elif choice < 0.55:
        colors = _duotone(rng, colors)
    if rng.random() < 0.25:
        colors = colors.quantize(int(rng.integers(3, 8)), Image.Quantize.FASTOCTREE).convert("RGB")
    if rng.random() < 0.7:
        colors = ImageEnhance.Color(colors).enhance(rng.uniform(0.3, 1.6))
        colors = ImageEnhance.Brightness(colors).enhance(rng.uniform(0.65, 1.35))
        colors = ImageEnhance.Contrast(colors).enhance(rng.uniform(0.7, 1.3))
    return colors


def _mix(rng: np.random.Generator, colors: Image.Image) -> Image.Image:
    """A rotation of the hue: a random blend of the three channels whose rows sum to one."""
    mixing = np.eye(3) * rng.uniform(0.2, 1.0) + rng.dirichlet(np.ones(3) * 0.6, 3)
    mixing /= mixing.sum(1, keepdims=True)
    matrix = tuple(float(v) for row in mixing for v in (*row, 0.0))
    return colors.convert("RGB", matrix)


def _duotone(rng: np.random.Generator, colors: Image.Image) -> Image.Image:
    dark, light = rng.integers(0, 90, 3), rng.integers(140, 256, 3)
    return ImageOps.colorize(ImageOps.grayscale(colors), tuple(int(v) for v in dark), tuple(int(v) for v in light))


def _ink(colors: Image.Image, strength: float) -> Image.Image:
    """Darkens inner edges, like a drawing whose shapes are traced with a pen."""
    gray = ImageOps.grayscale(colors)
    steps = ImageChops.difference(gray.filter(ImageFilter.MaxFilter(3)), gray.filter(ImageFilter.MinFilter(3)))
    keep = steps.point([int(255 * (1 - strength * min(1.0, max(0.0, (v - 25) / 40)))) for v in range(256)])
    return ImageChops.multiply(colors, Image.merge("RGB", (keep, keep, keep)))


def _outline(sprite: Image.Image, dark: bool) -> Image.Image:
    """A line of one or two pixels around the silhouette: black like ink, or white like a sticker."""
    width = 3 if max(sprite.size) < 40 else 5
    padded = ImageOps.expand(sprite, width // 2, (0, 0, 0, 0))
    grown = padded.getchannel("A").filter(ImageFilter.MaxFilter(width))
    base = Image.new("RGBA", padded.size, (0, 0, 0, 0) if dark else (255, 255, 255, 0))
    base.putalpha(grown)
    return Image.alpha_composite(base, padded)


def degrade(rng: np.random.Generator, picture: Image.Image, strength: float) -> Image.Image:
    """Blur, color shift, noise and JPEG artifacts on a finished RGB picture; strength 0 returns it untouched."""
    if rng.random() >= strength:
        return picture
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.1)))
    if rng.random() < 0.5:
        picture = ImageEnhance.Color(picture).enhance(rng.uniform(0.4, 1.5))
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.7, 1.3))
    if rng.random() < 0.25:
        picture = _noise(rng, picture)
    if rng.random() < 0.25:
        picture = _jpeg(picture, int(rng.integers(30, 90)))
    return picture


def _noise(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    values: NDArray[np.float32] = np.asarray(picture, np.float32)
    grain = rng.standard_normal(values.shape, np.float32) * np.float32(rng.uniform(3, 14))
    return Image.fromarray(np.clip(values + grain, 0, 255).astype(np.uint8))


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")
