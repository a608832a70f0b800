"""Batches of drawn scenes with patch labels, drawn as they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from guardcore.evaluation.scenes import Art, Scene, SceneGenerator, SceneOptions, load_art

# A patch belongs to an object that covers at least SOLID of it; below FAINT coverage by all objects it is background.
# Between the two it is nobody's, and the loss skips it.
SOLID, FAINT = 0.3, 0.06
IGNORED = -1

# Training starts on few, large and little changed objects; small ones among clutter teach nothing at first.
EASY = SceneOptions(
    objects=(1, 4), scale=(0.3, 0.65), augment=0.35, degrade=0.3, rotation=25, photographs=0.4, visible=0.0
)
FULL = SceneOptions(objects=(1, 7), scale=(0.15, 0.6), augment=0.75, degrade=0.7, rotation=35, visible=0.0)
# It ends closer to the pictures that count, with less of every change.
LATE = SceneOptions(objects=(1, 7), scale=(0.15, 0.5), augment=0.5, degrade=0.4, rotation=32, visible=0.0)
EASY_SCENES = 18_000  # of each process


@dataclass(frozen=True)
class Batch:
    """images uint8 [B, S, S, 3]; labels int64 [B, N] concept, number of concepts for background, or IGNORED;
    weights float32 [B, N]; present bool [B, concepts]; concepts: the visible concepts of each scene."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    present: Tensor
    concepts: tuple[tuple[int, ...], ...]


def load_photographs(folder: Path) -> list[Image.Image]:
    """All JPEGs of a folder, by name, as RGB."""
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]


def coverage(scene: Scene, grid: int) -> NDArray[np.float32]:
    """Share of each patch that each object shows: float32 [objects, grid * grid]."""
    side = scene.owner.shape[0] // grid
    tiles = scene.owner.reshape(grid, side, grid, side).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    return np.stack([(tiles == i).mean(1, dtype=np.float32) for i in range(len(scene.objects))])


def patch_labels(scene: Scene, grid: int, background: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels and weights of the patches, both [grid * grid].

    An object's patches share a weight that grows with the root of its area, so that small objects are learned too.
    """
    shares = coverage(scene, grid)
    top, best = shares.argmax(0), shares.max(0)
    labels = np.full(grid * grid, IGNORED, np.int64)
    labels[shares.sum(0) < FAINT] = background
    weights = np.ones(grid * grid, np.float32)
    for i, thing in enumerate(scene.objects):
        own = (top == i) & (best >= SOLID)
        labels[own] = thing.concept
        weights[own] = max(int(own.sum()), 4) ** -0.5 * 4
    return labels, weights


def collate(scenes: Sequence[Scene], grid: int, concepts: int) -> Batch:
    """Scenes -> a batch."""
    pairs = [patch_labels(s, grid, concepts) for s in scenes]
    present = torch.zeros(len(scenes), concepts, dtype=torch.bool)
    visible = [tuple({o.concept for o in s.objects if o.visible > 0.25}) for s in scenes]
    for i, found in enumerate(visible):
        present[i, list(found)] = True
    return Batch(
        images=torch.from_numpy(np.stack([s.image for s in scenes])),
        labels=torch.from_numpy(np.stack([p[0] for p in pairs])),
        weights=torch.from_numpy(np.stack([p[1] for p in pairs])),
        present=present,
        concepts=tuple(visible),
    )


def training_weights(art: Art) -> NDArray[np.float64]:
    """How often a concept is drawn: unsafe ones 2.5 times, their look-alikes 1.3 times as often as the rest."""
    return np.array([2.5 if c.category else 1.3 if c.lookalike else 1.0 for c in art.concepts])


class SceneStream:
    """An endless stream of training batches; batch k depends on the seed, k and the stage alone.

    late: asked before every batch whether the last stage has begun.
    """

    def __init__(
        self, folder: Path, styles: Sequence[str], batch: int, seed: int, grid: int, late: Callable[[], bool]
    ) -> None:
        self.batch, self.grid, self.late = batch, grid, late
        self.art = load_art(folder, styles)
        photographs = load_photographs(folder / "photographs" / "train")
        weights = training_weights(self.art)
        self.easy, self.full, self.last = (
            SceneGenerator(self.art, tuple(styles), photographs, seed, options, weights)
            for options in (EASY, FULL, LATE)
        )

    def batches(self, first: int) -> Iterator[Batch]:
        """Batches number `first`, `first` + 1, ..."""
        for index in itertools.count(first * self.batch, self.batch):
            generator = self.easy if index < EASY_SCENES else self.last if self.late() else self.full
            yield collate([generator.scene(index + i) for i in range(self.batch)], self.grid, len(self.art.concepts))
