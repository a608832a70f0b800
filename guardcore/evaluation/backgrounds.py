"""Backgrounds of generated scenes: plain, gradient, noise, stripes, shapes, or a piece of a photograph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

Color = tuple[int, int, int]


def draw_background(
    rng: np.random.Generator, size: int, photographs: Sequence[Image.Image], share: float
) -> Image.Image:
    """A size x size RGB picture; with probability `share` a random piece of one of the photographs."""
    if photographs and rng.random() < share:
        return _photograph(rng, size, photographs[int(rng.integers(len(photographs)))])
    drawers: tuple[Callable[[np.random.Generator, int], Image.Image], ...] = (
        _plain,
        _gradient,
        _clouds,
        _stripes,
        _shapes,
        _grain,
    )
    return drawers[int(rng.integers(len(drawers)))](rng, size)


def _color(rng: np.random.Generator) -> Color:
    # Half of the colors are pale or dark like paper and walls; the others are anything.
    if rng.random() < 0.5:
        level, tint = rng.integers(0, 256), rng.integers(-25, 26, 3)
        red, green, blue = np.clip(level + tint, 0, 255)
    else:
        red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def _picture(values: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _plain(rng: np.random.Generator, size: int) -> Image.Image:
    return Image.new("RGB", (size, size), _color(rng))


def _gradient(rng: np.random.Generator, size: int) -> Image.Image:
    first, second = np.array(_color(rng)), np.array(_color(rng))
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size)
    ramp = np.clip(0.5 + axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle), 0, 1)[..., None]
    return _picture(first * (1 - ramp) + second * ramp)


def _clouds(rng: np.random.Generator, size: int) -> Image.Image:
    """Color noise on several scales, like cloth, clouds or out-of-focus rooms."""
    total = np.zeros((size, size, 3), np.float32)
    cells = int(rng.integers(2, 6))
    while cells <= min(size, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.float32) - 128
        total += layer / cells ** rng.uniform(0.2, 1.0)
        cells *= 2
    contrast = rng.uniform(20, 70) / max(float(total.std()), 1e-6)
    return _picture(np.array(_color(rng), np.float32) + total * contrast)


def _stripes(rng: np.random.Generator, size: int) -> Image.Image:
    first, second = np.array(_color(rng)), np.array(_color(rng))
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.4) * size
    axis = np.arange(size)
    phase = (axis[None] * np.cos(angle) + axis[:, None] * np.sin(angle)) * 2 * np.pi / period
    wave = (np.sin(phase) > rng.uniform(-0.5, 0.5))[..., None]
    if rng.random() < 0.4:  # a checkerboard is the product of two stripe patterns
        other = (axis[None] * np.sin(angle) - axis[:, None] * np.cos(angle)) * 2 * np.pi / period
        wave = wave ^ (np.sin(other) > 0)[..., None]
    return _picture(np.where(wave, first, second).astype(np.float32))


def _shapes(rng: np.random.Generator, size: int) -> Image.Image:
    """Random boxes, ellipses, lines and polygons: clutter with edges and corners that means nothing."""
    picture = Image.new("RGB", (size, size), _color(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 25))):
        center, reach = rng.uniform(0, size, 2), rng.uniform(0.03, 0.35) * size
        points = [tuple(float(v) for v in center + rng.uniform(-reach, reach, 2)) for _ in range(4)]
        (x0, y0), (x1, y1) = points[0], points[1]
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        outline = _color(rng) if rng.random() < 0.4 else None
        kind = int(rng.integers(4))
        if kind == 0:
            draw.rectangle(box, _color(rng), outline)
        elif kind == 1:
            draw.ellipse(box, _color(rng), outline)
        elif kind == 2:
            draw.polygon(points, _color(rng), outline)
        else:
            draw.line(points, _color(rng), max(1, int(rng.uniform(0.005, 0.05) * size)))
    return picture


def _grain(rng: np.random.Generator, size: int) -> Image.Image:
    values = np.array(_color(rng)) + rng.normal(0, rng.uniform(5, 50), (size, size, 1 if rng.random() < 0.5 else 3))
    return _picture(values)


def _photograph(rng: np.random.Generator, size: int, photograph: Image.Image) -> Image.Image:
    """A random square piece, half to all of the shorter side, mirrored and recolored at random."""
    shorter = min(photograph.size)
    side = int(shorter * rng.uniform(0.3, 1.0))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    piece = photograph.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    piece = ImageEnhance.Color(piece).enhance(rng.uniform(0.3, 1.5))
    return ImageEnhance.Brightness(piece).enhance(rng.uniform(0.6, 1.3))
