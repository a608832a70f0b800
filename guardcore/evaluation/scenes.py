"""Generated scenes with a known object under every pixel.

A scene is a background (plain, gradient, noise, stripes, shapes or a photograph) with sprites of drawn concepts on
top. Training of the built-in encoder, the tests and the detection benchmark all draw from here, so that the ground
truth of a patch is never a matter of annotation: `Scene.owner` says which object a pixel shows.

Everything is deterministic: scene `index` of a generator depends on the generator's seed and on nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guardcore.evaluation.backgrounds import draw_background
from guardcore.evaluation.restyle import degrade, restyle

Kind = Literal["any", "benign", "unsafe"]

# Large objects in number may never all stay visible; the last drawing is then taken as it is.
_REDRAWS = 20


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn: its name, further words for it, and its unsafe category (None when harmless)."""

    name: str
    keywords: tuple[str, ...]
    category: str | None
    codepoint: str
    group: str
    lookalike: bool = False


@dataclass(frozen=True)
class Art:
    """Sprites of every concept in every style.

    `sprites[style][i]` is concept i cropped to its visible pixels (RGBA), or None where the style lacks it.
    """

    concepts: tuple[Concept, ...]
    sprites: Mapping[str, tuple[Image.Image | None, ...]]

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles that were loaded, in file order."""
        return tuple(self.sprites)

    @property
    def categories(self) -> tuple[str, ...]:
        """The unsafe categories, sorted."""
        return tuple(sorted({c.category for c in self.concepts if c.category is not None}))


@dataclass(frozen=True)
class SceneObject:
    """One drawn object: concept index, style, box (left, top, right, bottom) in pixels and the share left uncovered."""

    concept: int
    style: str
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class Scene:
    """A picture and its ground truth.

    image: uint8 [S, S, 3]. owner: int16 [S, S], the position in `objects` of the object on top, -1 for background.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.int16]
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class SceneOptions:
    """What scenes look like. `scale` is an object's longer side as a share of the image side.

    augment: probability of each style change of a sprite (0 = the art as published).
    degrade: probability of blur, noise, JPEG and color shift of the finished scene.
    photographs: share of scenes whose background is a photograph, if there are any.
    visible: the share of each object that must stay uncovered; a scene that fails is drawn again, a few times at most.
    """

    size: int = 128
    objects: tuple[int, int] = (1, 6)
    scale: tuple[float, float] = (0.2, 0.5)
    rotation: float = 30.0
    augment: float = 0.0
    degrade: float = 0.0
    photographs: float = 0.5
    visible: float = 0.5


@dataclass(frozen=True)
class SceneGenerator:
    """Draws scenes from art.

    styles: the art styles to draw with. photographs: RGB pictures for backgrounds (may be empty).
    weights: relative frequency per concept, float [number of concepts]; None is uniform.
    Raises ValueError for a style that the art does not hold.
    """

    art: Art
    styles: tuple[str, ...]
    photographs: Sequence[Image.Image] = ()
    seed: int = 0
    options: SceneOptions = field(default_factory=SceneOptions)
    weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        missing = [s for s in self.styles if s not in self.art.sprites]
        if missing or not self.styles:
            raise ValueError(f"styles: expected some of {self.art.styles}, got {self.styles}")

    def scene(self, index: int, kind: Kind = "any") -> Scene:
        """Scene number `index`. kind: "benign" has no unsafe object, "unsafe" exactly one, "any" draws freely."""
        rng = np.random.default_rng([self.seed, index])
        scene = self._draw(rng, kind)
        for _ in range(_REDRAWS):
            if min(thing.visible for thing in scene.objects) >= self.options.visible:
                break
            scene = self._draw(rng, kind)
        return scene

    def _draw(self, rng: np.random.Generator, kind: Kind) -> Scene:
        options = self.options
        canvas = draw_background(rng, options.size, self.photographs, options.photographs)
        owner = np.full((options.size, options.size), -1, np.int16)
        placed: list[tuple[int, str, tuple[int, int, int, int], int]] = []
        for concept in self._choose(rng, kind):
            style, sprite = self._sprite(rng, concept)
            left, top = _position(rng, sprite, options.size, owner)
            box, area = _paste(canvas, owner, sprite, left, top, len(placed))
            placed.append((concept, style, box, area))
        image = degrade(rng, canvas, options.degrade)
        counts = np.bincount(owner[owner >= 0].astype(np.int64), minlength=len(placed))
        objects = tuple(
            SceneObject(concept, style, box, float(counts[i]) / max(area, 1))
            for i, (concept, style, box, area) in enumerate(placed)
        )
        return Scene(np.asarray(image), owner, objects)

    def _choose(self, rng: np.random.Generator, kind: Kind) -> list[int]:
        """Distinct concepts from bottom to top, available in a style; fewer than asked for when the art has no more."""
        weights = self._frequencies
        unsafe = np.array([c.category is not None for c in self.art.concepts])
        low, high = self.options.objects
        count = int(rng.integers(low, high + 1))
        if kind == "any":
            return list(_pick(rng, weights, count))
        chosen = list(_pick(rng, weights * ~unsafe, count))
        if kind == "unsafe":
            chosen.insert(int(rng.integers(len(chosen) + 1)), int(_pick(rng, weights * unsafe, 1)[0]))
        return chosen

    @cached_property
    def _frequencies(self) -> NDArray[np.float64]:
        present = np.zeros(len(self.art.concepts))
        for style in self.styles:
            present += [sprite is not None for sprite in self.art.sprites[style]]
        weights = (present > 0).astype(np.float64)
        return weights if self.weights is None else weights * self.weights

    def _sprite(self, rng: np.random.Generator, concept: int) -> tuple[str, Image.Image]:
        """One concept in a random style, restyled, scaled, flipped and rotated."""
        options = self.options
        choices = [s for s in self.styles if self.art.sprites[s][concept] is not None]
        style = choices[int(rng.integers(len(choices)))]
        sprite = self.art.sprites[style][concept]
        assert sprite is not None
        side = options.size * rng.uniform(*options.scale)
        ratio = side / max(sprite.size)
        stretch = rng.uniform(0.85, 1.18) ** 0.5 if options.augment else 1.0
        width, height = sprite.width * ratio * stretch, sprite.height * ratio / stretch
        sprite = sprite.resize((max(3, round(width)), max(3, round(height))), Image.Resampling.BICUBIC)
        sprite = restyle(rng, sprite, options.augment)
        if rng.random() < 0.5:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        angle = rng.uniform(-options.rotation, options.rotation)
        return style, sprite.rotate(angle, Image.Resampling.BICUBIC, expand=True)


