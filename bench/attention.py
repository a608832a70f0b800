"""What a score rule costs in attention: ours over plain SDPA and over our own kernel without a rule, beside rivals."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import attention_floor, attention_report, results_file, threads
from bench.attention_cases import CASES, RULES, SPANS, AttentionCase
from bench.attention_gate import AttentionGate, Verdict
from bench.measure import Timing, interleave
from bench.paired import paired_ratio
from bench.rivals.attention import OURS, PAGED, PLAIN, RIVALS, WITH_MASS, AttentionContender
from guardcore import ops

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOOR = "floor: read keys and values"
WARM = 0.03  # seconds: a call on single rows reads more than the caches hold, but not all of what it reads leaves them


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender with the rule and the span that it runs on; `name` tells them apart."""

    contender: AttentionContender
    rule: str
    span: str

    @property
    def name(self) -> str:
        """Contender, rule, span."""
        return f"{self.contender.name} | {self.rule} | {self.span}"


BASE = Entry(PLAIN, "zero", "none")
OWN_BASE = Entry(OURS, "zero", "none")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated: " + ", ".join(CASES))
    parser.add_argument("--dtypes", default="fp32,bf16", help="comma-separated: " + ", ".join(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds a contender; slower ones run fewer rounds")
    parser.add_argument(
        "--contenders", default="", help="comma-separated parts of names; guardcore and SDPA always run"
    )
    parser.add_argument("--dry", action="store_true", help="append no rows to bench/results")


def run(args: Namespace) -> None:
    """Gate and time every case and precision asked for; print a table each and append the rows."""
    threads.limit(args.threads)
    for case in args.cases.split(","):
        for dtype in args.dtypes.split(","):
            with torch.inference_mode():
                rows = run_case(CASES[case], dtype, args)
            attention_report.show(rows)
            if not args.dry:
                results_file.append("attention", rows)


def run_case(case: AttentionCase, dtype: str, args: Namespace) -> list[dict[str, Any]]:
    """Rows of a case in one precision."""
    torch.compiler.reset()  # compiled versions belong to a function, and are few
    gate = AttentionGate(case, DTYPES[dtype])
    judged = {entry: gate.judge(*vars(entry).values()) for entry in entries(case, args.contenders)}
    for entry, verdict in judged.items():
        if verdict.run is None and entry.contender in (PLAIN, OURS):
            raise SystemExit(f"case {case.name}, {dtype}: {entry.name}: {verdict.reason}")
    runs: dict[str, Callable[[], object]] = {e.name: v.run for e, v in judged.items() if v.run is not None}
    if not case.is_causal:
        runs[FLOOR] = attention_floor.reading(case, DTYPES[dtype])
    timings = interleave(runs, args.rounds, args.budget, warm=WARM, shuffled=True)
    clock = "cpu" if args.threads == 1 else "wall"
    floor = getattr(timings[FLOOR], clock) if FLOOR in timings else attention_floor.prefill_ms(case, DTYPES[dtype])
    common = {"case": case.name, "shape": case.shape, "dtype": dtype, "clock": clock, "rounds": args.rounds}
    lowest = common | {"contender": "floor", "ms": floor} | rate(case, DTYPES[dtype], floor)
    return [lowest] + [
        common | row(entry, verdict, timings, clock, floor) | rate(case, DTYPES[dtype], median(timings, entry, clock))
        for entry, verdict in judged.items()
    ]


def entries(case: AttentionCase, parts: str) -> Iterator[Entry]:
    """Everything that runs on a case: plain attention, ours by rule and span, rivals on the short span."""
    yield from (BASE, OWN_BASE)
    yield Entry(OURS, "zero", SPANS[0])
    yield from (Entry(OURS, rule, span) for span in SPANS for rule in RULES[1:])
    others = [WITH_MASS, *RIVALS]
    if case.Q == 1 and hasattr(ops, "calibrated_attention_paged"):
        yield from (Entry(PAGED, *pair) for pair in (("zero", "none"), *((r, SPANS[0]) for r in RULES[1:])))
    for contender in others:
        if any(part in contender.name for part in parts.split(",")):
            yield from (Entry(contender, rule, SPANS[0]) for rule in contender.rules)


def median(timings: dict[str, Timing], entry: Entry, clock: str) -> float | None:
    """Median time of an entry, None if it was not timed."""
    return getattr(timings[entry.name], clock) if entry.name in timings else None


def row(entry: Entry, verdict: Verdict, timings: dict[str, Timing], clock: str, floor: float) -> dict[str, Any]:
    """One result row; ratios have a 95 % confidence interval."""
    head = {"contender": entry.contender.name, "rule": entry.rule, "span": entry.span, "error": verdict.error}
    if entry.name not in timings:
        return head | {"not_timed": verdict.reason}
    timing = timings[entry.name]
    low, high = getattr(timing, f"{clock}_quartiles")
    head |= {"ms": getattr(timing, clock), "q1": low, "q3": high, "cpu_ms": timing.cpu, "wall_ms": timing.wall}
    head |= {"over_floor": head["ms"] / floor}
    bases = {"sdpa": BASE, "own": OWN_BASE}
    for base in bases:
        for measured in dict.fromkeys((clock, "wall")):
            ratio = paired_ratio(timing, timings[bases[base].name], measured)
            name = f"over_{base}" if measured == clock else f"{measured}_over_{base}"
            head |= {name: ratio.median, f"{name}_low": ratio.low, f"{name}_high": ratio.high, "pairs": ratio.pairs}
    return head


def rate(case: AttentionCase, dtype: torch.dtype, ms: float | None) -> dict[str, float]:
    """GFLOP/s of many rows over visible pairs; GB/s of keys and values for single rows."""
    if ms is None:
        return {}
    return {"gflops": case.flops / ms / 1e6} if case.is_causal else {"gb_s": case.cache_bytes(dtype) / ms / 1e6}
