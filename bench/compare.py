"""The comparison: every contender on a case, gated, timed in turns, next to the floor."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import floor, results_file, threads
from bench.cases import CASES, Case
from bench.gate import Gate, Verdict
from bench.measure import Timing, interleave
from bench.rivals.contender import Task
from bench.rivals.table import CONTENDERS
from guardcore import ops

MOST = 2000  # iterations, where a tolerance stops
IDEAL = "floor, product at peak"
COLUMNS = (
    ("ms", ".4g"),
    ("samples", "d"),
    ("gflops", ".1f"),
    ("floor_ratio", ".2f"),
    ("ratio", ".2f"),
    ("max_rel_error", ".0e"),
    ("row_error", ".1e"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run compares."""

    epsilon: float
    iterations: int
    tolerance: float
    threads: int
    rounds: int
    budget: float
    device: str

    def __str__(self) -> str:
        how = f"to L1 row error {self.tolerance:g}" if self.tolerance else f"{self.iterations} iterations"
        return f"epsilon {self.epsilon}, {how}, {self.threads} thread(s), {self.device}"


def add_arguments(parser: ArgumentParser, cases: str) -> None:
    """Options of the subcommands that compare."""
    parser.add_argument("--cases", default=cases, help="comma-separated: " + ", ".join(CASES))
    parser.add_argument("--epsilon", default="0.05", help="comma-separated")
    parser.add_argument("--iterations", type=int, default=50, help="a multiple of ten")
    parser.add_argument("--mode", default="fixed", help="comma-separated: fixed, tolerance")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="L1 row error of mode `tolerance`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a contender; slower ones run 3 rounds")
    parser.add_argument("--contenders", default="", help="comma-separated parts of names; guardcore always runs")
    parser.add_argument("--dry", action="store_true", help="append no rows to bench/results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def run(args: Namespace) -> None:
    """Compare on every case, epsilon and mode asked for; print a table each and append the rows."""
    threads.limit(args.threads)
    chosen = [name for name in CONTENDERS if is_chosen(name, args.contenders)]
    for mode in args.mode.split(","):
        for epsilon in map(float, args.epsilon.split(",")):
            most, tolerance = (MOST, args.tolerance) if mode == "tolerance" else (args.iterations, 0.0)
            settings = Settings(epsilon, most, tolerance, args.threads, args.rounds, args.budget, args.device)
            for case in args.cases.split(","):
                with torch.inference_mode():
                    rows = run_case(CASES[case], settings, chosen)
                show(rows, CASES[case], settings)
                if not args.dry:
                    results_file.append("joint" if CASES[case].groups else "sinkhorn", rows)


def is_chosen(name: str, parts: str) -> bool:
    """Whether a contender is asked for; guardcore always is."""
    return name == "guardcore" or any(part in name for part in parts.split(","))


def run_case(case: Case, settings: Settings, chosen: list[str]) -> list[dict[str, Any]]:
    """Gate, then time one case; return its rows, the floor's first."""
    for name in chosen:
        CONTENDERS[name].forget()
    gate = Gate(case, settings.epsilon, settings.iterations, settings.tolerance, settings.device)
    verdicts = {name: gate.judge(CONTENDERS[name]) for name in chosen}
    if verdicts["guardcore"].task is None:
        raise SystemExit(f"case {case.name}: guardcore {verdicts['guardcore'].reason}")
    iterations = iterations_done(gate.task)
    runs: dict[str, Callable[[], object]] = {
        name: partial(CONTENDERS[name].solve, verdict.task) for name, verdict in verdicts.items() if verdict.task
    }
    if settings.device == "cpu":
        lowest = floor.Floor(case, iterations, settings.threads)
        lowest.run()  # its first pages
        runs = {"floor": lowest.run, "floor: matrix product": lowest.product} | runs
    timings = interleave(runs, settings.rounds, settings.budget)
    flops = case.gemm_flops + case.iteration_flops(iterations)
    names = [name for name in runs if name not in chosen] + chosen
    rows = [row(name, timings, verdicts.get(name), settings, flops) for name in names]
    if "floor" in timings:
        rows.insert(1, ideal(rows[0], rows[1], rows[2], case, settings))
    return [{"case": case.name, "shape": case.shape} | entry | dataclasses.asdict(settings) for entry in rows]


def ideal(
    lowest: dict[str, Any], product: dict[str, Any], ours: dict[str, Any], case: Case, settings: Settings
) -> dict[str, Any]:
    """The floor if the matrix product ran at the processor's peak: measured parts, put together by arithmetic."""
    peak = floor.peak() * settings.threads
    ms = lowest["ms"] - product["ms"] + case.gemm_flops / peak / 1e6
    entry = {"contender": IDEAL, "clock": lowest["clock"], "ms": ms, "ratio": ms / ours["ms"], "peak_gflops": peak}
    return entry | {"gflops": lowest["gflops"] * lowest["ms"] / ms, "floor_ratio": ms / lowest["ms"]}


def iterations_done(task: Task) -> list[int]:
    """Iterations of all problems of each image, as our operator counts them."""
    problem = task.problem
    options: dict[str, Any] = {
        "epsilon": task.epsilon, "max_iterations": task.iterations, "tolerance": task.tolerance
    }  # fmt: skip
    if problem.group is not None:
        options["num_groups"] = problem.num_groups
        return ops.joint_sinkhorn(problem.batch, problem.prototypes[0], problem.group, **options).iterations.tolist()
    out = ops.sinkhorn_packed(problem.patches, problem.cu_seqlens, problem.prototypes, **options)
    return out.iterations.sum(1).tolist()


def row(
    name: str, timings: dict[str, Timing], verdict: Verdict | None, settings: Settings, flops: float
) -> dict[str, Any]:
    """One result row; `ms` is the CPU time of one thread, or the wall time of several."""
    entry: dict[str, Any] = {"contender": name}
    if verdict is not None:
        entry |= {"max_rel_error": verdict.error, "row_error": verdict.row_error, "not_timed": verdict.reason}
    if name not in timings:
        return entry
    on_wall = settings.threads > 1 or settings.device != "cpu"
    timing, clock = timings[name], "wall" if on_wall else "cpu"
    low, high = timing.wall_quartiles if on_wall else timing.cpu_quartiles
    ms = getattr(timing, clock)
    entry |= {"clock": clock, "ms": ms, "q1": low, "q3": high, "cpu_ms": timing.cpu, "wall_ms": timing.wall}
    entry |= {"samples": len(timing.cpu_ms), "ratio": ms / getattr(timings["guardcore"], clock)}
    if "product" not in name:
        entry["gflops"] = flops / ms / 1e6
    if "floor" in timings:
        entry["floor_ratio"] = ms / getattr(timings["floor"], clock)
    return entry


def show(rows: list[dict[str, Any]], case: Case, settings: Settings) -> None:
    """Print rows as a table; below it those that were not timed, and why."""
    clock = "CPU ms" if settings.threads == 1 and settings.device == "cpu" else "wall ms"
    table = Table(title=f"case {case.name}: {case.meaning}, {case.shape}\n{settings}")
    table.add_column("contender", no_wrap=True)
    for column in (clock, "quartiles", "n", "GFLOP/s", "x floor", "x guardcore", "error", "row error"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in rows:
        if "ms" in entry:
            table.add_row(
                entry["contender"],
                *(number(entry, *column) for column in COLUMNS[:1]),
                spread(entry),
                *(number(entry, *column) for column in COLUMNS[1:]),
            )
    console = Console(width=120)
    console.print(table)
    for entry in rows:
        if "ms" not in entry:
            console.print(f"  not timed: {entry['contender']}: {entry['not_timed']}")
    if settings.device == "cpu" and settings.threads == 1:
        rates = floor.product_rates(case) | {"multiply-add peak": rows[1]["peak_gflops"]}
        console.print("  one core, GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))


def spread(entry: dict[str, Any]) -> str:
    """The quartiles."""
    return f"{entry['q1']:.3g} - {entry['q3']:.3g}" if "q1" in entry else ""


def number(entry: dict[str, Any], key: str, form: str) -> str:
    """A number, or nothing where the row has none."""
    value = entry.get(key)
    return "" if value is None or value != value else format(value, form)
