"""How a picture becomes patches: ViT tokens, a grid of crops, or random views.

Nothing goes unscreened: a picture that is nearly square is resized whole into one tile, a tall or wide one is cut into
overlapping square tiles, and nothing is ever center-cropped. Every pixel lies in at least one patch.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from guardcore.encoders.protocol import Encoder, ImageEmbedding

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the original picture; right and bottom are exclusive."""

# Area and aspect of a random view: the ranges of the usual RandomResizedCrop, which AWT and COLA use.
_VIEW_AREA = (0.08, 1.0)
_VIEW_ASPECT = (3 / 4, 4 / 3)

# A slip such as "grid:1000" would mean a million encoder passes a picture.
_LIMITS = {"grid_size": 64, "views": 1024, "max_tiles": 4096}


@dataclass(frozen=True)
class PatchSet:
    """The patches of one picture.

    Attributes:
        embeddings: `[N, D]` fp32, tile by tile, each row by row; for `grid` and `views` one global vector a crop.
        image: `[V, D]` fp32, the global vectors of the V tiles, crops or views that were encoded.
        boxes: `[N, 4]` int64 on the CPU, (x0, y0, x1, y1) in pixels of the original, half-open, rounded outward.
            None for `views`.
        size: width and height of the original.
    """

    embeddings: Tensor
    image: Tensor
    boxes: Tensor | None
    size: tuple[int, int]


@dataclass(frozen=True)
class PatchMode:
    """What counts as a patch, and how a picture that is not square is tiled.

    Attributes:
        kind: `tokens` (the encoder's own patches of each tile), `grid` (each tile cut into grid_size**2 crops, each
            encoded as a picture; GuardAlign's reading), `views` (each tile, and views - 1 random crops and flips; AWT
            and COLA).
        grid_size: crops a side of a tile, for `grid`; 1 to 64.
        views: pictures encoded for a square picture, the whole one included, for `views`; 1 to 1024.
        seed: of the random views. The same seed and picture size give the same views, whatever else is in the list.
        overlap: share of a tile's side that the next tile repeats, at least, in [0, 1).
        max_stretch: a picture up to this aspect ratio is one tile, resized non-uniformly. At least 1.
        max_tiles: limit on the tiles of one picture, 1 to 4096. An even longer picture gets this many oblong tiles:
            coarser, but never cropped.

    Raises:
        ValueError: a field is out of its range.
    """

    kind: Literal["tokens", "grid", "views"] = "tokens"
    grid_size: int = 4
    views: int = 16
    seed: int = 0
    overlap: float = 0.25
    max_stretch: float = 1.15
    max_tiles: int = 32

    def __post_init__(self) -> None:
        """Check every field."""
        if self.kind not in ("tokens", "grid", "views"):
            raise ValueError(f'kind: expected "tokens", "grid" or "views"; got {self.kind!r}')
        for field, limit in _LIMITS.items():
            if not 1 <= getattr(self, field) <= limit:
                raise ValueError(f"{field}: expected 1 to {limit}; got {getattr(self, field)!r}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap: expected a share in [0, 1); got {self.overlap!r}")
        if not self.max_stretch >= 1:
            raise ValueError(f"max_stretch: expected an aspect ratio of at least 1; got {self.max_stretch!r}")

    @classmethod
    def parse(cls, text: str) -> PatchMode:
        """Read `tokens`, `grid:4` or `views:16`; the number may be left out.

        Raises:
            ValueError: the text has none of these forms.
        """
        kind, colon, number = text.strip().partition(":")
        count = int(number) if number.isascii() and number.isdigit() else None
        if kind == "tokens" and not colon:
            return cls()
        if kind == "grid" and (count or not colon):
            return cls(kind="grid", grid_size=count or cls.grid_size)
        if kind == "views" and (count or not colon):
            return cls(kind="views", views=count or cls.views)
        raise ValueError(f'patches: expected "tokens", "grid:N" or "views:N" with N >= 1; got {text!r}')

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every field that changes this kind's patches."""
        fields: dict[str, object] = {
            "format": 1,
            "kind": self.kind,
            "overlap": self.overlap,
            "max_stretch": self.max_stretch,
            "max_tiles": self.max_tiles,
        }
        if self.kind == "grid":
            fields["grid_size"] = self.grid_size
        if self.kind == "views":
            fields |= {"views": self.views, "seed": self.seed, "area": _VIEW_AREA, "aspect": _VIEW_ASPECT}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return {"tokens": "tokens", "grid": f"grid:{self.grid_size}", "views": f"views:{self.views}"}[self.kind]


