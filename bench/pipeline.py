"""What each stage of GuardAlign costs a whole model, over plain `generate`: `python -m bench.run pipeline`.

A LLaVA of LLaVA-1.5's geometry with random weights (bench/pipeline_model.py), one picture, one prompt, greedy, a fixed
number of new tokens, one sequence. Benign and flagged pictures apart: a flagged one needs a second pass of the tower.
Nothing is timed before every stage was seen to do what it says, and the host alone to give plain generate's tokens.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from itertools import repeat
from statistics import median
from typing import Any

import torch
from PIL import Image

from bench import results_file, threads
from bench.measure import Timing, interleave
from bench.paired import Ratio, paired_ratio
from bench.pipeline_model import PipelineModel
from bench.pipeline_setup import build_model, choose, copies, defended, defenses, drawn_pictures, plain
from guardcore.adapters.transformers.attach import attach
from guardcore.defenses.protocol import Answer, Host
from guardcore.detector.detector import Detector

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PLAIN, HOST = "plain generate", "host only"
PARTS = ("screen", "redact", "encode", "generate")
Stages = dict[str, Callable[[], Any]]


def add_arguments(parser: ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--pictures", default="benign,flagged", help="comma-separated: benign, flagged")
    parser.add_argument("--stages", default="", help="comma-separated names; all by default")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument(
        "--scoring", default="normalized", help="the detector's rule; by default GuardAlign's transport"
    )
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dry", action="store_true", help="append no rows to bench/results")


def run(args: Namespace) -> None:
    """Build the model, check and time the stages on each picture asked for; print tables and append the rows."""
    threads.limit(args.threads)
    model = build_model().to(DTYPES[args.dtype])
    pictures = choose(model.encoder(), drawn_pictures(), args.scoring)
    generation = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": False}
    with attach(defenses(pictures.detector)["all"], model.model, model.processor) as guarded:
        for kind in args.pictures.split(","):
            prepared = partial(stages, model, guarded.host, pictures.detector, generation, args.stages)
            picture = getattr(pictures, kind)
            check({name: run() for name, run in prepared(repeat(picture)).items()}, kind, args.tokens)
            rows = time_stages(prepared(copies(picture)), kind, args)
            show(rows)
            if not args.dry:
                results_file.append("pipeline", rows)


def stages(
    model: PipelineModel,
    host: Host,
    detector: Detector,
    generation: dict[str, Any],
    chosen: str,
    pictures: Iterator[Image.Image],
) -> Stages:
    """Plain generate and the stages asked for, each on the next of the pictures when it is called."""
    runs: Stages = {PLAIN: partial(plain, model, pictures, generation)}
    for name, defense in defenses(detector).items():
        if not chosen or name in (HOST, *chosen.split(",")):
            runs[name] = partial(defended, defense, host, pictures, generation)
    return runs


def time_stages(runs: Stages, kind: str, args: Namespace) -> list[dict[str, Any]]:
    """A row a stage."""
    answers: dict[str, list[Any]] = {name: [] for name in runs}

    def kept(name: str) -> Callable[[], object]:
        return lambda: answers[name].append(runs[name]())

    timings = interleave({name: kept(name) for name in runs}, args.rounds, shuffled=True)
    clock = "cpu" if args.threads == 1 else "wall"
    common = {"picture": kind, "dtype": args.dtype, "new_tokens": args.tokens, "rounds": args.rounds, "clock": clock}
    common |= {"scoring": args.scoring, "transformers": version("transformers")}
    return [common | row(name, timings, clock) | parts(answers[name]) for name in runs]


def check(seen: Mapping[str, Any], kind: str, tokens: int) -> None:
    """Every stage does what it says, or the run ends.

    Raises:
        SystemExit: a stage generated another number of tokens, judged the picture the other way, left it uncovered,
            did not calibrate, or the host alone gave other tokens than plain generate.
    """
    if list(seen[HOST].generation.token_ids) != seen[PLAIN]:
        raise SystemExit("not timed: the host's tokens without any stage are not those of plain generate")
    for name, answer in seen.items():
        if name == PLAIN:
            continue
        if answer.generation is None or len(answer.generation.token_ids) != tokens:
            raise SystemExit(f"not timed: {name} did not generate {tokens} tokens: {answer.reason}")
        if bool(answer.generation.masses) != ("calibration" in name or name == "all"):
            raise SystemExit(f"not timed: {name}: expected calibrated layers where it says so and only there")
        if any(sum(mass.after) <= sum(mass.before) for mass in answer.generation.masses):
            raise SystemExit(f"not timed: {name}: calibration does not raise the prefix's attention")
        if answer.verdicts and (answer.verdicts[0].flagged, answer.trace.stage("redact").done) != (
            kind == "flagged",
            kind == "flagged",
        ):
            raise SystemExit(f"not timed: {name}: the {kind} picture is judged {answer.verdicts[0].headline}")


def row(name: str, timings: Mapping[str, Timing], clock: str) -> dict[str, Any]:
    """Times of a stage, and the ratio to plain generate with its 95 % confidence interval."""
    timing = timings[name]
    low, high = getattr(timing, f"{clock}_quartiles")
    found: dict[str, Any] = {"stage": name, "ms": getattr(timing, clock), "q1": low, "q3": high}
    found |= {"cpu_ms": timing.cpu, "wall_ms": timing.wall}
    for measured in dict.fromkeys((clock, "wall")):
        ratio = paired_ratio(timing, timings[PLAIN], measured)
        key = "over_plain" if measured == clock else f"{measured}_over_plain"
        found |= {key: ratio.median, f"{key}_low": ratio.low, f"{key}_high": ratio.high, "pairs": ratio.pairs}
    return found


def parts(answers: list[Any]) -> dict[str, float]:
    """Median wall milliseconds of the parts of a defense, as its trace tells them; nothing for plain generate."""
    traced = [answer for answer in answers if isinstance(answer, Answer) and answer.generation is not None]
    if not traced:
        return {}
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for answer in traced:
        seconds = {stage.name: stage.seconds for stage in answer.trace.stages}
        seconds |= answer.generation.seconds
        for part in PARTS:
            found[part].append(1e3 * seconds.get(part, 0.0))
    return {f"{part}_ms": median(values) for part, values in found.items()}


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table."""
    print("\n".join(lines(rows)), flush=True)


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Title and table; shares are of the stage's own wall time."""
    first = rows[0]
    title = (
        f"\n**{first['picture']} picture**: {first['new_tokens']} new tokens, {first['dtype']}, {first['clock']} time"
    )
    heads = ["stage", "ms", "quartiles", "over plain, %", *(f"{part}, ms" for part in PARTS)]
    table = [f"{title}, {first['rounds']} rounds\n", "| " + " | ".join(heads) + " |", "|---" + "|---:" * 7 + "|"]
    for entry in rows:
        ratio = Ratio(entry["over_plain"], entry["over_plain_low"], entry["over_plain_high"], entry["pairs"])
        cells = [entry["stage"], f"{entry['ms']:.0f}", f"{entry['q1']:.0f} - {entry['q3']:.0f}", ratio.percent]
        for part in PARTS:
            ms = entry.get(f"{part}_ms")
            cells.append("" if ms is None else f"{ms:.1f} ({ms / entry['wall_ms']:.2%})")
        table.append("| " + " | ".join(cells) + " |")
    return table
