"""A verdict drawn on its picture: heat map, regions with labels, and a caption with the color scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from guardcore.detector.heat import COLD, HOT, colors, heat_map
from guardcore.detector.regions import Box, Region
from guardcore.detector.verdict import Verdict

# The picture is enlarged until its longer side has this many pixels, and the canvas is at least this wide: labels
# must be legible on a 32-pixel icon too.
_LEAST_SIDE, _LEAST_WIDTH = 640, 480
# Text grows with the canvas; this is its height as a share of the geometric mean of the sides.
_TEXT = 0.024
_LABELS = 12  # more would hide the picture

_INK, _PAPER, _FAINT = (20, 22, 27), (246, 247, 249), (139, 145, 156)
_ACTIONS = {"block": (229, 72, 77), "review": (245, 166, 35), "allow": (48, 164, 108)}
# Okabe and Ito's palette without black: told apart by most color-blind eyes.
_CATEGORIES = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip

Color = tuple[int, int, int]


@dataclass(frozen=True)
class _Sheet:
    """The canvas, and where the picture lies on it."""

    canvas: Image.Image
    draw: ImageDraw.ImageDraw
    text: int  # height of the type in pixels
    scale: float  # canvas pixels a picture pixel
    left: int
    width: int  # of the picture on the canvas
    height: int

    def place(self, box: Box) -> Box:
        """A box of the picture in canvas pixels."""
        x0, y0, x1, y1 = (round(value * self.scale) for value in box)
        return self.left + x0, y0, self.left + x1, y1


def overlay(image: Image.Image, verdict: Verdict) -> Image.Image:
    """Draw a verdict on its picture.

    The picture, muted, under its heat map; a frame around each region and a label (category, score) on those of a found
    category, broken lines around the others, of which only the most unusual is named, and only if nothing was found;
    below, the action, the categories and the color scale. Small pictures are enlarged.

    Args:
        image: the picture that was judged; any mode.
        verdict: of that picture; one with an error gives the plain picture with the reason below.

    Returns:
        An RGB picture, at least 480 x 640 or 640 x 480 pixels or so, and never smaller than `image`.

    Raises:
        ValueError: the picture has another size than the one that was judged.
    """
    if verdict.error is None and image.size != verdict.size:
        raise ValueError(f"image: expected the judged picture, {list(verdict.size)}; got {list(image.size)}")
    sheet = _lay_out(image, verdict)
    for region in reversed(verdict.regions):
        _frame(sheet, region, verdict)
    taken: list[Box] = []
    found = [region for region in verdict.regions if region.category in verdict.found]
    for region in found[:_LABELS] or verdict.regions[:1]:
        _label(sheet, region, verdict, taken)
    _caption(sheet, verdict)
    return sheet.canvas


def _lay_out(image: Image.Image, verdict: Verdict) -> _Sheet:
    scale = max(1.0, _LEAST_SIDE / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas_width = max(width, _LEAST_WIDTH)
    text = max(14, round(_TEXT * (canvas_width * height) ** 0.5))
    left = (canvas_width - width) // 2
    canvas = Image.new("RGB", (canvas_width, height + _caption_height(text)), _INK)
    canvas.paste(_heated(image.convert("RGB"), verdict, (width, height)), (left, 0))
    return _Sheet(canvas, ImageDraw.Draw(canvas), text, scale, left, width, height)


def _heated(picture: Image.Image, verdict: Verdict, size: tuple[int, int]) -> Image.Image:
    """The picture, muted so that heat stands out on any background, under its heat map."""
    large = picture.resize(size, Image.Resampling.BICUBIC) if picture.size != size else picture
    if verdict.boxes is None:
        return large
    muted = ImageEnhance.Brightness(ImageEnhance.Color(large).enhance(0.55)).enhance(0.72)
    heat = heat_map(verdict, size)
    alpha = Image.fromarray(np.round(255 * 0.72 * heat**0.7).astype(np.uint8))
    return Image.composite(Image.fromarray(colors(heat)), muted, alpha)


def _frame(sheet: _Sheet, region: Region, verdict: Verdict) -> None:
    """A colored line between two dark ones: visible on any background. Broken where its category was not found."""
    x0, y0, x1, y1 = sheet.place(region.box)
    thickness = max(2, sheet.text // 7)
    box = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
    sheet.draw.rectangle(_inset(box, -1), outline=_INK, width=thickness + 2)
    color = _color(region.category, verdict)
    if region.category in verdict.found:
        sheet.draw.rectangle(box, outline=color, width=thickness)
    else:
        _dash(sheet.draw, box, color, thickness, 3 * thickness)


def _dash(draw: ImageDraw.ImageDraw, box: Box, color: Color, thickness: int, step: int) -> None:
    x0, y0, x1, y1 = box
    for x in range(x0, x1, 2 * step):
        for y in (y0, max(y0, y1 - thickness + 1)):
            draw.rectangle((x, y, min(x + step, x1), min(y + thickness - 1, y1)), fill=color)
    for y in range(y0, y1, 2 * step):
        for x in (x0, max(x0, x1 - thickness + 1)):
            draw.rectangle((x, y, min(x + thickness - 1, x1), min(y + step, y1)), fill=color)


def _label(sheet: _Sheet, region: Region, verdict: Verdict, taken: list[Box]) -> None:
    """Category and score on a plate, at the first place near the region that is free and on the picture."""
    font, pad = _font(sheet.text), sheet.text // 3
    room = sheet.canvas.width - 2 * pad
    text = _fit(_title(region.category, region.score), font, room)
    width, height = round(font.getlength(text)) + 2 * pad, sheet.text + 2 * pad
    x0, y0, x1, y1 = sheet.place(region.box)
    corners = [(x0, y0 - height), (x0, y1), (x0, y0), (x1 - width, y0 - height), (x1 - width, y1), (x0, y1 - height)]
    plates = [_on_canvas(x, y, width, height, sheet) for x, y in corners]
    plate = next((plate for plate in plates if not any(_overlap(plate, other) for other in taken)), plates[2])
    taken.append(plate)
    color = _color(region.category, verdict)
    sheet.draw.rounded_rectangle(plate, radius=pad, fill=color, outline=_INK, width=max(1, sheet.text // 12))
    sheet.draw.text((plate[0] + pad, (plate[1] + plate[3]) // 2), text, font=font, fill=_legible(color), anchor="lm")


def _caption(sheet: _Sheet, verdict: Verdict) -> None:
    """Action and headline in one row, the color scale in the next."""
    pad, font = sheet.text // 2, _font(sheet.text)
    action = "error" if verdict.error is not None else verdict.action
    color = _FAINT if verdict.error is not None else _ACTIONS[verdict.action]
    middle = sheet.height + pad + sheet.text
    plate_width = round(font.getlength(action.upper())) + 2 * pad
    plate = (pad, middle - sheet.text * 3 // 4, pad + plate_width, middle + sheet.text * 3 // 4)
    sheet.draw.rounded_rectangle(plate, radius=sheet.text // 3, fill=color)
    sheet.draw.text((pad + plate_width // 2, middle), action.upper(), font=font, fill=_legible(color), anchor="mm")
    start = plate[2] + pad
    text = _fit(_headline(verdict), font, sheet.canvas.width - start - pad)
    sheet.draw.text((start, middle), text, font=font, fill=_PAPER, anchor="lm")
    if verdict.error is None and verdict.boxes is not None and verdict.patch_scores is not None:
        _scale(sheet, verdict, middle + sheet.text * 7 // 4)


def _scale(sheet: _Sheet, verdict: Verdict, middle: int) -> None:
    """The color scale between its two meanings."""
    pad, font = sheet.text // 2, _font(max(11, round(0.8 * sheet.text)))
    calibrated = verdict.patch_levels is not None
    cold, hot = (f"1 in {round(1 / level):,}" for level in (COLD, HOT)) if calibrated else ("least near", "nearest")
    name = "as rare among benign patches as" if calibrated else "within this picture"
    x = pad
    for text in (name, cold):
        sheet.draw.text((x, middle), text, font=font, fill=_FAINT, anchor="lm")
        x += round(font.getlength(text)) + pad
    width = max(4, min(8 * sheet.text, sheet.canvas.width - x - round(font.getlength(hot)) - 2 * pad))
    bar = np.broadcast_to(colors(np.linspace(0, 1, width)), (max(4, sheet.text // 2), width, 3))
    sheet.canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (x, middle - bar.shape[0] // 2))
    sheet.draw.text((x + width + pad, middle), hot, font=font, fill=_FAINT, anchor="lm")


def _caption_height(text: int) -> int:
    return text * 9 // 2


def _headline(verdict: Verdict) -> str:
    if verdict.error is not None:
        return f"{verdict.error.kind}: {verdict.error.message}"
    if verdict.flagged:
        return ", ".join(_title(name, verdict.scores[name]) for name in verdict.found)
    name = verdict.category
    return "nothing found" if name is None else f"nothing found; nearest {_title(name, verdict.scores[name])}"


def _title(category: str, score: float | None) -> str:
    """Category and score; a score is never rounded up to 1, which no calibration can reach."""
    words = category.replace("_", " ")
    if score is None:
        return words
    return f"{words} {score:.3f}" if score < 0.9995 else f"{words} >0.999"


def _color(category: str, verdict: Verdict) -> Color:
    return _CATEGORIES[list(verdict.statistics).index(category) % len(_CATEGORIES)]


def _legible(background: Color) -> Color:
    """Dark or light text, whichever has more contrast (relative luminance of Rec. 709)."""
    luminance = sum(
        weight * (value / 255) ** 2.2 for weight, value in zip((0.2126, 0.7152, 0.0722), background, strict=True)
    )
    return _INK if luminance > 0.18 else _PAPER


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _fit(text: str, font: Any, width: int) -> str:
    """The text, cut with an ellipsis to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _on_canvas(x: int, y: int, width: int, height: int, sheet: _Sheet) -> Box:
    """A plate moved onto the canvas, and off the caption."""
    x = max(0, min(x, sheet.canvas.width - width - 1))
    y = max(0, min(y, sheet.height - height - 1))
    return x, y, x + width, y + height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inset(box: Box, by: int) -> Box:
    return box[0] + by, box[1] + by, box[2] - by, box[3] - by
