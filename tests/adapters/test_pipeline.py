"""GuardAlign on a model whose own tower screens: one pass of it for benign pictures, a second one for covered ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from bench.tiny_models.encoder import tower_encoder
from guardcore.adapters.transformers.attach import Guarded, attach
from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.defenses.guardalign import GuardAlign
from guardcore.detector.detector import Detector
from guardcore.encoders.vlm import find_tower
from guardcore.policy.policy import Policy

CALIBRATION = AttentionCalibration(rules={"prefix": "log_gain:5", "unsafe": "log_gain:0"}, layers=(1, 2))
NEW = {"max_new_tokens": 4}


def detector_for(tiny: Any, threshold: float, seed: int = 0) -> Detector:
    """One category, which every picture is nearer to than a large threshold and none than a small one."""
    category = {"name": "knife", "nouns": ["knife"], "action": "review", "threshold": threshold}
    policy = {
        "name": "tiny", "templates": ["{}"], "neutral": ["house", "tree"], "target_fpr": 0.05, "categories": [category],
    }  # fmt: skip
    return Detector(tower_encoder(tiny, seed), Policy.from_data(policy))


@pytest.fixture
def passes(tiny: Callable[[str], Any]) -> Iterator[list[int]]:
    """Pictures that went through the first block of LLaVA's tower, by pass."""
    seen: list[int] = []
    block = find_tower(tiny("llava").model).get_submodule("encoder.layers.0")
    handle = block.register_forward_hook(lambda _module, arguments, _output: seen.append(len(arguments[0])))
    yield seen
    handle.remove()


def guard(tiny: Any, detector: Detector, **stages: Any) -> Guarded:
    return attach(GuardAlign(detector, calibration=CALIBRATION, **stages), tiny.model, tiny.processor)


def test_a_benign_picture_costs_one_pass(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], passes: list[int]
) -> None:
    model = tiny("llava")
    detector = detector_for(model, 0.001)
    plain = GuardAlign(None, calibration=CALIBRATION)
    with attach(plain, model.model, model.processor) as unscreened:
        expected = unscreened.generate([picture(), picture(seed=1)], "What is this?", **NEW)
    passes.clear()
    with guard(model, detector) as guarded:
        answer = guarded.generate([picture(), picture(seed=1)], "What is this?", **NEW)
        assert "own tower" in guarded.host.screened_by(detector)
    assert sum(passes) == 2
    assert not any(verdict.flagged for verdict in answer.verdicts)
    assert answer.generation.token_ids == expected.generation.token_ids
    assert "own tower" in answer.trace.stage("screen").reason


def test_a_flagged_picture_is_covered_and_seen_again(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], passes: list[int]
) -> None:
    model = tiny("llava")
    passes.clear()
    with guard(model, detector_for(model, 1.9)) as guarded:
        answer = guarded.generate(picture(60, 45), "What is this?", **NEW)
    assert passes == [1, 1]
    assert answer.verdict.flagged
    spans = answer.generation.spans
    assert spans.unsafe
    assert {(start, end) for start, end in spans.unsafe} == set(spans.image)  # every patch is nearer than 1.9
    assert answer.trace.stage("redact").done


def test_unsafe_patches_get_no_attention_in_the_calibrated_layers(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image]
) -> None:
    """A picture whose every token is removed from all layers says little, through rows that are not calibrated."""
    model = tiny("llava")
    deaf = AttentionCalibration(rules={"unsafe": "log_gain:0"}, layers=(0, 1, 2, 3, 4, 5))
    logits = []
    for calibration in (deaf, None):
        own = GuardAlign(detector_for(model, 1.9), prefix=None, redaction=None, calibration=calibration)
        with attach(own, model.model, model.processor) as guarded:
            for seed in (0, 1):
                seen: list[torch.Tensor] = []

                def look(_tokens: torch.Tensor, scores: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
                    seen.append(scores.clone())
                    return scores

                guarded.generate(picture(seed=seed), "What?", max_new_tokens=1, logits_processor=[look])
                logits.append(seen[0])
    assert (logits[0] - logits[1]).abs().max() < 0.5 * (logits[2] - logits[3]).abs().max()


def test_another_encoder_screens_by_itself_and_the_trace_says_why(
    tiny: Callable[[str], Any], picture: Callable[..., Image.Image], passes: list[int]
) -> None:
    model = tiny("llava")
    detector = detector_for(tiny("gemma3"), 0.001)
    passes.clear()
    with guard(model, detector) as guarded:
        answer = guarded.generate(picture(), "What is this?", **NEW)
        reason = guarded.host.screened_by(detector)
    assert sum(passes) == 1
    assert reason.startswith("the detector's encoder: ")
    assert reason in answer.trace.stage("screen").reason
