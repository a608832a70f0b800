"""Extra memory: how far a call raises the process's peak beyond its inputs and outputs, each in a process of its own.

The kernel's own account (Linux): the high-water mark of the resident set is reset before the call. A first call on one
image has loaded the libraries and compiled what depends on the number of images in no way.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import multiprocessing
import resource
from argparse import Namespace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import results_file, threads
from bench.cases import Case
from bench.rivals.contender import Solution, Task
from bench.rivals.table import CONTENDERS

CASE = Case("memory", "a large batch of CLIP ViT-L/14-336 images", (577,) * 256, 768, 16, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--contenders", default="", help="comma-separated parts of names")
    parser.add_argument("--iterations", type=int, default=10, help="a multiple of ten; memory does not depend on it")
    parser.add_argument("--dry", action="store_true", help="append no rows to bench/results")


def run(args: Namespace) -> None:
    """Measure every contender; print a table and append the rows."""
    names = [name for name in CONTENDERS if any(part in name for part in args.contenders.split(","))]
    rows = [{"contender": name, "shape": CASE.shape} | in_child(name, args.iterations) for name in names]
    table = Table("contender", "extra MB", "inputs MB", "outputs MB", title=f"peak memory of a call, {CASE.shape}")
    for row in rows:
        sizes = (f"{row[key] / 1e6:.0f}" for key in ("extra", "inputs", "outputs") if key in row)
        table.add_row(row["contender"], *(sizes if "extra" in row else [row["reason"]]))
    Console(width=120).print(table)
    if not args.dry:
        results_file.append("memory", rows)


def most() -> int:
    """Bytes that a child may allocate, three quarters of what is free: needing more counts as not fitting."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    return free * 3 // 4


def in_child(name: str, iterations: int) -> dict[str, Any]:
    """Measure one contender in a new process; why not, if it cannot."""
    if reason := CONTENDERS[name].why_not("batch", "cpu", 0.0):
        return {"reason": reason}
    bound = most()
    context = multiprocessing.get_context("spawn")  # a fork would inherit the parent's pages
    ours, theirs = context.Pipe()
    process = context.Process(target=report, args=(name, iterations, bound, theirs))
    process.start()
    theirs.close()
    try:
        return json.loads(ours.recv())
    except EOFError:
        return {"reason": f"does not fit into {bound / 1e9:.0f} GB"}
    finally:
        process.join()


def report(name: str, iterations: int, bound: int, pipe: Connection) -> None:
    """Send the measurement, from the child."""
    threads.limit(1)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    try:
        with torch.inference_mode():
            pipe.send(json.dumps(measure(name, iterations)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error).lower():
            raise
        pipe.send(json.dumps({"reason": f"does not fit into {bound / 1e9:.0f} GB"}))


def measure(name: str, iterations: int) -> dict[str, Any]:
    """Bytes of inputs and outputs, and of the peak beyond them during one call."""
    contender = CONTENDERS[name]
    problem = CASE.problem().to(contender.dtype)
    first = Task(problem.images()[0], 0.05, iterations)
    contender.solve(first)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    solution = contender.solve(dataclasses.replace(first, problem=problem))
    peak = status("VmHWM")
    outputs = size(*public_outputs(name, solution, problem.prototypes.shape[0]))
    inputs = size(problem.patches, problem.prototypes)
    return {"extra": max(peak - before - outputs, 0), "inputs": inputs, "outputs": outputs, "iterations": iterations}


def public_outputs(name: str, solution: Solution, categories: int) -> list[torch.Tensor]:
    """What the caller asked for: distances; from our operators also costs and scores of patches and three numbers."""
    if not name.startswith(("guardcore", "definition")):
        return list(solution.values)
    per_patch = torch.empty(CASE.total * categories, device="meta")
    return [solution.values[0]] * 4 + [per_patch] * 2


def size(*tensors: torch.Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10
