"""A batch of requests as inputs of a model's `generate`, and the spans of each among its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from guardcore.adapters.transformers.control_tokens import ControlTokens
from guardcore.adapters.transformers.geometry import why_not_a_picture
from guardcore.adapters.transformers.image_tokens import ImageTokens
from guardcore.adapters.transformers.rendering import Rendering, render
from guardcore.adapters.transformers.spans import token_spans
from guardcore.calibration.spans import TokenSpans
from guardcore.defenses.protocol import Request, RequestError

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
Tiles = Callable[["Image.Image"], "Tensor | None"]
# All that an image processor does before it stacks its tiles.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
# Processors add it for training; with it a model computes a loss over the whole prompt.
_UNUSED = ("labels",)


@dataclass(frozen=True)
class Encoded:
    """A batch that `model.generate(**inputs)` takes.

    Attributes:
        inputs: the processor's output, on the device; `input_ids` and `attention_mask` [B, L] int64, padded on the
            left.
        spans: of each request, in tokens of its prompt without padding.
        padding: tokens of padding before each prompt.
    """

    inputs: Any
    spans: tuple[TokenSpans, ...]
    padding: tuple[int, ...]


def encode(
    processor: Any,
    requests: Sequence[Request],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    image_token_id: int | None = None,
    tiles: Tiles | None = None,
) -> Encoded:
    """Encode requests of different lengths, with different numbers of pictures, into one batch.

    Args:
        processor: of the model, with a fast tokenizer.
        requests: at least one; all of one group of `groups`.
        device: where the tensors go.
        dtype: of the pictures' values; None leaves them as the processor made them, float32.
        image_token_id: the token that stands for a piece of a picture, the model's `config.image_token_id`; None asks
            the processor.
        tiles: what the image processor has already made of a picture, `[3, S, S]`, or None where it must be asked;
            only for processors that make one tile of a picture (`SharedTower.tile`).

    Raises:
        RequestError: one request can't be encoded (special tokens in its text, a template that knows no system prompt,
            unsafe regions where tokens have no place in the picture, a picture that the processor refuses).
        ValueError: the tokenizer is slow, or there is no request.
    """
    check_processor(processor)
    if not requests:
        raise ValueError("requests: expected at least one; got none")
    control = ControlTokens.of(processor)
    renderings = _each(requests, lambda _, request: _rendered(processor, request, control))
    inputs = _processed(processor, renderings, requests, tiles)
    padding = _left_padding(inputs["attention_mask"])
    ids = [row[pad:].tolist() for row, pad in zip(inputs["input_ids"], padding, strict=True)]
    images = ImageTokens(processor, inputs, requests, image_token_id)

    def spans(index: int, request: Request) -> TokenSpans:
        return token_spans(processor, renderings[index], ids[index], *images.spans(index, request, ids[index]))

    found = tuple(_each(requests, spans))
    return Encoded(inputs.to(device) if dtype is None else inputs.to(device, dtype), found, tuple(padding))


def groups(processor: Any, requests: Sequence[Request]) -> list[list[int]]:
    """Which requests, by index, can share a batch: all of them, but for models that attend to pictures across.

    The processors of those (Llama 3.2 Vision) can't mix requests with and without pictures.
    """
    if "cross_attention_mask" not in processor.model_input_names:
        return [list(range(len(requests)))] if requests else []
    kinds = (
        [index for index, request in enumerate(requests) if bool(request.images) is kind] for kind in (True, False)
    )
    return [group for group in kinds if group]


def check_processor(processor: Any) -> None:
    """Raise ValueError unless a processor has a fast tokenizer: the others don't say which characters a token is."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        kind = type(processor).__name__
        raise ValueError(f"processor: expected one with a tokenizer and an image processor; got {kind}")
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        raise ValueError(f"processor: expected a fast tokenizer (of the library tokenizers); got {kind}")


def _each(requests: Sequence[Request], function: Callable[[int, Request], T]) -> list[T]:
    """What `function` makes of each request; its ValueErrors say which request it was."""

    def named(index: int) -> T:
        try:
            return function(index, requests[index])
        except ValueError as error:
            raise RequestError(index, str(error)) from error

    return [named(index) for index in range(len(requests))]


def _rendered(processor: Any, request: Request, control: ControlTokens) -> Rendering:
    for place, image in enumerate(request.images):
        reason = why_not_a_picture(image)
        if reason is not None:
            raise ValueError(f"images[{place}]: {reason}")
    return render(processor, request, control)


def _processed(
    processor: Any, renderings: Sequence[Rendering], requests: Sequence[Request], tiles: Tiles | None
) -> Any:
    try:
        return _call(processor, renderings, requests, tiles)
    except Exception:
        # Processors raise whatever they like and don't say which request was at fault.
        _each(requests, lambda index, request: _call_alone(processor, renderings[index], request))
        raise


def _call_alone(processor: Any, rendering: Rendering, request: Request) -> None:
    try:
        _call(processor, [rendering], [request], None)
    except Exception as error:
        raise ValueError(f"{type(processor).__name__} refuses it: {type(error).__name__}: {error}") from error


def _call(processor: Any, renderings: Sequence[Rendering], requests: Sequence[Request], tiles: Tiles | None) -> Any:
    # One list a request even where it is empty: how processors tell which pictures belong to which text.
    pictures: list[list[Any]] = [list(request.images) for request in requests]
    begin = processor.tokenizer.bos_token
    settings: dict[str, Any] = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    if begin is not None and renderings[0].text.startswith(begin):
        # A template that writes the first token itself must not get a second one.
        settings["add_special_tokens"] = False
    if tiles is not None:
        pictures = [[_tile(processor, image, tiles) for image in images] for images in pictures]
        settings |= dict.fromkeys(_STEPS, False)
    texts = [rendering.text for rendering in renderings]
    inputs = processor(text=texts, images=pictures if any(pictures) else None, **settings)
    for name in _UNUSED:
        inputs.pop(name, None)
    return inputs


def _tile(processor: Any, image: Image.Image, tiles: Tiles) -> Tensor:
    tile = tiles(image)
    made: Tensor = processor.image_processor([image], return_tensors="pt")["pixel_values"][0] if tile is None else tile
    return made


def _left_padding(mask: Tensor) -> list[int]:
    """Padding of each row of [B, L]; it must be on the left, where generation starts from."""
    padding = mask.shape[1] - mask.sum(1)
    if not torch.equal(mask.bool(), torch.arange(mask.shape[1]) >= padding[:, None]):
        raise ValueError("processor: expected padding on the left alone; its attention mask has holes or ends early")
    lengths: list[int] = padding.tolist()
    return lengths
