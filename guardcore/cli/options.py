"""The options of the commands, each with its help text, and what turns them into objects."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from guardcore.cli.exit import UsageError, say


class Format(str, Enum):
    """Values of --format."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


class Ground(str, Enum):
    """Values of --alpha."""

    white = "white"
    black = "black"
    drop = "drop"


class Style(str, Enum):
    """Values of --redact-style."""

    zero = "zero"
    blur = "blur"
    pixelate = "pixelate"


MODEL, READ, REPORT = "Model", "Reading", "Report"
THREADS = min(4, os.cpu_count() or 1)

Encoder = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="builtin; open_clip:MODEL/PRETRAINED (a tag or a checkpoint file); transformers:ID_OR_DIR for CLIP, "
        "SigLIP and SigLIP 2.",
        rich_help_panel=MODEL,
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        show_default=False,
        help="What is unsafe: a YAML file, default or demo. Left out: demo for the built-in encoder, default for "
        "any other.",
        rich_help_panel=MODEL,
    ),
]
Patches = Annotated[
    str, typer.Option(metavar="MODE", help="How a picture is cut: tokens, grid:4 or views:16.", rich_help_panel=MODEL)
]
Scoring = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        show_default=False,
        help="joint, normalized, softmax, paper, mean-prototype-cosine, max-patch-cosine or global-cosine; settings "
        "as in joint:relaxation=1. Left out: the best measured.",
        rich_help_panel=MODEL,
    ),
]
DecisionsOnly = Annotated[
    bool,
    typer.Option(
        "--decisions-only",
        help="Clear pictures by bounds alone where that is proof enough; they get certificates, no scores. "
        "For --scoring normalized.",
        rich_help_panel=MODEL,
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="From guardcore calibrate. Left out: the shipped one, if it fits.",
        rich_help_panel=MODEL,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        show_default=False,
        help="Keep the policy's embeddings here for the next run.",
        rich_help_panel=MODEL,
    ),
]
ReportFormat = Annotated[
    Format, typer.Option("--format", "-f", help="table is for people, the others for programs.", rich_help_panel=REPORT)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default=False,
        help="Write the report here instead of standard output.",
        rich_help_panel=REPORT,
    ),
]
Heatmaps = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", show_default=False, help="Write a heat map of every picture (PNG).", rich_help_panel=REPORT
    ),
]
Redact = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        show_default=False,
        help="Write flagged pictures with the unsafe regions covered (PNG).",
        rich_help_panel=REPORT,
    ),
]
RedactStyle = Annotated[Style, typer.Option(help="How regions are covered.", rich_help_panel=REPORT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notices or summary.", rich_help_panel=REPORT)]
Null = Annotated[
    bool, typer.Option("--null", "-0", help="The list on standard input ends names with NUL.", rich_help_panel=READ)
]
Hidden = Annotated[
    bool,
    typer.Option(
        "--hidden", help="Also take what folders hold under names that start with a dot.", rich_help_panel=READ
    ),
]
Alpha = Annotated[
    Ground,
    typer.Option(
        help="What see-through pixels are laid on; drop judges the colors stored under them.", rich_help_panel=READ
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures judged together.", rich_help_panel=READ)]
Threads = Annotated[int, typer.Option(min=1, show_default=False, help="Decoder threads.", rich_help_panel=READ)]
MaxPixels = Annotated[int, typer.Option(min=1, help="Refuse larger pictures before decoding.", rich_help_panel=READ)]
MaxBytes = Annotated[int, typer.Option(min=1, help="Refuse larger files before reading.", rich_help_panel=READ)]


def reading(max_bytes: int, max_pixels: int, alpha: Ground, threads: int) -> Any:
    """Return the `guardcore.screening.pipeline.Reading` that the options ask for."""
    from guardcore.images.opening import ImageLimits
    from guardcore.images.pixels import Alpha as PixelAlpha
    from guardcore.screening.pipeline import Reading

    return Reading(ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels), PixelAlpha(alpha.value), threads)


def inputs(paths: list[str], *, null: bool = False, hidden: bool, quiet: bool) -> Any:
    """Expand the arguments, tell what was left out, and refuse an empty list: "nothing flagged" would be no answer."""
    from guardcore.screening.inputs import discover, read_list

    listed = read_list(sys.stdin.buffer, null=null) if "-" in paths else ()
    found = discover(paths, listed, hidden=hidden)
    for notice in () if quiet else found.notices:
        say(notice)
    if not found.files:
        raise UsageError("nothing to screen: no file was named or found")
    return found
