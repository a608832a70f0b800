"""The pipeline benchmark: its model's geometry, its two pictures, what it refuses to time, its table."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench import pipeline, pipeline_model
from bench.measure import Timing
from bench.pipeline_setup import build_model, choose, copies, defenses, drawn_pictures
from guardcore.calibration.mass import LayerMass
from guardcore.defenses.protocol import Answer, Generation, Stage, Trace

MASSES = (LayerMass(5, (0.1, 0.2), (0.2, 0.2)),)


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("transformers")
    return build_model()


@pytest.fixture(scope="module")
def pictures(model):
    return choose(model.encoder(), drawn_pictures())


def test_the_geometry_is_that_of_llava(model):
    config = model.model.config
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size // vision.patch_size) ** 2 == config.image_seq_length == 576
    assert model.model.model.vision_tower.embeddings.position_embedding.num_embeddings == 577
    assert text.hidden_size // text.num_attention_heads == text.head_dim == 128
    count = sum(parameter.numel() for parameter in model.model.model.vision_tower.parameters())
    assert 0.03 < count / sum(parameter.numel() for parameter in model.model.parameters()) < 0.05  # 4 % in LLaVA-1.5


def test_words_of_prompt_and_policy_are_tokens(model):
    words = pipeline_model.PROMPT.split()
    assert len(model.processor.tokenizer(pipeline_model.PROMPT).input_ids) == len(words) + 3  # begin, `?`, `.`


def test_both_models_are_one(model):
    """In any precision: the same memory, the same logits; only one of them is ever attached to."""
    inputs = {"input_ids": torch.tensor([[0, 5, 6, 7]])}
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            both = model.to(dtype)
            assert torch.equal(both.model(**inputs).logits, both.plain(**inputs).logits)
            weights = [each.lm_head.weight for each in (both.model, both.plain)]
            assert weights[0].dtype == dtype
            assert weights[0].data_ptr() == weights[1].data_ptr()


def test_the_encoder_has_the_models_tower(model):
    from guardcore.encoders.vlm import TowerEncoder

    for dtype in (torch.bfloat16, torch.float32):
        encoder = model.to(dtype).encoder()
        assert TowerEncoder(model.model, encoder).fingerprint == encoder.fingerprint  # refuses any other weights


def test_one_picture_is_cleared_and_the_other_is_flagged(pictures):
    benign, flagged = pictures.detector.screen([pictures.benign, pictures.flagged])
    assert benign.error is None
    assert not benign.flagged
    assert flagged.flagged
    assert flagged.regions


def test_no_two_calls_see_one_picture(pictures):
    """What is remembered of a picture's features would make later calls cheaper; what is found stays the same."""
    drawn = list(itertools.islice(copies(pictures.flagged), 600))
    assert len({picture.tobytes() for picture in drawn}) == 600
    assert pictures.detector.screen(drawn[7]).flagged


def answer(stages: str, *, flagged: bool | None = None, masses: tuple[LayerMass, ...] = (), tokens: int = 4) -> Answer:
    """What a defense would return."""
    verdicts = () if flagged is None else (SimpleNamespace(flagged=flagged, headline="judged"),)
    trace = Trace((Stage("redact", bool(flagged), ""),))
    generation = Generation("", tuple(range(tokens)), masses=masses, seconds={"encode": 0.01, "generate": 0.5})
    return Answer(stages, verdicts, trace, generation)


def seen(**changes: Answer):
    right = {
        "plain generate": [0, 1, 2, 3],
        "host only": answer("host only"),
        "prefix, calibration": answer("prefix, calibration", masses=MASSES),
        "all": answer("all", flagged=False, masses=MASSES),
    }
    return right | {name.replace("_", " "): change for name, change in changes.items()}


def test_stages_that_do_what_they_say_are_timed():
    pipeline.check(seen(), "benign", 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plain_generate": [0, 1, 2, 4]}, "not those of plain generate"),
        ({"all": answer("all", flagged=True, masses=MASSES)}, "the benign picture is judged"),
        ({"all": answer("all", flagged=False)}, "calibrated layers"),
        ({"host_only": answer("host only", masses=MASSES)}, "calibrated layers"),
        ({"all": answer("all", flagged=False, masses=(LayerMass(5, (0.2,), (0.2,)),))}, "does not raise"),
        ({"all": answer("all", flagged=False, masses=MASSES, tokens=3)}, "did not generate 4 tokens"),
        ({"all": replace(answer("all"), generation=None, reason="refused")}, "refused"),
    ],
)
def test_stages_that_do_something_else_are_not(changes, message):
    with pytest.raises(SystemExit, match=message):
        pipeline.check(seen(**changes), "benign", 4)


def test_a_flagged_picture_must_be_covered():
    covered = answer("all", flagged=True, masses=MASSES)
    pipeline.check(seen(all=covered), "flagged", 4)
    with pytest.raises(SystemExit, match="the flagged picture is judged"):
        pipeline.check(seen(all=replace(covered, trace=Trace((Stage("redact", False, ""),)))), "flagged", 4)


def test_rows_become_a_table():
    base, own = Timing((100.0,) * 7, (110.0,) * 7, tuple(range(7))), Timing((102.0,) * 7, (111.0,) * 7, tuple(range(7)))
    timings = {pipeline.PLAIN: base, "all": own}
    common = {"picture": "benign", "dtype": "bf16", "new_tokens": 4, "rounds": 7, "clock": "cpu"}
    traced = answer("all", flagged=False, masses=MASSES)
    rows = [common | pipeline.row(name, timings, "cpu") for name in timings]
    rows[1] |= pipeline.parts([traced, traced])
    assert rows[1]["over_plain"] == pytest.approx(1.02)
    assert rows[1]["wall_over_plain_high"] == pytest.approx(111 / 110)
    assert rows[1]["generate_ms"] == 500
    assert rows[1]["screen_ms"] == 0
    last = pipeline.lines(rows)[-1]
    assert last.startswith("| all | 102 | 102 - 102 | +2.0 (+2.0 ... +2.0) | 0.0 (0.00%) |")


def test_the_stages_differ_by_what_they_are_called(pictures):
    found = defenses(pictures.detector)
    assert [found[name].detector is not None for name in ("prefix", "prefix, calibration", "screening", "all")] == [
        False, False, True, True
    ]  # fmt: skip
    assert [found[name].calibration is not None for name in ("prefix", "prefix, calibration", "screening", "all")] == [
        False, True, False, True
    ]  # fmt: skip
    assert [bool(found[name].prefix) for name in ("prefix", "prefix, calibration", "screening", "all")] == [
        True, True, False, True
    ]  # fmt: skip
