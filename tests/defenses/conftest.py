"""A host that records what it is asked, a detector of drawn things, and pictures that it does and does not flag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from guardcore.calibration.mass import LayerMass
from guardcore.calibration.spans import TokenSpans
from guardcore.defenses.protocol import Generation, Request, RequestError
from guardcore.detector.detector import Detector
from guardcore.detector.verdict import Verdict
from guardcore.encoders import load_encoder
from guardcore.policy.policy import Policy

ROOT = Path(__file__).parents[2]


@dataclass
class FakeHost:
    """Answers with what `reply` says of a request and the number of its sequence."""

    reply: Callable[[Request, int], Generation] = lambda request, index: Generation(
        f"{request.answer_start}answer {index} to {request.prompt}",
        (7,) * 5,
        None,
        (),
        {"encode": 0.1, "generate": 0.4},
    )
    refused: tuple[str, ...] = ()  # prompts that can't be encoded
    name: str = "fake"
    asked: list[list[Request]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    screened: list[int] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], **generation: Any) -> list[Generation]:
        for index, request in enumerate(requests):
            if request.prompt in self.refused:
                raise RequestError(index, "holds a special token")
        self.asked.append(list(requests))
        self.options.append(generation)
        count = generation.get("num_return_sequences", 1)
        return [self.reply(request, index) for request in requests for index in range(count)]

    def screen(self, detector: Detector, images: Sequence[Image.Image | Exception]) -> list[Verdict]:
        self.screened.append(len(images))
        return detector.screen(images)


def with_masses(request: Request, index: int) -> Generation:
    """As a host does: masses only for a calibrated request."""
    layers = request.calibration.layer_indices(8) if request.calibration else ()
    masses = tuple(LayerMass(layer, (0.01, 0.02), (0.03, 0.05)) for layer in layers)
    return Generation("text", (1, 2, 3), TokenSpans(length=9, answer=8, prefix=((1, 3),)), masses)


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def fake_host() -> type[FakeHost]:
    return FakeHost


@pytest.fixture
def reply_with_masses() -> Callable[[Request, int], Generation]:
    return with_masses


@pytest.fixture(scope="session")
def detector() -> Detector:
    return Detector(load_encoder("builtin"), Policy.builtin("demo"))


@pytest.fixture(scope="session")
def picture() -> Callable[[str], Image.Image]:
    """Drawn scenes of the examples by name."""

    def load(name: str) -> Image.Image:
        with Image.open(ROOT / "examples" / "pictures" / f"scene_{name}.jpg") as image:
            return image.convert("RGB")

    return load
