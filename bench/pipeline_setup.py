"""What the pipeline benchmark runs: a detector that flags one picture and clears another, and the stages.

With random weights nothing looks unsafe, and no calibration would mean anything. So the threshold of one category is
put between the scores of two pictures: the one above it is the benign one, the one below it is flagged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bench import pipeline_model
from bench.pipeline_model import PROMPT, PipelineModel
from guardcore import Policy
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.defenses.guardalign import GuardAlign
from guardcore.defenses.none import Undefended
from guardcore.defenses.prefix import SAFETY_PREFIX
from guardcore.defenses.protocol import Answer, Defense, Host, Request
from guardcore.detector.detector import Detector

PICTURES = Path(__file__).parents[1] / "examples" / "pictures"
NEVER = 0.0  # a threshold that no cost reaches


@dataclass(frozen=True)
class Pictures:
    """A picture that nothing is found in, one that has a region flagged, and the detector that says so."""

    benign: Image.Image
    flagged: Image.Image
    detector: Detector


def build_model() -> PipelineModel:
    """The model, whose tokenizer knows the prompt, the prefix and the policy."""
    policy = Policy.builtin("demo")
    concepts = [concept for category in policy.categories for concept in category.concepts()]
    texts = [text for concept in (*concepts, *policy.neutral_concepts()) for text in concept.texts]
    return pipeline_model.build([PROMPT, SAFETY_PREFIX, *texts] * 2)


def drawn_pictures() -> list[Image.Image]:
    """The square example pictures."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(PICTURES.glob("scene_*.jpg"))]
    return [picture for picture in pictures if picture.width == picture.height]


def choose(encoder: Any, pictures: Sequence[Image.Image], scoring: str = "normalized") -> Pictures:
    """Find the category and the two pictures whose scores are farthest apart."""
    policy = Policy.builtin("demo")
    names = [category.name for category in policy.categories]
    blind = Detector(encoder, with_thresholds(policy, dict.fromkeys(names, NEVER)), scoring=scoring)
    verdicts = blind.screen(list(pictures))
    statistics = torch.tensor([[verdict.statistics[name] for name in names] for verdict in verdicts])
    column = int((statistics.amax(0) - statistics.amin(0)).argmax())
    benign, flagged = int(statistics[:, column].argmax()), int(statistics[:, column].argmin())
    limit = float(statistics[:, column].amax() + statistics[:, column].amin()) / 2
    thresholds = dict.fromkeys(names, NEVER) | {names[column]: limit}
    detector = Detector(encoder, with_thresholds(policy, thresholds), scoring=scoring)
    return Pictures(pictures[benign], pictures[flagged], detector)


def with_thresholds(policy: Policy, thresholds: dict[str, float]) -> Policy:
    """The policy with a threshold for every category."""
    fields = policy.model_dump()
    for category in fields["categories"]:
        category |= {"threshold": thresholds[category["name"]], "target_fpr": None}
    return Policy.model_validate(fields)


def defenses(detector: Detector) -> dict[str, Defense]:
    """The stages, one more at a time, and all of them."""
    calibration = AttentionCalibration()
    return {
        "host only": Undefended(),
        "prefix": GuardAlign(None, calibration=None),
        "prefix, calibration": GuardAlign(None, calibration=calibration),
        "screening": GuardAlign(detector, prefix=None, calibration=None),
        "all": GuardAlign(detector, calibration=calibration),
    }


def copies(picture: Image.Image) -> Iterator[Image.Image]:
    """The picture again and again, each time another pixel changed: what was remembered of one helps no other."""
    for number in count():
        own = picture.copy()
        own.putpixel((number % own.width, number // own.width % own.height), (number % 251, 0, 0))
        yield own


def plain(model: PipelineModel, pictures: Iterator[Image.Image], generation: dict[str, Any]) -> list[int]:
    """Generate by transformers alone: the baseline."""
    parts = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = model.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = model.processor(text=text, images=[next(pictures)], return_tensors="pt").to(model.plain.dtype)
    tokens = model.plain.generate(**inputs, **generation)[0, inputs["input_ids"].shape[1] :]
    model.processor.decode(tokens, skip_special_tokens=True)
    return list(tokens.tolist())


def defended(defense: Defense, host: Host, pictures: Iterator[Image.Image], generation: dict[str, Any]) -> Answer:
    """Generate by a defense."""
    return defense.answer(host, [Request(PROMPT, (next(pictures),))], **generation)[0]
