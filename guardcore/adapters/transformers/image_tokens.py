"""The tokens of a batch that stand for pictures, and where in the pictures they look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from guardcore.adapters.transformers.geometry import Cell, View, view
from guardcore.calibration.spans import Range
from guardcore.defenses.protocol import Request
from guardcore.detector.regions import Region


def runs(flags: Sequence[bool]) -> tuple[Range, ...]:
    """The stretches of True, as half-open ranges."""
    padded = [False, *flags, False]
    edges = [index for index in range(len(flags) + 1) if padded[index] != padded[index + 1]]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


class ImageTokens:
    """The image tokens of a batch.

    Args:
        processor: of the model.
        inputs: what the processor made of the requests.
        requests: in the same order.
        token_id: the token that stands for a piece of a picture; None asks the processor.
    """

    def __init__(self, processor: Any, inputs: Any, requests: Sequence[Request], token_id: int | None) -> None:
        # Pictures that enter by cross-attention have one token that is text like any other.
        self._crosses = "cross_attention_mask" in inputs
        self._token = _image_token(processor) if token_id is None else token_id
        self._images = processor.image_processor
        self._grid: Any = inputs.get("image_grid_thw")
        self._first = [sum(len(other.images) for other in requests[:index]) for index in range(len(requests))]

    def spans(self, index: int, request: Request, ids: Sequence[int]) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
        """Ranges of a request's image tokens, and of those among them that look at its unsafe regions.

        Raises:
            ValueError: there are pictures without tokens, or unsafe regions and tokens without a known place.
        """
        places = [] if self._crosses else [place for place, token in enumerate(ids) if token == self._token]
        if request.images and not places and not self._crosses:
            raise ValueError(f"image_token_id: expected a token of the prompt; {self._token} is none")
        unsafe: set[int] = set()
        if any(request.unsafe):
            unsafe = self._unsafe(self._first[index], request, places)
        members = set(places)
        return (
            runs([place in members for place in range(len(ids))]),
            runs([place in unsafe for place in range(len(ids))]),
        )

    def _unsafe(self, first: int, request: Request, places: Sequence[int]) -> set[int]:
        cells: list[tuple[Cell, Sequence[Region]]] = []
        for number, (image, regions) in enumerate(zip(request.images, request.unsafe, strict=True)):
            size: tuple[int, int] = image.size  # type: ignore[union-attr]  # exceptions were refused before
            found = self._cells(first + number, size, len(places), len(request.images))
            cells += [(cell, regions) for cell in found]
        if len(cells) != len(places):
            raise ValueError(f"unsafe: expected a token for each of {len(cells)} cells; got {len(places)}")
        return {
            place
            for place, (cell, regions) in zip(places, cells, strict=True)
            if any(_overlaps(cell, region) for region in regions)
        }

    def _cells(self, number: int, size: tuple[int, int], tokens: int, pictures: int) -> list[Cell]:
        if self._grid is not None:
            _, rows, columns = (int(entry) // self._images.merge_size for entry in self._grid[number])
            return View(0, 0, *size, side=1).cells(rows, columns)
        side = math.isqrt(tokens // pictures)
        if not tokens or side * side * pictures != tokens:
            raise ValueError(f"unsafe: expected a square grid of tokens a picture; got {tokens} tokens for {pictures}")
        return view(self._images, size).cells(side, side)


def _image_token(processor: Any) -> int:
    # A Gemma processor's `image_token` is the placeholder, its tokenizer's the token that stands for pieces.
    for holder in (processor.tokenizer, processor):
        token = getattr(holder, "image_token_id", None)
        if token is not None:
            return int(token)
    raise ValueError(f"image_token_id: expected the model's, {type(processor).__name__} does not say; got None")


def _overlaps(cell: Cell, region: Region) -> bool:
    left, top, right, bottom = cell
    return any(x0 < right and left < x1 and y0 < bottom and top < y1 for x0, y0, x1, y1 in region.rectangles)
