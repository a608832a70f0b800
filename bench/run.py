"""Run a benchmark: `python -m bench.run sinkhorn [--cases a,b] [--threads 1] [--rounds 9]`.

A contender whose result is off is not timed: the gate compares each with the float64 definition at the same iteration
count.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import results_file
from bench.cases import SINKHORN, SinkhornCase
from bench.measure import Timing, interleave
from bench.rivals.sinkhorn import RIVALS
from guardcore import reference

GATE = 1e-5  # relative error that every contender must beat; float32 rounding leaves about 1e-6


def gate(case: SinkhornCase, epsilon: float, iterations: int) -> dict[str, float]:
    """Return the largest relative error of each contender against float64; raise if one is beyond GATE."""
    patches, prototypes = case.inputs()
    truth = reference.sinkhorn(
        patches.double(), prototypes.double(), epsilon=epsilon, max_iterations=iterations, tolerance=0.0
    ).distance
    errors = {
        name: float(((run(patches, prototypes, epsilon, iterations).double() - truth) / truth).abs().max())
        for name, run in RIVALS.items()
    }
    if wrong := {name: error for name, error in errors.items() if not error < GATE}:
        raise SystemExit(f"case {case.name}: not timed, these disagree with float64: {wrong}")
    return errors


def row(case: SinkhornCase, name: str, timing: Timing, error: float, best: float, iterations: int) -> dict[str, Any]:
    """Return one result row."""
    flops = case.gemm_flops + case.iteration_flops(iterations)
    low, high = timing.cpu_quartiles
    return {
        "op": "sinkhorn", "case": case.name, "contender": name, "cpu_ms": timing.cpu, "cpu_q1": low, "cpu_q3": high,
        "wall_ms": timing.wall, "gflops": flops / timing.cpu / 1e6, "ratio": timing.cpu / best, "max_rel_error": error,
        "iterations": iterations,
    }  # fmt: skip


def run_case(case: SinkhornCase, epsilon: float, iterations: int, rounds: int) -> list[dict[str, Any]]:
    """Gate, then time one case; return its rows."""
    errors = gate(case, epsilon, iterations)
    inputs = case.inputs()
    timings = interleave({name: partial(run, *inputs, epsilon, iterations) for name, run in RIVALS.items()}, rounds)
    best = timings["guardcore"].cpu
    rows = [row(case, name, timing, errors[name], best, iterations) for name, timing in timings.items()]
    return [entry | {"epsilon": epsilon} for entry in rows]


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print rows as a table."""
    columns = ("case", "contender", "CPU ms", "quartiles", "wall ms", "GFLOP/s", "x guardcore", "max rel error")
    table = Table(*columns, title=title)
    for r in rows:
        table.add_row(
            r["case"], r["contender"], f"{r['cpu_ms']:.2f}", f"{r['cpu_q1']:.2f} - {r['cpu_q3']:.2f}",
            f"{r['wall_ms']:.2f}", f"{r['gflops']:.1f}", f"{r['ratio']:.2f}", f"{r['max_rel_error']:.1e}",
        )  # fmt: skip
    Console(width=120).print(table)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", choices=["sinkhorn"])
    parser.add_argument("--cases", default="a,b,c", help="comma-separated: " + ", ".join(SINKHORN))
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    for name in args.cases.split(","):
        with torch.inference_mode():
            rows += run_case(SINKHORN[name], args.epsilon, args.iterations, args.rounds)
    settings = f"epsilon {args.epsilon}, {args.iterations} iterations, {args.threads} thread(s)"
    show(rows, f"sinkhorn, {settings}, median of {args.rounds}")
    print("rows appended to", results_file.append("sinkhorn", rows).relative_to(results_file.FOLDER.parents[1]))


if __name__ == "__main__":
    main()
