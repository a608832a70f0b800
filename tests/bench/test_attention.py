"""The attention benchmark: its cases, its gate, its rows."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from bench import attention, attention_floor, attention_report, floor
from bench.attention_cases import CASES, CLASSES, GAIN, GAMMA, RULES, SPANS, TINY, AttentionCase, coefficients
from bench.attention_gate import AttentionGate
from bench.rivals.attention import OURS, PAGED, PLAIN, RIVALS, WITH_MASS, AttentionContender
from guardcore import ops

COMPILED = [rival.name for rival in RIVALS if rival.name.startswith("Flex")]
EVERYBODY = [
    pytest.param(one, marks=[pytest.mark.slow] * (one.name in COMPILED), id=one.name)
    for one in (PLAIN, OURS, WITH_MASS, PAGED, *RIVALS)
]


@pytest.fixture(autouse=True)
def without_gradients_and_compiled_versions():
    torch.compiler.reset()
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
@pytest.mark.parametrize("contender", EVERYBODY)
def test_a_contender_computes_what_the_definition_does(contender, case, dtype):
    if contender is PAGED and not hasattr(ops, "calibrated_attention_paged"):
        pytest.skip("no paged operator")
    gate = AttentionGate(case, dtype)
    for rule in contender.rules or ("zero",):
        verdict = gate.judge(contender, rule, SPANS[0] if contender.rules else "none")
        if verdict.reason == "no groups of heads":
            pytest.skip(verdict.reason)
        assert verdict.run is not None, (rule, verdict.reason)


@pytest.mark.parametrize("span", [SPANS[0], SPANS[2]])
@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_contender_that_ignores_the_rule_is_not_timed(dtype, rule, span):
    verdict = AttentionGate(TINY[0], dtype).judge(PLAIN, rule, span)
    assert verdict.run is None
    assert verdict.reason.startswith(("off by", "error is"))


def test_what_a_rule_changes_is_seen_where_bfloat16_is_coarser_than_the_bound():
    """A gate half as strong again is within bfloat16's bound on the largest error, and refused all the same."""

    def strong(task):
        return OURS.prepare(replace(task, rule=task.rule * 1.5))

    gate = AttentionGate(AttentionCase("long", "a span of few among many", 1, 4, 1, 1, 4000, 32), torch.bfloat16)
    assert gate.judge(OURS, "gated", SPANS[0]).run is not None
    verdict = gate.judge(AttentionContender("strong", strong, ()), "gated", SPANS[0])
    assert verdict.run is None
    assert "of the rule's effect" in verdict.reason


@pytest.mark.parametrize("late", [0, 40, 79])
def test_every_block_of_rows_is_compared(late):
    """Of 200 rows 96 are compared; one wrong row in any of the three blocks is seen."""
    case = AttentionCase("long", "more rows than are compared", 1, 2, 2, 200, 200, 16)
    gate = AttentionGate(case, torch.float32)
    assert [(own.start, own.stop) for own in gate.blocks] == [(0, 32), (84, 116), (168, 200)]
    row = gate.blocks[late // 32].start + late % 32

    def one_row_off(task):
        output = OURS.prepare(task)().clone()
        output[:, 1, row, 3] += 1e-3
        return lambda: output

    assert gate.judge(OURS, "additive", SPANS[2]).run is not None
    assert gate.judge(AttentionContender("one row off", one_row_off, ()), "additive", SPANS[2]).run is None


def test_nan_is_not_timed():
    def nan(task):
        return lambda: torch.full_like(task.query, math.nan)

    assert AttentionGate(TINY[1], torch.float32).judge(AttentionContender("nan", nan, ()), "zero", "none").run is None


def test_the_cases_are_those_of_the_acceptance():
    shapes = [case.shape for case in CASES.values()]
    assert shapes == ["B1 H32 Q1024 K1024 D128 causal", "B4 H8 Q2048 K2048 D64 causal", "B8 H32/8 Q1 K4096 D128"]
    causal, decode = CASES["prefill-128"], CASES["decode"]
    assert causal.pairs == 32 * sum(range(1, 1025))
    assert causal.flops == 4 * 128 * causal.pairs
    assert decode.pairs == 8 * 32 * 4096
    assert decode.cache_bytes(torch.bfloat16) == 8 * 8 * 4096 * 128 * 2 * 2


def test_spans_and_rules_are_what_they_are_called():
    case = CASES["decode"]
    counts = {span: case.key_class(span).bool().sum(1) for span in ("none", *SPANS)}
    assert counts["none"].tolist() == [0] * 8
    assert counts["16 keys"].tolist() == [16] * 8
    assert counts["576 keys"].tolist() == [576] * 8
    assert all(400 < count < 620 for count in counts["scattered"].tolist())  # 4096 / 8, five standard deviations
    assert case.key_class("scattered").unique().tolist() == list(range(CLASSES))
    assert coefficients("additive", 3)[2, 1].tolist() == pytest.approx([0, 0, math.log(GAIN)])
    assert coefficients("gated", 3)[0, 4].tolist() == pytest.approx([GAMMA, 0, 0])
    assert not coefficients("zero", 1).any()


def test_rows_have_overheads_over_both_and_read_as_markdown():
    arguments = Namespace(contenders="mask", rounds=7, budget=1.0, threads=1)
    case = TINY[1]
    if floor.shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    rows = attention.run_case(case, "fp32", arguments)
    ours = [row for row in rows if row["contender"] == "guardcore"]
    assert [(row["rule"], row["span"]) for row in ours[:2]] == [("zero", "none"), ("zero", "16 keys")]
    assert len(ours) == 2 + 2 * len(SPANS)
    own_base, base = ours[0], next(row for row in rows if row["contender"] == "SDPA")
    assert own_base["over_own"] == own_base["over_own_low"] == base["over_sdpa"] == 1.0
    for row in ours[1:]:
        assert row["over_sdpa_low"] <= row["over_sdpa"] <= row["over_sdpa_high"]
        assert row["gb_s"] == pytest.approx(case.cache_bytes(torch.float32) / row["ms"] / 1e6)
    table = attention_report.lines(rows)
    widths = {line.count(" | ") for line in table if line.startswith("| ")}
    assert widths == {len(attention_report.COLUMNS) - 1}
    assert len([line for line in table if line.startswith("| guardcore")]) == len(ours) + 3 * hasattr(
        ops, "calibrated_attention_paged"
    )


def test_a_wrong_kernel_ends_the_run(monkeypatch):
    def wrong(task):
        return lambda: torch.zeros_like(task.query)

    monkeypatch.setattr(attention, "OURS", replace(OURS, prepare=wrong))
    with pytest.raises(SystemExit, match="guardcore"):
        attention.run_case(TINY[0], "fp32", Namespace(contenders="none", rounds=1, budget=1.0, threads=1))


def test_the_floor_counts_what_it_says():
    if floor.shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    loaded = floor.library()
    loaded.read_all.restype = floor.ctypes.c_float
    numbers = torch.arange(512, dtype=torch.float32)
    assert loaded.read_all(floor.pointer(numbers), floor.ctypes.c_int64(512)) == 512 * 511 / 2
    assert attention_floor.reading(TINY[1], torch.float32)() == TINY[1].cache_bytes(torch.float32) // 1024 * 256