def tile_boxes(width: int, height: int, mode: PatchMode) -> list[Box]:
    """Cover a picture with tiles, from the top left.

    With short side s and long side l: one tile when l / s <= max_stretch; else n squares of side s, evenly spread, with
    n = 1 + ceil((l - s) / (s (1 - overlap))). When n exceeds max_tiles, max_tiles oblong tiles with the same overlap.
    """
    short, long = min(width, height), max(width, height)
    if long / short <= mode.max_stretch:
        return [(0, 0, width, height)]
    step = max(1, int(short * (1 - mode.overlap)))
    count, side = 1 - (short - long) // step, short
    if count > mode.max_tiles:
        count = mode.max_tiles
        side = min(long, _ceil_ratio(long, 1 + (count - 1) * (1 - mode.overlap)))
    starts = [index * (long - side) // max(1, count - 1) for index in range(count)]
    if width > height:
        return [(start, 0, start + side, height) for start in starts]
    return [(0, start, width, start + side) for start in starts]


def cell_boxes(box: Box, cells: int) -> list[Box]:
    """Cut a box into cells x cells boxes, row by row, rounded outward to whole pixels: none empty, none missed."""
    left, top, right, bottom = box
    columns = [(left + low, left + high) for low, high in _cut(right - left, cells)]
    rows = [(top + low, top + high) for low, high in _cut(bottom - top, cells)]
    return [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def extract_patches(
    encoder: Encoder, images: Sequence[Image.Image], mode: PatchMode = PatchMode(), *, batch_size: int = 32
) -> list[PatchSet]:
    """Embed pictures patch by patch.

    Tiles of all pictures are encoded in batches of at most `batch_size`, and no more than a batch of them is held as
    pixels, whatever the pictures' number and shape. But for rounding in the encoder, the result does not depend on it.

    Args:
        encoder: any `Encoder`.
        images: decoded pictures, upright (EXIF orientation applied).
        mode: what counts as a patch.
        batch_size: tiles an encoder call, at least 1.

    Raises:
        ValueError: `batch_size` is below 1, or a picture has no pixels; the message names its index.
        TypeError: an entry is not a PIL image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1; got {batch_size!r}")
    for index, image in enumerate(images):
        _check_image(index, image)
    plans = [_plan(image.size, mode) for image in images]
    crops = (_cut_out(image, crop) for image, plan in zip(images, plans, strict=True) for crop in plan)
    pieces = _pieces(encoder, crops, batch_size)
    sizes = [image.size for image in images]
    return [
        _assemble(encoder.grid, size, mode, plan, list(islice(pieces, len(plan))))
        for size, plan in zip(sizes, plans, strict=True)
    ]


class _Crop(NamedTuple):
    box: Box
    flipped: bool = False


class _Piece(NamedTuple):
    patches: Tensor  # [n, D]
    image: Tensor  # [D]


def _plan(size: tuple[int, int], mode: PatchMode) -> list[_Crop]:
    tiles = tile_boxes(*size, mode)
    if mode.kind == "grid":
        return [_Crop(cell) for tile in tiles for cell in cell_boxes(tile, mode.grid_size)]
    crops = [_Crop(tile) for tile in tiles]
    return crops + list(_random_views(size, mode)) if mode.kind == "views" else crops


def _random_views(size: tuple[int, int], mode: PatchMode) -> Iterator[_Crop]:
    # Seeded by a string: Python promises the same sequence for it in every version and process.
    width, height = size
    draw = random.Random(f"guardcore views {mode.seed} {width}x{height}")
    for _ in range(mode.views - 1):
        area = width * height * draw.uniform(*_VIEW_AREA)
        aspect = draw.uniform(*_VIEW_ASPECT)
        view_width = min(width, max(1, round((area * aspect) ** 0.5)))
        view_height = min(height, max(1, round((area / aspect) ** 0.5)))
        left, top = draw.randint(0, width - view_width), draw.randint(0, height - view_height)
        yield _Crop((left, top, left + view_width, top + view_height), draw.random() < 0.5)


def _pieces(encoder: Encoder, crops: Iterator[Image.Image], batch_size: int) -> Iterator[_Piece]:
    while batch := list(islice(crops, batch_size)):
        embedding: ImageEmbedding = encoder.embed_images(encoder.preprocess(batch))
        for patches, image in zip(embedding.patches, embedding.image, strict=True):
            yield _Piece(patches, image)


def _assemble(grid: int, size: tuple[int, int], mode: PatchMode, plan: list[_Crop], pieces: list[_Piece]) -> PatchSet:
    image = torch.stack([piece.image for piece in pieces])
    if mode.kind == "views":
        return PatchSet(image, image, None, size)
    if mode.kind == "grid":
        return PatchSet(image, image, torch.tensor([crop.box for crop in plan]), size)
    boxes = [cell for crop in plan for cell in cell_boxes(crop.box, grid)]
    return PatchSet(torch.cat([piece.patches for piece in pieces]), image, torch.tensor(boxes), size)


def _cut_out(image: Image.Image, crop: _Crop) -> Image.Image:
    piece = image if crop.box == (0, 0, *image.size) else image.crop(crop.box)
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flipped else piece


def _cut(length: int, parts: int) -> list[tuple[int, int]]:
    return [(index * length // parts, -(-(index + 1) * length // parts)) for index in range(parts)]


def _ceil_ratio(length: int, parts: float) -> int:
    # One pixel more than the division asks for: rounding of the even spread must not open a gap between two tiles.
    return int(length / parts) + 1


def _check_image(index: int, image: object) -> None:
    if not isinstance(image, Image.Image):
        raise TypeError(f"images[{index}]: expected a PIL image; got {type(image).__name__}")
    if min(image.size) < 1:
        raise ValueError(f"images[{index}]: expected at least one pixel; got {image.size[0]} x {image.size[1]}")
