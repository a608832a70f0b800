"""Wall time of our operator by number of threads, in turns within one process, for inputs of each precision."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from bench import results_file
from bench.cases import CASES
from bench.measure import interleave
from bench.rivals.contender import Contender, Task
from bench.rivals.ours import CONTENDERS


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the larger number")
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dry", action="store_true", help="append no rows to bench/results")


def run(args: Namespace) -> None:
    """Time with one and with several threads; print a table and append the rows."""
    counts, rows = (1, args.threads), []
    ours = [contender for contender in CONTENDERS if contender.name != "definition"]
    for name in args.cases.split(","):
        runs: dict[str, Callable[[], object]] = {}
        for contender in ours:
            task = Task(CASES[name].problem().to(contender.dtype), args.epsilon, args.iterations)
            runs |= {f"{contender.name}/{count}": partial(at, count, contender, task) for count in counts}
        with torch.inference_mode():
            timings = interleave(runs, args.rounds)
        for contender in ours:
            one, several = (timings[f"{contender.name}/{count}"].wall for count in counts)
            row = {"case": name, "contender": contender.name, "threads_compared": args.threads}
            rows.append(row | {"one_ms": one, "several_ms": several, "speedup": one / several})
    table = Table("case", "contender", "1 thread, ms", f"{args.threads} threads, ms", "speedup", title="wall time")
    for row in rows:
        figures = (f"{row['one_ms']:.4g}", f"{row['several_ms']:.4g}", f"{row['speedup']:.2f}")
        table.add_row(str(row["case"]), str(row["contender"]), *figures)
    Console(width=120).print(table)
    if not args.dry:
        results_file.append("threads", rows)


def at(threads: int, contender: Contender, task: Task) -> None:
    """Solve with that many threads."""
    torch.set_num_threads(threads)
    contender.solve(task)
