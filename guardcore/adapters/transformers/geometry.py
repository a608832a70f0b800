"""Which part of a picture a model sees, and where in the picture the tokens of its one tile look."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from guardcore.patches import Box

Cell = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture, not necessarily whole."""

# Image processors that make one square tile of a picture, whatever backend runs them.
_ONE_TILE = ("CLIPImageProcessor", "SiglipImageProcessor", "Gemma3ImageProcessor", "LlavaImageProcessor")
_BACKENDS = ("Fast", "Pil")


# A processor that makes the shorter side 336 pixels needs gigabytes for a line of a few thousand.
_MOST_ASPECT = 200


@dataclass(frozen=True)
class View:
    """The part of a picture that becomes a tile; coordinates are pixels of the picture and need not be whole.

    Attributes:
        left, top, width, height: of that part.
        side: of the tile, in its own pixels.
    """

    left: float
    top: float
    width: float
    height: float
    side: int

    def cells(self, rows: int, columns: int, read: int | None = None) -> list[Cell]:
        """Cut what the model reads into rows x columns cells (x0, y0, x1, y1), row by row.

        `read` is the part of the tile's side that the patches cover, where they don't divide it; default all of it.
        """
        share = (read or self.side) / self.side
        wide, high = self.width * share / columns, self.height * share / rows
        return [
            (self.left + x * wide, self.top + y * high, self.left + (x + 1) * wide, self.top + (y + 1) * high)
            for y in range(rows)
            for x in range(columns)
        ]


def why_not_a_picture(image: object) -> str | None:
    """None for a picture that a processor can be given, else what is wrong with it, as text."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        return f"expected a PIL image; got {type(image).__name__} {image!s:.80}"
    short, long = sorted(image.size)
    if short < 1 or long > _MOST_ASPECT * short:
        return f"expected pixels, and sides of at most {_MOST_ASPECT} to 1; got {image.width} x {image.height}"
    return None


def why_not_one_tile(image_processor: Any) -> str | None:
    """None where an image processor makes one square tile of a picture, else the reason why not, as text."""
    kind = type(image_processor).__name__
    bare = kind
    for backend in _BACKENDS:
        bare = bare.removesuffix(backend)
    if bare not in _ONE_TILE:
        return f"{kind} is not known to make one square tile of a picture"
    for setting in ("do_pan_and_scan", "do_pad"):
        if getattr(image_processor, setting, None):
            return f"{kind} has {setting} set"
    if not getattr(image_processor, "do_resize", False):
        return f"{kind} does not resize"
    return None if _tile(image_processor) else f"{kind} makes tiles that are not square, or pads them"


def view(image_processor: Any, size: tuple[int, int]) -> View:
    """What becomes of a picture of `size` (width, height): squeezed into a square, or cropped at the center.

    The crop is that of transformers: the shorter side becomes s, the longer int(s long / short), and the tile of side
    c <= s starts at int((length - c) / 2).

    Raises:
        ValueError: the image processor makes anything but one square tile.
    """
    reason = why_not_one_tile(image_processor)
    if reason is not None:
        raise ValueError(f"processor: expected one square tile a picture; {reason}")
    shortest, side = _tile(image_processor) or (0, 0)
    width, height = size
    if not shortest:
        return View(0, 0, width, height, side)
    scaled = [shortest if length == min(size) else int(shortest * length / min(size)) for length in size]
    left, top = (int((length - side) / 2) for length in scaled)
    horizontal, vertical = width / scaled[0], height / scaled[1]
    return View(left * horizontal, top * vertical, side * horizontal, side * vertical, side)


def outward(cell: Cell, size: tuple[int, int]) -> Box:
    """A cell as whole pixels: rounded outward, within the picture, never empty."""
    width, height = size
    left, top = min(math.floor(cell[0] + _SLACK), width - 1), min(math.floor(cell[1] + _SLACK), height - 1)
    right, bottom = min(math.ceil(cell[2] - _SLACK), width), min(math.ceil(cell[3] - _SLACK), height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


# Rounding of the cells' edges must not add a pixel to them.
_SLACK = 1e-6


def _tile(image_processor: Any) -> tuple[int, int] | None:
    """(shorter side after the resize, or 0 for a squeeze; side of the tile)."""
    size, crop = image_processor.size, None
    if getattr(image_processor, "do_center_crop", None):
        crop = image_processor.crop_size
    shortest = _entry(size, "shortest_edge")
    if shortest and not _entry(size, "longest_edge"):
        side = _square(crop)
        return (shortest, side) if side and side <= shortest else None
    side = _square(size)
    return (0, side) if side and crop is None else None


def _square(size: Any) -> int | None:
    height, width = _entry(size, "height"), _entry(size, "width")
    return height if height == width else None


def _entry(size: Any, name: str) -> int | None:
    # transformers 4 keeps sizes as dicts, 5 as objects that also answer to `get`.
    if size is None:
        return None
    value = size.get(name) if hasattr(size, "get") else getattr(size, name, None)
    return None if value is None else int(value)
