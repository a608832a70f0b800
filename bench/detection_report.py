"""Rows of the detection benchmark as CSV (appended), as a Markdown table and as a plot (of the last run)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from bench.results_file import FOLDER, machine

_COLUMNS = {
    "rule": "rule",
    "auroc": "AUROC",
    "ap": "AP",
    "fpr95": "FPR at 95 % recall",
    "mask90": "false mask at 90 % region recall",
    "region_recall": "region recall at 2 %",
    "patch_iou": "patch IoU",
    "fpr": "FPR at target 1 %",
    "recall": "recall there",
}


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    ranges = f"[{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
    return (
        f"{row['rule']:30} {row['split'][:8]}  AUROC {row['auroc']:.3f} {ranges} by ranks {row['auroc_ranks']:.3f}  "
        f"mask90 {row['mask90']:.3f}  region {row['region_recall']:.3f}  IoU {row['patch_iou']:.3f}  "
        f"FPR {row['fpr']:.3f} recall {row['recall']:.3f}  {row['ms_per_scene']:.1f} ms"
    )


def write(rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[Path]:
    """Append the CSV, replace table and plot; return the files."""
    FOLDER.mkdir(exist_ok=True)
    return [_append(rows, settings | machine()), _table(rows, settings), _plot(rows)]


def _append(rows: list[dict[str, Any]], context: dict[str, Any]) -> Path:
    path = FOLDER / "detection.csv"
    fresh = not path.exists()
    with path.open("a", newline="") as out:
        writer = csv.DictWriter(out, [*rows[0], *context])
        if fresh:
            writer.writeheader()
        writer.writerows({name: _short(value) for name, value in (row | context).items()} for row in rows)
    return path


def _table(rows: list[dict[str, Any]], settings: dict[str, Any]) -> Path:
    path = FOLDER / "detection.md"
    parts = [
        "# Detection benchmark, last run",
        f"Encoder {settings['encoder']}, {settings['scenes']} test scenes a split, {settings['calibration']} benign "
        "scenes for calibration. In brackets: 95 % bootstrap interval. Written by `python -m bench.detection`.",
    ]
    for split in dict.fromkeys(row["split"] for row in rows):
        parts += [f"## {split}", _markdown([row for row in rows if row["split"] == split])]
    path.write_text("\n\n".join(parts) + "\n", "utf-8")
    return path


def _markdown(rows: list[dict[str, Any]]) -> str:
    subsets = [name for name in rows[0] if name.startswith("auroc ")]
    heads = [*_COLUMNS.values(), *(name.replace("auroc", "AUROC") for name in subsets), "ms a scene"]
    lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    lines += [
        " | ".join([*(_cell(row, name) for name in [*_COLUMNS, *subsets]), f"{row['ms_per_scene']:.1f}"])
        for row in rows
    ]
    return "\n".join(f"| {each} |" for each in lines)


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, str):
        return value
    between = f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" if f"{name}_low" in row else ""
    return f"{value:.3f}{between}"


def _plot(rows: list[dict[str, Any]]) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    splits = list(dict.fromkeys(row["split"] for row in rows))
    names = list(dict.fromkeys(row["rule"] for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(12, 0.28 * len(names) + 1.6), sharey=True, layout="constrained")
    for axis, metric, title in ((axes[0], "auroc", "AUROC"), (axes[1], "mask90", "false mask at 90 % region recall")):
        for shift, split, color in zip((-0.13, 0.13), splits, ("#0072b2", "#d55e00"), strict=False):
            own = {row["rule"]: row for row in rows if row["split"] == split}
            y = [names.index(name) + shift for name in own]
            x = [row[metric] for row in own.values()]
            error = [[max(0.0, r[metric] - r[f"{metric}_low"]) for r in own.values()],
                     [max(0.0, r[f"{metric}_high"] - r[metric]) for r in own.values()]]  # fmt: skip
            axis.errorbar(x, y, xerr=error, fmt="o", markersize=4, linewidth=1.2, color=color, label=split)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    axes[1].set_xscale("log")
    axes[0].legend(fontsize=8, loc="lower left")
    path = FOLDER / "detection.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _short(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value
