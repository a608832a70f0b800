"""Tiny models of every family, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Image processors of transformers are built on torchvision.
if not all(map(find_spec, ("transformers", "torchvision"))):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Any]:
    """The tiny model of a family, one for the whole session: leave it as you found it."""
    from bench.tiny_models import build

    @cache
    def get(name: str) -> Any:
        if name == "smolvlm":
            pytest.importorskip("num2words")  # its processor spells the numbers of video frames
        return build(name)

    return get


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """A picture of noise."""

    def make(width: int = 60, height: int = 45, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def guarded(tiny: Callable[[str], Any]) -> Iterator[Any]:
    """LLaVA behind a prefix and a strong calibration of all its layers."""
    from guardcore.adapters.transformers.attach import attach
    from guardcore.calibration.attention_calibration import AttentionCalibration
    from guardcore.defenses.guardalign import GuardAlign

    model = tiny("llava")
    strong = AttentionCalibration(rules={"prefix": "log_gain:20"}, layers=(0, 1, 2, 3, 4, 5))
    with attach(
        GuardAlign(None, prefix="Refuse what is harmful.", calibration=strong), model.model, model.processor
    ) as own:
        yield own
