"""Time over each size of the problem, all others fixed: rows in bench/results/scaling.jsonl, plots in docs/."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from rich.console import Console

from bench import floor, results_file, scaling_plot, threads
from bench.cases import Case
from bench.compare import IDEAL, iterations_done
from bench.gate import Gate
from bench.measure import interleave
from bench.rivals.table import CONTENDERS

BASE = Case("scaling", "the middle of every sweep", (197,) * 8, 512, 8, 32)
SWEEPS = {
    "B": (1, 2, 4, 8, 16, 32, 64, 128),
    "N": (16, 50, 100, 197, 577, 1024, 2048, 4096),
    "M": (16, 32, 48, 64, 96, 128, 256, 512),
    "C": (1, 2, 4, 8, 16, 32, 64),
    "D": (64, 128, 256, 512, 768, 1024, 1536),
}
SHOWN = ("guardcore", "numba one-pass", "torch exp, bmm", "PLOT/AWT loop", "POT ot.batch", "ott-jax kernel")


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--sweeps", default=",".join(SWEEPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds a contender and point")
    parser.add_argument("--plot-only", action="store_true", help="draw the latest rows again")


def run(args: Namespace) -> None:
    """Measure the sweeps with one thread and 50 iterations, then plot."""
    file = results_file.FOLDER / "scaling.jsonl"
    if not args.plot_only:
        threads.limit(1)
        rows = [row for sweep in args.sweeps.split(",") for size in SWEEPS[sweep] for row in point(sweep, size, args)]
        file = results_file.append("scaling", rows)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for path in scaling_plot.draw(rows):
        Console().print(f"drew {path.name} into docs/")


def sized(sweep: str, size: int) -> Case:
    """The base case with one size changed."""
    changes: dict[str, dict[str, Any]] = {
        "B": {"lengths": (197,) * size},
        "N": {"lengths": (size,) * 8},
        "M": {"prototypes": size},
        "C": {"categories": size},
        "D": {"width": size},
    }
    return replace(BASE, **changes[sweep])


def point(sweep: str, size: int, args: Namespace) -> list[dict[str, Any]]:
    """Gate and time all that are shown at one size, with the floor."""
    case = sized(sweep, size)
    with torch.inference_mode():
        gate = Gate(case, 0.05, 50, 0.0)
        verdicts = {name: gate.judge(CONTENDERS[name]) for name in SHOWN}
        runs: Any = {name: partial(CONTENDERS[name].solve, v.task) for name, v in verdicts.items() if v.task}
        lowest = floor.Floor(case, iterations_done(gate.task))
        lowest.run()  # its first pages
        runs |= {"floor": lowest.run, "floor: matrix product": lowest.product}
        timings = interleave(runs, args.rounds, args.budget)
    Console().print(f"{sweep} {size}: guardcore {timings['guardcore'].cpu:.3g} ms", highlight=False)
    common = {"sweep": sweep, "size": size, "shape": case.shape}
    rows = [
        common | {"contender": name, "ms": t.cpu, "q1": t.cpu_quartiles[0], "q3": t.cpu_quartiles[1]}
        for name, t in timings.items()
    ]
    at_peak = timings["floor"].cpu - timings["floor: matrix product"].cpu + case.gemm_flops / floor.peak() / 1e6
    return [*rows, common | {"contender": IDEAL, "ms": at_peak}]
