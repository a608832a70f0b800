"""Rows of the attention benchmark as a Markdown table."""

from __future__ import annotations

from typing import Any

from bench.paired import Ratio

COLUMNS = (
    "contender",
    "rule",
    "keys",
    "ms",
    "quartiles",
    "rate",
    "x floor",
    "over SDPA, %",
    "over own plain, %",
    "error",
)


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as Markdown; below them those that were not timed, and why."""
    print("\n".join(lines(rows)), flush=True)


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The title, the table, and what was left out."""
    first = rows[0]
    unit = "GFLOP/s" if "gflops" in first else "GB/s"
    title = (
        f"\n**{first['case']}**: {first['shape']}, {first['dtype']}, {first['clock']} time, {first['rounds']} rounds\n"
    )
    header = "| " + " | ".join(COLUMNS).replace("rate", unit) + " |"
    table = [title, header, "|---" * 3 + "|---:" * (len(COLUMNS) - 3) + "|"]
    table += ["| " + " | ".join(cells(entry)) + " |" for entry in rows if "ms" in entry]
    missing = [f"{e['contender']}, {e['rule']}: {e['not_timed']}" for e in rows if "not_timed" in e]
    return table + (["", "Not timed: " + "; ".join(missing)] if missing else [])


def cells(entry: dict[str, Any]) -> list[str]:
    """One line of the table."""
    rate = entry.get("gflops", entry.get("gb_s", float("nan")))
    if "rule" not in entry:
        return [entry["contender"], "", "", f"{entry['ms']:.2f}", "", f"{rate:.0f}", "1.00", "", "", ""]
    return [
        entry["contender"], entry["rule"], entry["span"], f"{entry['ms']:.2f}",
        f"{entry['q1']:.1f} - {entry['q3']:.1f}", f"{rate:.0f}", f"{entry['over_floor']:.2f}",
        ratio(entry, "over_sdpa").percent, ratio(entry, "over_own").percent, f"{entry['error']:.0e}",
    ]  # fmt: skip


def ratio(entry: dict[str, Any], name: str) -> Ratio:
    """A ratio of a row."""
    return Ratio(entry[name], entry[f"{name}_low"], entry[f"{name}_high"], entry["pairs"])