def load_art(folder: Path | str, styles: Sequence[str] | None = None) -> Art:
    """Reads `concepts.json` and one `<style>.webp` atlas per style from a folder.

    styles: which atlases to read; None reads every style that the table lists.
    Raises FileNotFoundError when the table or an atlas is missing, ValueError when an atlas does not fit the table.
    """
    folder = Path(folder)
    table = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    concepts = tuple(
        Concept(row["name"], tuple(row["keywords"]), row["category"], row["codepoint"], row["group"], row["lookalike"])
        for row in table["concepts"]
    )
    names = list(table["styles"]) if styles is None else list(styles)
    cell, columns = table["cell"], table["columns"]
    sprites = {}
    for style in names:
        has = [style in row["styles"] for row in table["concepts"]]
        sprites[style] = _cut(folder / f"{style}.webp", has, cell, columns)
    return Art(concepts, sprites)


def _cut(path: Path, has: Sequence[bool], cell: int, columns: int) -> tuple[Image.Image | None, ...]:
    atlas = Image.open(path).convert("RGBA")
    rows = -(-len(has) // columns)
    if atlas.size != (columns * cell, rows * cell):
        raise ValueError(f"{path}: expected {columns * cell} x {rows * cell} pixels, got {atlas.size}")
    return tuple(_crop(atlas, i, cell, columns) if there else None for i, there in enumerate(has))


def _crop(atlas: Image.Image, index: int, cell: int, columns: int) -> Image.Image:
    row, column = divmod(index, columns)
    sprite = atlas.crop((column * cell, row * cell, (column + 1) * cell, (row + 1) * cell))
    # Lossy alpha leaves faint specks in the margin, which would make the box too large.
    box = sprite.getchannel("A").point([255 * (a > 40) for a in range(256)]).getbbox()
    return sprite.crop(box) if box else sprite


def _pick(rng: np.random.Generator, weights: NDArray[np.float64], count: int) -> list[int]:
    count = min(count, int((weights > 0).sum()))
    picks = rng.choice(len(weights), size=count, replace=False, p=weights / weights.sum())
    return [int(p) for p in picks]


def _position(rng: np.random.Generator, sprite: Image.Image, size: int, owner: NDArray[np.int16]) -> tuple[int, int]:
    """Top left corner: the first of a few random places that hides little of what is there, else the best of them."""
    limit = rng.uniform(0.0, 0.35)
    best, best_cover = (0, 0), 2.0
    for _ in range(8):
        # Up to a tenth of the sprite may leave the frame.
        left = int(rng.integers(-sprite.width // 10, max(size - sprite.width * 9 // 10, 1 - sprite.width // 10)))
        top = int(rng.integers(-sprite.height // 10, max(size - sprite.height * 9 // 10, 1 - sprite.height // 10)))
        window = owner[max(top, 0) : top + sprite.height, max(left, 0) : left + sprite.width]
        cover = float((window >= 0).mean())
        if cover < best_cover:
            best, best_cover = (left, top), cover
        if cover <= limit:
            break
    return best


def _paste(
    canvas: Image.Image, owner: NDArray[np.int16], sprite: Image.Image, left: int, top: int, index: int
) -> tuple[tuple[int, int, int, int], int]:
    """Draws the sprite, marks its pixels in `owner`, and returns its box and its number of pixels inside the frame."""
    size = canvas.width
    canvas.paste(sprite, (left, top), sprite)
    right, bottom = min(left + sprite.width, size), min(top + sprite.height, size)
    x, y = max(left, 0), max(top, 0)
    alpha = np.asarray(sprite.getchannel("A"))[y - top : bottom - top, x - left : right - left]
    mask = alpha > 127
    owner[y:bottom, x:right][mask] = index
    return (x, y, right, bottom), int(mask.sum())
