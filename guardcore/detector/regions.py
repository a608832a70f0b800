"""From flagged patches to regions of the original picture.

Patches are rectangles that may overlap (tiles of a wide picture do), so the picture is first cut along all their edges.
That lattice has about as many cells as there are patches, whatever the resolution, and everything here works on its
cells: covering, lowest score, connected components. Pixels appear only when somebody asks for a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
Bools = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lattice:
    """The cells cut out of a picture by the edges of all patches.

    xs [X+1], ys [Y+1]: int64 pixel coordinates of the cuts; spans [N, 4]: int64 cells (first column, first row, end
    column, end row) that each patch covers, ends exclusive.
    """

    xs: Ints
    ys: Ints
    spans: Ints

    @classmethod
    def of(cls, boxes: Ints, size: tuple[int, int]) -> Lattice:
        """Cut a picture of size (width, height) along boxes [N, 4] = x0, y0, x1, y1 in pixels, half-open."""
        width, height = size
        xs = np.unique(np.concatenate([boxes[:, [0, 2]].ravel(), [0, width]]).clip(0, width))
        ys = np.unique(np.concatenate([boxes[:, [1, 3]].ravel(), [0, height]]).clip(0, height))
        columns = np.searchsorted(xs, boxes[:, [0, 2]].clip(0, width))
        rows = np.searchsorted(ys, boxes[:, [1, 3]].clip(0, height))
        spans = np.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], axis=1)
        return cls(xs, ys, spans)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return len(self.ys) - 1, len(self.xs) - 1

    @property
    def area(self) -> Floats:
        """Share of the picture in each cell, float64 [Y, X]; sums to 1."""
        cells = np.outer(np.diff(self.ys), np.diff(self.xs)).astype(np.float64)
        return np.asarray(cells / cells.sum())

    def lowest(self, values: Floats) -> Floats:
        """Lowest of values [N] over the patches that cover each cell, [Y, X]; +inf where none does."""
        cells = np.full(self.shape, np.inf)
        for (x0, y0, x1, y1), value in zip(self.spans.tolist(), values.tolist(), strict=True):
            block = cells[y0:y1, x0:x1]
            np.minimum(block, value, out=block)
        return cells

    def covered(self, chosen: Bools) -> Bools:
        """Cells [Y, X] that lie in at least one of the chosen [N] patches."""
        cells = np.zeros(self.shape, dtype=bool)
        for x0, y0, x1, y1 in self.spans[chosen].tolist():
            cells[y0:y1, x0:x1] = True
        return cells

    def rectangles(self, cells: Bools) -> tuple[Box, ...]:
        """The chosen cells [Y, X] as disjoint pixel rectangles: runs of a row, merged with equal runs below."""
        merged: list[list[int]] = []
        open_runs: dict[tuple[int, int], int] = {}
        for row in range(cells.shape[0]):
            still_open: dict[tuple[int, int], int] = {}
            for start, stop in _runs(cells[row]):
                index = open_runs.get((start, stop), len(merged))
                if index == len(merged):
                    merged.append([int(self.xs[start]), int(self.ys[row]), int(self.xs[stop]), 0])
                merged[index][3] = int(self.ys[row + 1])
                still_open[start, stop] = index
            open_runs = still_open
        return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in merged)


@dataclass(frozen=True)
class Region:
    """A connected part of a picture whose patches are closer to an unsafe concept than benign patches are.

    category: the one with the lowest patch score in it; score: 1 - the smallest patch p-value in it, in [0, 1),
    None before calibration; box: x0, y0, x1, y1 in pixels of the original, half-open; area: share of the picture in
    [0, 1]; rectangles: the region itself, as disjoint boxes; size: (width, height) of the picture.
    """

    category: str
    score: float | None
    box: Box
    area: float
    rectangles: tuple[Box, ...]
    size: tuple[int, int]

    @property
    def mask(self) -> Bools:
        """The region as pixels of the original picture, bool [height, width]."""
        return paint(self.rectangles, self.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the rectangles (the mask is a picture's business)."""
        return {"category": self.category, "score": self.score, "box": list(self.box), "area": self.area}

    def __str__(self) -> str:
        x0, y0, x1, y1 = self.box
        score = "" if self.score is None else f" {self.score:.3f}"
        return f"{self.category}{score} at ({x0}, {y0})-({x1}, {y1}), {self.area:.1%} of the picture"


