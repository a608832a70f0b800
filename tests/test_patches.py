"""Patches: every pixel is covered, geometry is exact, and the batch size changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guardcore.encoders.protocol import ImageEmbedding
from guardcore.patches import PatchMode, PatchSet, cell_boxes, extract_patches, tile_boxes


class MeanColor:
    """An encoder whose patch vector is the mean color of the patch, so that geometry can be checked by content."""

    name, fingerprint, image_size, grid, width = "mean-color", "0" * 64, 8, 4, 3

    def __init__(self) -> None:
        self.batches: list[int] = []

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        small = [np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX)) for image in images]
        return torch.tensor(np.stack(small)).permute(0, 3, 1, 2).float()

    def embed_images(self, pixels: torch.Tensor) -> ImageEmbedding:
        self.batches.append(len(pixels))
        cells = torch.nn.functional.avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
        return ImageEmbedding(cells, pixels.mean((2, 3)))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        raise NotImplementedError


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def uncovered(boxes: Sequence[tuple[int, int, int, int]], width: int, height: int) -> int:
    seen = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        seen[y0:y1, x0:x1] = True
    return int((~seen).sum())


# 1 pixel, 1 x N, primes, squares, and aspects on both sides of the stretch limit and of the tile limit all come up.
sides = st.one_of(st.integers(1, 12), st.integers(1, 700), st.sampled_from([224, 336, 1000]))


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.integers(1, 40), st.floats(0, 0.9), st.integers(1, 40), st.floats(1, 2))
def test_every_pixel_lies_in_a_patch(w: int, h: int, cells: int, overlap: float, limit: int, stretch: float) -> None:
    mode = PatchMode(overlap=overlap, max_tiles=limit, max_stretch=stretch)
    tiles = tile_boxes(w, h, mode)
    assert len(tiles) <= limit
    assert uncovered(tiles, w, h) == 0
    assert uncovered([cell for tile in tiles for cell in cell_boxes(tile, cells)], w, h) == 0


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (224, 224), (4001, 4001), (115, 100), (100, 115)])
def test_a_nearly_square_picture_is_one_tile(size: tuple[int, int]) -> None:
    assert tile_boxes(*size, PatchMode()) == [(0, 0, *size)]


def test_a_wide_picture_is_cut_into_overlapping_squares() -> None:
    # 200 x 100: 1 + ceil(100 / 75) = 3 squares, spread evenly over the 100 pixels of slack.
    assert tile_boxes(200, 100, PatchMode()) == [(0, 0, 100, 100), (50, 0, 150, 100), (100, 0, 200, 100)]
    assert tile_boxes(100, 200, PatchMode()) == [(0, 0, 100, 100), (0, 50, 100, 150), (0, 100, 100, 200)]
    assert tile_boxes(116, 100, PatchMode()) == [(0, 0, 100, 100), (16, 0, 116, 100)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 1400), st.floats(0, 0.9))
def test_square_tiles_overlap_at_least_as_asked(short: int, extra: int, overlap: float) -> None:
    tiles = tile_boxes(short + extra, short, PatchMode(overlap=overlap, max_tiles=4096, max_stretch=1))
    assert all(x1 - x0 == y1 - y0 == short for x0, y0, x1, y1 in tiles)
    for (_, _, right, _), (left, _, _, _) in pairwise(tiles):
        assert right - left >= min(short - 1, short * overlap) - 1e-9


def test_beyond_the_limit_tiles_grow_oblong_and_still_cover() -> None:
    tiles = tile_boxes(100_000, 1, PatchMode(max_tiles=32))
    assert len(tiles) == 32
    assert tiles[0][0] == 0
    assert tiles[-1][2] == 100_000
    assert all(right > left for (_, _, right, _), (left, _, _, _) in pairwise(tiles))


def test_fractional_cells_are_rounded_outward() -> None:
    assert cell_boxes((10, 0, 15, 2), 2) == [(10, 0, 13, 1), (12, 0, 15, 1), (10, 1, 13, 2), (12, 1, 15, 2)]
    assert cell_boxes((0, 0, 1, 1), 3) == [(0, 0, 1, 1)] * 9


@pytest.mark.parametrize("size", [(64, 64), (160, 64), (64, 224)], ids=["square", "wide", "tall"])
def test_token_boxes_point_at_the_pixels_that_were_embedded(size: tuple[int, int]) -> None:
    # Tiles of 64 pixels, 4 x 4 patches of 16 whole pixels: a patch's mean color is that of its box.
    picture = noise(*size)
    [patches] = extract_patches(MeanColor(), [picture])
    pixels = np.asarray(picture).astype(float)
    assert patches.size == size
    assert patches.boxes is not None
    assert patches.boxes.dtype == torch.int64
    for vector, (x0, y0, x1, y1) in zip(patches.embeddings, patches.boxes.tolist(), strict=True):
        # Pillow's box filter rounds to whole levels: half a level each.
        np.testing.assert_allclose(vector.numpy(), pixels[y0:y1, x0:x1].mean((0, 1)), atol=0.6)
    assert len(patches.embeddings) == 16 * len(patches.image)


def test_grid_encodes_every_crop_as_a_picture() -> None:
    picture = noise(48, 48)
    [patches] = extract_patches(MeanColor(), [picture], PatchMode.parse("grid:3"))
    assert patches.embeddings.shape == patches.image.shape == (9, 3)
    assert patches.boxes is not None
    assert patches.boxes[4].tolist() == [16, 16, 32, 32]
    crop = np.asarray(picture)[16:32, 16:32].astype(float)
    np.testing.assert_allclose(patches.embeddings[4].numpy(), crop.mean((0, 1)), atol=0.6)


def test_views_are_seeded_keep_the_whole_picture_and_have_no_boxes() -> None:
    picture, mode = noise(90, 80), PatchMode(kind="views", views=5, seed=3)
    [first] = extract_patches(MeanColor(), [picture], mode)
    # The second time in other company: neighbors must not shift the random sequence.
    second = extract_patches(MeanColor(), [noise(30, 40), picture], mode)[1]
    [other] = extract_patches(MeanColor(), [picture], PatchMode(kind="views", views=5, seed=4))
    [whole] = extract_patches(MeanColor(), [picture])
    assert first.boxes is None
    assert first.embeddings.shape == (5, 3)
    assert torch.equal(first.embeddings, second.embeddings)
    assert torch.equal(first.embeddings[0], whole.image[0])
    assert not torch.equal(first.embeddings[1:], other.embeddings[1:])


def test_tall_pictures_keep_their_tiles_among_the_views() -> None:
    [patches] = extract_patches(MeanColor(), [noise(20, 100)], PatchMode(kind="views", views=4))
    assert len(patches.embeddings) == len(tile_boxes(20, 100, PatchMode())) + 3


@pytest.mark.parametrize("text", ["tokens", "grid:2", "views:3"])
@pytest.mark.parametrize("batch_size", [1, 3, 1000], ids=["one by one", "across pictures", "all at once"])
def test_batch_size_changes_nothing_and_bounds_the_batches(text: str, batch_size: int) -> None:
    pictures = [noise(50, 50), noise(200, 40), noise(1, 1), noise(30, 90)]
    encoder, mode = MeanColor(), PatchMode.parse(text)
    expected: list[PatchSet] = [extract_patches(MeanColor(), [picture], mode)[0] for picture in pictures]
    found = extract_patches(encoder, pictures, mode, batch_size=batch_size)
    assert max(encoder.batches) <= batch_size
    for ours, alone in zip(found, expected, strict=True):
        assert torch.equal(ours.embeddings, alone.embeddings)
        assert torch.equal(ours.image, alone.image)
        assert ours.boxes is alone.boxes is None or torch.equal(ours.boxes, alone.boxes)


def test_no_pictures_give_no_patches() -> None:
    assert extract_patches(MeanColor(), []) == []


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK"])
def test_any_color_mode_is_taken(mode: str) -> None:
    [patches] = extract_patches(MeanColor(), [noise(40, 20).convert(mode)])
    assert torch.isfinite(patches.embeddings).all()


@pytest.mark.parametrize("text", ["tokens", "grid:4", "views:16"])
def test_modes_survive_their_text_form(text: str) -> None:
    assert str(PatchMode.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "token", "tokens:3", "grid:", "grid:0", "grid:-1", "grid:x", "views:1.5", "views:²"]
)
def test_bad_text_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="grid:N"):
        PatchMode.parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "pixels"),
        ("grid_size", 0),
        ("views", 0),
        ("max_tiles", 0),
        ("grid_size", 65),
        ("views", 1025),
        ("overlap", 1.0),
        ("overlap", float("nan")),
        ("max_stretch", 0.9),
        ("max_stretch", float("nan")),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PatchMode(**{field: value})  # type: ignore[arg-type]


def test_fingerprint_covers_what_changes_the_patches_and_nothing_else() -> None:
    tokens = PatchMode()
    assert tokens.fingerprint == PatchMode(seed=1, views=3, grid_size=9).fingerprint
    different = [PatchMode(overlap=0.5), PatchMode(max_stretch=1.5), PatchMode(max_tiles=8)]
    different += [PatchMode.parse(text) for text in ("grid:2", "grid:4", "views:4", "views:5")]
    different += [PatchMode(kind="views", views=4, seed=1)]
    assert len({mode.fingerprint for mode in [tokens, *different]}) == len(different) + 1


def test_bad_arguments_are_named_before_anything_is_encoded() -> None:
    encoder = MeanColor()
    with pytest.raises(ValueError, match="batch_size"):
        extract_patches(encoder, [noise(4, 4)], batch_size=0)
    with pytest.raises(ValueError, match=r"images\[1\]"):
        extract_patches(encoder, [noise(4, 4), Image.new("RGB", (0, 5))])
    with pytest.raises(TypeError, match=r"images\[0\].*ndarray"):
        extract_patches(encoder, [np.zeros((4, 4, 3))])  # type: ignore[list-item]
    assert encoder.batches == []
