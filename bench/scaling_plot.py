"""Draw the scaling sweeps: CPU time over each size, and how many times our operator's time everybody takes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.results_file import FOLDER

DOCS = FOLDER.parents[1] / "docs"
AXES = {
    "B": "images in the batch (B)",
    "N": "patches per image (N)",
    "M": "prototypes per category (M)",
    "C": "categories (C)",
    "D": "embedding width (D)",
}
STYLES = {  # color, width, line and marker; colors that color-blind readers tell apart (Okabe and Ito)
    "PLOT/AWT loop": ("#cc79a7", 1.5, "v-"),
    "ott-jax kernel": ("#7a5195", 1.5, "P-"),
    "torch exp, bmm": ("#d55e00", 1.5, "^-"),
    "POT ot.batch": ("#e69f00", 1.5, "D-"),
    "numba one-pass": ("#009e73", 1.5, "s-"),
    "floor": ("#8a8a8a", 1.4, "--"),
    "guardcore": ("#0072b2", 2.8, "o-"),
    "floor, product at peak": ("#8a8a8a", 1.4, ":"),
}
LABELS = {"floor": "floor with torch's matrix product", "floor, product at peak": "floor at the multiply-add peak"}
Series = dict[str, dict[str, dict[int, float]]]


def draw(rows: list[dict[str, Any]]) -> list[Path]:
    """Draw the latest row of every point; return the files."""
    series: Series = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        series[row["sweep"]][row["contender"]][row["size"]] = row["ms"]
    processor = rows[-1]["processor"]
    times = "CPU time of one thread, ms", "sinkhorn_scaling.png"
    ratios = "times guardcore's CPU time", "sinkhorn_scaling_ratio.png"
    note = f"From embeddings to distances: 50 iterations at epsilon 0.05, one core of {processor}; "
    note += "what is not varied: B8 N197 M32 C8 D512"
    return [figure(series, *times, note, relative=False), figure(series, *ratios, note, relative=True)]


def figure(series: Series, label: str, name: str, note: str, relative: bool) -> Path:
    """One panel a sweep, the legend in the place of the sixth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    page, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for axes, (sweep, title) in zip(panels.flat, AXES.items(), strict=False):
        panel(axes, series[sweep], relative)
        axes.set_xlabel(title)
    for row in panels:
        row[0].set_ylabel(label)
    legend = panels.flat[5]
    legend.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    legend.legend(handles, labels, loc="center", frameon=False, fontsize=12, labelspacing=0.9, handlelength=2.6)
    page.suptitle(note, fontsize=10, color="#555555")
    path = DOCS / name
    page.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(page)
    return path


def panel(axes: Any, contenders: dict[str, dict[int, float]], relative: bool) -> None:
    """Both axes logarithmic, ticks at the measured sizes."""
    from matplotlib import ticker

    ours = contenders["guardcore"]
    for name, (color, width, line) in STYLES.items():
        points = sorted(contenders.get(name, {}).items())
        sizes = [size for size, _ in points]
        values = [ms / ours[size] if relative else ms for size, ms in points]
        axes.plot(sizes, values, line, color=color, lw=width, ms=4.5, label=LABELS.get(name, name), zorder=2 + width)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(ours), [str(size) for size in sorted(ours)], fontsize=8)
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
