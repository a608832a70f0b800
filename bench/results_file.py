"""Append-only rows of measurements: one JSON object a line, with what is needed to judge the number."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def processor() -> str:
    """Return the processor's model name, or the architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """Return the short commit of the checkout, marked + when the tree differs from it."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str:
    """Return what a git command prints in this checkout."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=FOLDER.parent).stdout.strip()


def machine() -> dict[str, Any]:
    """Return what identifies the run: processor, versions, commit, time."""
    import torch

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def append(name: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows, each joined with machine(), to bench/results/<name>.jsonl; return the file."""
    FOLDER.mkdir(exist_ok=True)
    file, where = FOLDER / f"{name}.jsonl", machine()
    with file.open("a") as out:
        out.writelines(json.dumps(row | where) + "\n" for row in rows)
    return file
