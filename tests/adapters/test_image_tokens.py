"""Unsafe regions as image tokens, and where tokens look, by changing pixels and asking real processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from guardcore.adapters.transformers.geometry import outward, view, why_not_one_tile
from guardcore.adapters.transformers.prompt import encode
from guardcore.defenses.protocol import Request, RequestError
from guardcore.detector.regions import Region

SIZES = [(60, 45), (45, 61), (40, 40), (300, 47), (7, 9), (1, 1)]


def region(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Region:
    return Region("knife", None, boxes[0], 0.0, boxes, size)


def processors() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, Gemma3ImageProcessor, SiglipImageProcessor

    square = {"height": 40, "width": 40}
    return {
        "crop": CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=square),
        "smaller crop": CLIPImageProcessor(size={"shortest_edge": 50}, crop_size=square),
        "squeeze": SiglipImageProcessor(size=square),
        "squeeze without pans": Gemma3ImageProcessor(size=square),
    }


@pytest.mark.parametrize("kind", ["crop", "smaller crop", "squeeze", "squeeze without pans"])
@pytest.mark.parametrize("size", SIZES[:4])
def test_a_cell_is_where_its_part_of_the_tile_comes_from(kind: str, size: tuple[int, int]) -> None:
    processor, width, height = processors()[kind], *size
    cells = view(processor, size).cells(5, 5)
    blank = processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"][0]
    for index in (0, 7, 12, 24):
        left, top, right, bottom = cells[index]
        x, y = int((left + right) / 2), int((top + bottom) / 2)
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[y, x] = 255
        changed = (processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0] - blank).abs().sum(0)
        weights = changed.view(5, 8, 5, 8).sum((1, 3)).flatten()
        assert int(weights.argmax()) == index


@pytest.mark.parametrize("kind", ["crop", "smaller crop", "squeeze"])
@pytest.mark.parametrize("size", SIZES)
def test_boxes_lie_in_the_picture_and_cover_what_is_seen(kind: str, size: tuple[int, int]) -> None:
    seen = view(processors()[kind], size)
    boxes = np.array([outward(cell, size) for cell in seen.cells(5, 5)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    covered = np.zeros(size[::-1], dtype=bool)
    for x0, y0, x1, y1 in boxes:
        covered[y0:y1, x0:x1] = True
    inner = covered[int(seen.top) : round(seen.top + seen.height), int(seen.left) : round(seen.left + seen.width)]
    assert inner.all()
    if kind == "squeeze":
        assert covered.all()


def test_patches_that_do_not_divide_the_tile_leave_its_end_out() -> None:
    seen = view(processors()["squeeze"], (400, 80))  # 40 = 2 x 16 + 8
    assert seen.cells(2, 2, read=32)[-1] == (160, 32, 320, 64)


def test_processors_that_do_otherwise_are_named() -> None:
    from transformers import CLIPImageProcessor, Gemma3ImageProcessor, SiglipImageProcessor

    square = {"height": 40, "width": 40}
    for processor, reason in {
        CLIPImageProcessor(size={"shortest_edge": 30}, crop_size=square): "not square, or pads",
        CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 30}): "not square, or pads",
        CLIPImageProcessor(size={"shortest_edge": 40}, do_center_crop=False): "not square, or pads",
        SiglipImageProcessor(size={"height": 40, "width": 30}): "not square, or pads",
        SiglipImageProcessor(do_resize=False): "does not resize",
        Gemma3ImageProcessor(do_pan_and_scan=True): "has do_pan_and_scan set",
    }.items():
        assert reason in str(why_not_one_tile(processor))
        with pytest.raises(ValueError, match="expected one square tile a picture"):
            view(processor, (10, 10))


@pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3"])
def test_unsafe_tokens_are_those_that_look_at_the_region(
    name: str, tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    processor, size = tiny(name).processor, (48, 48)
    side = {"llava": 5, "paligemma": 6, "gemma3": 3}[name]
    images = (picture(*size), picture(*size, 1))
    corner, all_but_nothing = region(size, (0, 0, 5, 5)), region(size, (47, 0, 48, 48))
    both = Request("a", images, unsafe=((corner,), (all_but_nothing,)))
    encoded = encode(processor, [Request("a", images[:1]), both])
    assert encoded.spans[0].unsafe == ()
    spans = encoded.spans[1]
    tokens = [token for start, end in spans.image for token in range(start, end)]
    unsafe = {token for start, end in spans.unsafe for token in range(start, end)}
    flags = torch.tensor([token in unsafe for token in tokens]).view(2, side, side)
    expected = torch.zeros(2, side, side, dtype=torch.bool)
    expected[0, 0, 0] = True
    expected[1, :, -1] = True
    assert torch.equal(flags, expected)


def test_a_region_that_the_crop_cuts_off_has_no_token(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    request = Request("a", (picture(120, 40),), unsafe=((region((120, 40), (0, 0, 39, 40)),),))
    assert encode(tiny("llava").processor, [request]).spans[0].unsafe == ()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_unsafe_tokens_on_a_grid_of_any_shape(
    name: str, tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    processor = tiny(name).processor
    wide, tall = picture(64, 32), picture(32, 48)  # 4 x 2 and 2 x 3 tokens
    request = Request(
        "a",
        (wide, tall),
        unsafe=((region((64, 32), (17, 3, 20, 5)),), (region((32, 48), (3, 40, 5, 42), (30, 0, 32, 2)),)),
    )
    before = Request("b", (picture(32, 32),))
    encoded = encode(processor, [before, request])
    assert encoded.inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 8], [1, 6, 4]]
    spans = encoded.spans[1]
    tokens = [token for start, end in spans.image for token in range(start, end)]
    assert len(tokens) == 8 + 6
    assert [tokens.index(token) for start, end in spans.unsafe for token in range(start, end)] == [1, 8 + 1, 8 + 4]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl", "idefics3", "mistral3", "mllama"])
def test_tokens_without_a_known_place_are_refused_for_that_request(
    name: str, tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    image = picture(60, 40)
    request = Request("a", (image,), unsafe=((region((60, 40), (0, 0, 5, 5)),),))
    with pytest.raises(RequestError, match=r"expected (a square grid of tokens|one square tile) a picture") as caught:
        encode(tiny(name).processor, [Request("a", (image,), unsafe=((),)), request])
    assert caught.value.index == 1
