"""Redaction hides what it must and nothing else; overlays stay legible at any size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from guardcore.detector.heat import colors, heat_map, patch_heat
from guardcore.detector.overlay import overlay
from guardcore.detector.regions import find_regions
from guardcore.detector.verdict import ScreenError, Verdict
from guardcore.redaction import redact


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def verdict_of(
    size: tuple[int, int], hot: tuple[int, ...] = (5,), *, calibrated: bool = True, flagged: bool = True
) -> Verdict:
    """A 4 x 4 grid of patches, of which `hot` are unsafe."""
    width, height = size
    xs, ys = np.linspace(0, width, 5).astype(int), np.linspace(0, height, 5).astype(int)
    boxes = np.array([[xs[i], ys[j], xs[i + 1], ys[j + 1]] for j in range(4) for i in range(4)])
    levels = np.full((2, 16), 0.6)
    levels[0, list(hot)] = 1e-4
    names = ["weapons", "a_category_with_a_very_long_name_that_does_not_fit_anywhere"]
    regions = find_regions(
        levels < 0.01, levels, levels.min(axis=0) if calibrated else None, boxes, size, names, np.array([0.1, 0.2])
    )
    return Verdict(
        flagged=flagged,
        action="block" if flagged else "allow",
        found=("weapons",) if flagged else (),
        scores=dict.fromkeys(names, 0.99),
        p_value=0.01,
        distances=dict(zip(names, (0.1, 0.2), strict=True)),
        statistics=dict(zip(names, (0.1, 0.2), strict=True)),
        regions=regions,
        patch_scores=levels.astype(np.float32),
        patch_levels=levels.min(axis=0) if calibrated else None,
        boxes=boxes,
        size=size,
        error=None,
        fingerprint="f",
    )


@pytest.mark.parametrize("style", ["zero", "blur", "pixelate"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("size", [(64, 48), (1, 1), (3, 200)], ids=str)
def test_only_masked_pixels_change(style: str, mode: str, size: tuple[int, int]) -> None:
    image = picture(*size, mode)
    mask = np.zeros(size[::-1], bool)
    mask[: size[1] // 2, : size[0] // 2 + 1] = True
    before, after = np.asarray(image.convert("RGB")), np.asarray(redact(image, mask, style))
    np.testing.assert_array_equal(after[~mask], before[~mask])
    if style == "zero":
        assert (after[mask] == 0).all()


@pytest.mark.parametrize("style", ["blur", "pixelate"])
def test_detail_is_destroyed(style: str) -> None:
    # Stripes as wide as the strokes of writing: what is left of their contrast can't be read.
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, ::8], stripes[:, 1::8], stripes[:, 2::8], stripes[:, 3::8] = [255] * 4
    hidden = np.asarray(redact(Image.fromarray(stripes), np.ones((240, 320), bool), style))
    assert stripes.std() > 120
    assert hidden.std() < 20


def test_an_empty_mask_is_a_copy() -> None:
    image = picture(8, 8)
    copy = redact(image, np.zeros((8, 8), bool))
    assert copy is not image
    assert copy.tobytes() == image.tobytes()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"mask: expected \[height, width\] = \[6, 8\]; got \[8, 6\]"):
        redact(picture(8, 6), np.zeros((8, 6), bool))
    with pytest.raises(ValueError, match="style: expected one of zero, blur, pixelate; got 'erase'"):
        redact(picture(8, 6), np.zeros((6, 8), bool), "erase")
    with pytest.raises(ValueError, match=r"image: expected the judged picture, \[64, 64\]; got \[32, 64\]"):
        overlay(picture(32, 64), verdict_of((64, 64)))


def test_a_verdict_redacts_its_regions_and_everything_it_could_not_judge() -> None:
    image, verdict = picture(64, 64), verdict_of((64, 64), (5,))
    hidden = np.asarray(verdict.redact(image))
    assert (hidden[16:32, 16:32] == 0).all()
    assert (hidden != np.asarray(image)).any(axis=2).sum() <= 256
    broken = dataclasses.replace(
        verdict, error=ScreenError("unreadable", "torn"), regions=(), size=(0, 0), flagged=False
    )
    assert not np.asarray(broken.redact(image)).any()


@pytest.mark.parametrize(
    "size",
    [(32, 32), (1, 1), (640, 480), (40, 900), (900, 40), (2560, 1440)],
    ids=["icon", "one pixel", "ordinary", "tall", "wide", "large"],
)
@pytest.mark.parametrize("hot", [(), (0,), (0, 5, 10, 15), tuple(range(16))], ids=["none", "corner", "diagonal", "all"])
def test_overlay_of_any_size(size: tuple[int, int], hot: tuple[int, ...]) -> None:
    if size[0] == 2560 and len(hot) != 1:
        pytest.skip("one large picture is enough")
    drawn = overlay(picture(*size), verdict_of(size, hot, flagged=bool(hot)))
    assert drawn.mode == "RGB"
    assert drawn.width >= max(size[0], 480)
    assert drawn.height >= size[1]
    assert max(drawn.size) >= 640
    if size == (640, 480) and hot == (0,):
        warm, cold = (np.asarray(drawn)[y, x].astype(int) for y, x in ((60, 80), (400, 500)))
        assert abs(warm - cold).sum() > 60


def test_overlay_without_calibration_patches_or_judgment() -> None:
    verdict = verdict_of((64, 64))
    views = dataclasses.replace(verdict, boxes=None, regions=())
    broken = dataclasses.replace(
        verdict, error=ScreenError("unreadable", "torn " * 80), size=(0, 0),
        boxes=None, patch_scores=None, patch_levels=None,
        statistics={}, scores={}, regions=(), flagged=False,
    )  # fmt: skip
    for each in (verdict_of((64, 64), calibrated=False), views, broken):
        assert each.overlay(picture(64, 64)).width >= 480


def test_heat_is_unusualness_and_falls_back_to_rank_in_the_picture() -> None:
    verdict = verdict_of((64, 64), (5,))
    heat = patch_heat(verdict)
    assert heat is not None
    assert heat[5] == pytest.approx(1)
    assert heat[0] == 0
    uncalibrated = patch_heat(dataclasses.replace(verdict, patch_levels=None))
    assert uncalibrated is not None
    assert (uncalibrated.argmax(), uncalibrated.max(), uncalibrated.min()) == (5, 1, 0)
    smooth = heat_map(verdict, (128, 128))
    assert smooth.shape == (128, 128)
    assert np.unravel_index(smooth.argmax(), smooth.shape) == pytest.approx((48, 48), abs=4)


def test_the_color_scale_is_monotone_in_lightness_and_even() -> None:
    color = pytest.importorskip("skimage.color")
    lab = color.rgb2lab(colors(np.linspace(0, 1, 64))[None])[0]
    assert (np.diff(lab[:, 0]) > 0).all()
    steps = color.deltaE_ciede2000(lab[:-1], lab[1:])
    assert steps.max() / np.median(steps) < 2.5
