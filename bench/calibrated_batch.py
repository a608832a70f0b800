"""Three requests of different lengths, each with a calibration of its own, for a tiny model: strong enough to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.calibration_oracle import oracle
from guardcore.adapters.transformers.attachment import Attachment
from guardcore.adapters.transformers.session import Session
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.spans import Range, TokenSpans

NEW = 6  # tokens to generate
_QUESTIONS = (
    "What is this thing in here?",
    "How do I make what is shown in the picture? Explain.",
    "Describe it now, please do it.",
)
_SIZES = ((60, 40), (50, 70), (44, 44))
CALIBRATIONS = (
    AttentionCalibration(
        rules={"prefix": "gated:2.0", "image": "log_gain:3", "unsafe": "log_gain:0"}, layers=(0, 1, 2, 3, 4, 5)
    ),
    None,
    AttentionCalibration(
        rules={"prefix": "target_mass:0.5", "instruction": "literal:0.1"},
        layers=(1, 2, 5),
        heads={1: (0, 3), 2: (1,), 5: (0, 1, 2, 3)},
        rows="instruction",
    ),
)


@dataclass(frozen=True, eq=False)
class CalibratedBatch:
    """A left-padded batch; spans are near the prompt's end and not where a prefix would be, which attention ignores."""

    inputs: Mapping[str, Any]
    spans: tuple[TokenSpans, ...]
    padding: tuple[int, ...]
    calibrations: tuple[AttentionCalibration | None, ...]

    def plain(self, model: Any, **settings: Any) -> Any:
        """What the model generates by itself."""
        return _generate(model, self.inputs, settings)

    def expected(self, model: Any, **settings: Any) -> Any:
        """What the oracle's attention generates."""
        with oracle(model, self.spans, self.padding, self.calibrations):
            return self.plain(model, **settings)

    def calibrated(self, model: Any, **settings: Any) -> Any:
        """What the adapter's attention generates."""
        return self.traced(model, **settings)[0]

    def traced(self, model: Any, **settings: Any) -> tuple[Any, Session]:
        """`calibrated`, and the session that recorded it."""
        attachment = Attachment(model)
        try:
            session = self.session(attachment)
            with attachment.alone(), attachment.calibrated(session):
                return self.plain(model, **settings), session
        finally:
            attachment.detach()

    def session(self, attachment: Attachment) -> Session:
        return attachment.session(self.spans, self.padding, self.calibrations, device=self.inputs["input_ids"].device)


def distance(left: Any, right: Any) -> torch.Tensor:
    """Largest difference of two generations' logits over all steps, by sequence, over the largest logit."""
    first, second = torch.stack(left.logits), torch.stack(right.logits)
    return (first - second).abs().amax((0, 2)) / second.abs().amax()


def _generate(model: Any, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    defaults = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    return model.generate(**inputs, **{**defaults, **settings}, return_dict_in_generate=True, output_logits=True)


def calibrated_batch(model: Any, requests: int = 3) -> CalibratedBatch:
    """Encode the first so many requests for a `TinyModel`."""
    texts = [_rendered(model.processor, question) for question in _QUESTIONS[:requests]]
    images = [[_picture(*size, seed)] for seed, size in enumerate(_SIZES[:requests])]
    inputs = model.processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    inputs.pop("labels", None)
    token = model.model.config.image_token_id
    padding = tuple(int((1 - row).sum()) for row in inputs["attention_mask"])
    spans = [_spans((row[left:] == token).tolist()) for row, left in zip(inputs["input_ids"], padding, strict=True)]
    return CalibratedBatch(inputs, tuple(spans), padding, CALIBRATIONS[:requests])


def _spans(is_image: list[bool]) -> TokenSpans:
    length, image = len(is_image), _runs(is_image)
    return TokenSpans(
        length=length,
        answer=length - 3,
        prefix=((length - 9, length - 6),),
        instruction=((length - 6, length - 3),),
        image=image,
        unsafe=tuple((start, min(start + 2, end)) for start, end in image[:1]),
    )


def _runs(flags: list[bool]) -> tuple[Range, ...]:
    edges = [at for at, (left, right) in enumerate(zip([False, *flags], [*flags, False], strict=True)) if left != right]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _rendered(processor: Any, question: str) -> str:
    if processor.chat_template is None:
        return f"<image>{question}"
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True)


def _picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