def paint(rectangles: Sequence[Box], size: tuple[int, int]) -> Bools:
    """Rectangles as a bool mask [height, width] of a picture of size (width, height)."""
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in rectangles:
        mask[y0:y1, x0:x1] = True
    return mask


def find_regions(
    flagged: Bools,
    margins: Floats,
    levels: Floats | None,
    boxes: Ints,
    size: tuple[int, int],
    categories: Sequence[str],
    distances: Floats,
) -> tuple[Region, ...]:
    """Join flagged patches into regions, the most unsafe one first.

    flagged [C, N]: patches at or below their category's threshold; margins [C, N]: by how much (lower = worse);
    levels [N]: p-values of the patches, None before calibration; boxes int64 [N, 4]. Cells that touch, diagonally
    too, are one region: an object seldom respects the patch grid. The region is named after its lowest margin among
    flagged patches, and among equal ones after the lowest of distances [C].
    """
    suspects: Bools = np.any(flagged, axis=0)
    if not suspects.any():
        return ()
    lattice = Lattice.of(boxes, size)
    labels = label_components(lattice.covered(suspects))
    worst = np.where(flagged, margins, np.inf)
    # A patch lies in one component: all its cells are covered and connected, so its first cell tells which.
    component = np.where(suspects, labels[lattice.spans[:, 1], lattice.spans[:, 0]], 0)
    found = []
    for label in range(1, int(labels.max()) + 1):
        per_category = np.where(component == label, worst, np.inf).min(axis=1)
        category = int(np.lexsort((distances, per_category))[0])
        score = None if levels is None else float(1 - levels[component == label].min())
        region = _region(lattice, labels == label, categories[category], score, size)
        found.append((float(per_category[category]), region))
    return tuple(region for _, region in sorted(found, key=lambda pair: pair[0]))


def _region(lattice: Lattice, cells: Bools, category: str, score: float | None, size: tuple[int, int]) -> Region:
    rectangles = lattice.rectangles(cells)
    corners = np.array(rectangles)
    box = (*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())
    return Region(category, score, box, float(lattice.area[cells].sum()), rectangles, size)


def label_components(cells: Bools) -> Ints:
    """Number the 8-connected components of cells [Y, X] from 1, in reading order of their first cell; 0 outside.

    Two passes over the runs of each row: a run takes the labels of the runs that it touches in the row above, and
    labels that meet are joined (union-find); the second pass writes each component's final number.
    """
    parent: list[int] = []
    placed: list[tuple[int, int, int, int]] = []
    above: list[tuple[int, int, int]] = []
    for row in range(cells.shape[0]):
        current = []
        for start, stop in _runs(cells[row]):
            label = len(parent)
            parent.append(label)
            for other_start, other_stop, other in above:
                if other_start <= stop and start <= other_stop:  # <=, not <: corners touch
                    _join(parent, other, label)
            current.append((start, stop, label))
            placed.append((row, start, stop, label))
        above = current
    labels = np.zeros(cells.shape, dtype=np.int64)
    numbers: dict[int, int] = {}
    for row, start, stop, label in placed:
        labels[row, start:stop] = numbers.setdefault(_root(parent, label), len(numbers) + 1)
    return labels


def _runs(row: Bools) -> list[tuple[int, int]]:
    """Start and exclusive end of each run of True in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _root(parent: list[int], label: int) -> int:
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


def _join(parent: list[int], first: int, second: int) -> None:
    first, second = sorted((_root(parent, first), _root(parent, second)))
    parent[second] = first
