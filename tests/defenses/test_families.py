"""GuardAlign and ETA end to end on a tiny model of every family."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import guardcore
from guardcore.defenses.protocol import Request
from guardcore.defenses.scorers import PhraseScorer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(find_spec, ("transformers", "torchvision", "num2words"))),
        reason="could not import transformers, torchvision or num2words",
    ),
]
FAMILIES = (
    "llava llava_next llava_onevision qwen2_vl qwen2_5_vl qwen3_vl internvl smolvlm idefics3 gemma3 mistral3 paligemma "
    "mllama"
)
TARGET = guardcore.AttentionCalibration({"prefix": "target_mass:0.9"}, layers=(2, 3))
NO_TEMPLATE = {"paligemma"}  # neither text alone nor a forced beginning


@pytest.mark.parametrize("name", FAMILIES.split())
def test_a_batch_behind_guardalign(name, detector, picture):
    from bench.tiny_models import build

    tiny = build(name)
    requests = [
        Request("What is this?", (picture("weapons"),)),
        Request("Compare.", (picture("benign_2"), picture("death"))),
        Request("And?", (OSError("cut"),)),
        *([] if name in NO_TEMPLATE else [Request("Tell a story.")]),
    ]
    with guardcore.attach(guardcore.GuardAlign(detector, calibration=TARGET), tiny.model, tiny.processor) as guarded:
        answers = guarded.generate_batch(requests, max_new_tokens=4)
    assert [answer.refused for answer in answers] == [False, False, True, False][: len(answers)]
    assert answers[0].verdict.found == ("weapons",)
    assert answers[1].verdict.found == ("death",)
    for answer in answers[:2] + answers[3:]:
        assert 1 <= len(answer.generation.token_ids) <= 4
        assert {mass.layer for mass in answer.trace.masses} == {2, 3}
        for mass in answer.trace.masses:
            raised = [max(before, 0.9) if before > 0 else 0.0 for before in mass.before]  # nought: out of the window
            assert mass.after == pytest.approx(raised, abs=1e-4)


@pytest.mark.parametrize("name", sorted(set(FAMILIES.split()) - NO_TEMPLATE))
def test_eta_aligns_what_is_unsafe(name, detector, picture):
    from bench.tiny_models import build

    tiny = build(name)
    eta = guardcore.ETA(detector.encoder, PhraseScorer(), image_threshold=-1.0, candidates=2, sentence_tokens=12)
    with guardcore.attach(eta, tiny.model, tiny.processor) as guarded:
        answer = guarded.generate(picture("weapons"), "What is this?", max_new_tokens=20)
    assert answer.text.startswith("As an AI assistant")
    assert answer.trace.stage("align").done
