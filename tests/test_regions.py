"""Lattice, connected components and regions against brute force on pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from guardcore.detector.regions import Lattice, find_regions, label_components, paint


def boxes_of(grid: int, side: int) -> np.ndarray:
    step = side // grid
    return np.array([[x, y, x + step, y + step] for y in range(0, side, step) for x in range(0, side, step)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_components_agree_with_scipy(rows: int, columns: int, seed: int, density: float) -> None:
    cells = np.random.default_rng(seed).random((rows, columns)) < density
    expected, _ = ndimage.label(cells, structure=np.ones((3, 3)))
    np.testing.assert_array_equal(label_components(cells), expected)


def test_components_join_late_and_touch_at_corners() -> None:
    u_shape = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)  # two labels that meet in the last row
    assert label_components(u_shape).max() == 1
    assert label_components(np.eye(3, dtype=bool)).max() == 1
    assert label_components(np.array([[True, False, True]])).tolist() == [[1, 0, 2]]
    assert label_components(np.zeros((2, 2), dtype=bool)).max() == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_lattice_of_overlapping_patches_equals_pixels(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = 23, 17
    x0, y0 = rng.integers(0, width - 1, count), rng.integers(0, height - 1, count)
    x1 = [rng.integers(x + 1, width + 1) for x in x0]
    y1 = [rng.integers(y + 1, height + 1) for y in y0]
    boxes = np.stack([x0, y0, x1, y1], axis=1)
    values, chosen = rng.random(count), rng.random(count) < 0.5
    lattice = Lattice.of(boxes, (width, height))

    lowest, covered = np.full((height, width), np.inf), np.zeros((height, width), bool)
    for (left, top, right, bottom), value, pick in zip(boxes, values, chosen, strict=True):
        lowest[top:bottom, left:right] = np.minimum(lowest[top:bottom, left:right], value)
        covered[top:bottom, left:right] |= pick

    def pixels(cells: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(cells, np.diff(lattice.ys), 0), np.diff(lattice.xs), 1)

    np.testing.assert_array_equal(pixels(lattice.lowest(values)), lowest)
    np.testing.assert_array_equal(pixels(lattice.covered(chosen)), covered)
    np.testing.assert_array_equal(paint(lattice.rectangles(lattice.covered(chosen)), (width, height)), covered)
    assert lattice.area.sum() == pytest.approx(1)


def test_rectangles_are_disjoint_and_merged() -> None:
    lattice = Lattice.of(boxes_of(4, 40), (40, 40))
    cells = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=bool)
    rectangles = lattice.rectangles(cells)
    assert rectangles == ((0, 0, 20, 20), (10, 20, 20, 30), (30, 30, 40, 40))
    area = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in rectangles)
    assert area == paint(rectangles, (40, 40)).sum()


def test_regions_are_named_after_their_lowest_margin_and_sorted() -> None:
    boxes = boxes_of(4, 40)
    levels = np.ones((2, 16))
    levels[0, [0, 1]] = 0.01  # top left: category a ...
    levels[1, 1] = 0.004  # ... but b is worse in one of its patches
    levels[0, 15] = 0.002  # bottom right: a, the worst of all
    flagged = levels < 0.05
    far_end, near = find_regions(flagged, levels, levels.min(axis=0), boxes, (40, 40), ["a", "b"], np.zeros(2))
    assert (far_end.category, far_end.box, far_end.score) == ("a", (30, 30, 40, 40), pytest.approx(0.998))
    assert (near.category, near.box, near.area) == ("b", (0, 0, 20, 10), pytest.approx(2 / 16))
    assert near.mask.sum() == 200
    assert near.mask[:10, :20].all()
    assert str(near) == "b 0.996 at (0, 0)-(20, 10), 12.5% of the picture"


def test_an_unflagged_category_never_names_a_region() -> None:
    flagged, margins = np.array([[True], [False]]), np.array([[0.5], [0.001]])
    (region,) = find_regions(flagged, margins, None, boxes_of(1, 8), (8, 8), ["a", "b"], np.zeros(2))
    assert region.category == "a"
    assert region.score is None


def test_equal_margins_are_told_apart_by_distance() -> None:
    margins = np.full((2, 1), 0.01)
    (region,) = find_regions(margins < 1, margins, None, boxes_of(1, 8), (8, 8), ["a", "b"], np.array([0.9, 0.1]))
    assert region.category == "b"


def test_nothing_flagged_is_no_region() -> None:
    margins = np.ones((1, 4))
    assert find_regions(margins < 0, margins, None, boxes_of(2, 8), (8, 8), ["a"], np.zeros(1)) == ()
