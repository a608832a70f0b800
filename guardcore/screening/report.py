"""Outcomes as a table for people, or as JSON lines, CSV and Parquet for programs.

Every writer takes outcomes one by one and is closed once; what was written before an interruption is a valid file.
The fields and their meaning are listed in `docs/cli.md`; `SCHEMA` changes when one changes its meaning.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from rich.console import Console

    from guardcore.screening.outcome import Outcome

SCHEMA = 1
_ROW_GROUP = 1024  # rows that Parquet keeps in memory
_FIGURES = ("scores", "distances", "statistics", "certificates")  # one number a category each


class MissingExtra(ImportError):  # noqa: N818 - says what it is
    """An optional library is not installed; the message has the command that installs it."""


class ReportWriter(Protocol):
    """Takes outcomes in order."""

    def write(self, outcome: Outcome) -> None:
        """Add one outcome."""
        ...

    def close(self) -> None:
        """Finish the report."""
        ...


def record(outcome: Outcome) -> dict[str, Any]:
    """Return one outcome as plain values; the keys are always all there, what is unknown is None.

    `flagged` is None where nothing could be judged: neither "clean" nor "unsafe" would be true.
    """
    verdict = outcome.verdict
    known = {} if verdict is None else verdict.to_dict()
    judged = outcome.status in {"flagged", "clean"}
    category = None if verdict is None else verdict.category
    scores = known.get("scores", {})
    row = {
        "schema": SCHEMA,
        "path": outcome.path,
        "status": outcome.status,
        "action": outcome.action,
        "flagged": known["flagged"] if judged else None,
        "found": known.get("found", []),
        "category": category,
        "score": scores.get(category),
        "p_value": known.get("p_value"),
        "scores": scores,
        "distances": known.get("distances", {}),
        "statistics": known.get("statistics", {}),
        "certificates": known.get("certificates", {}),
        "regions": known.get("regions", []),
        "format": outcome.format,
        "size": known.get("size"),
        "notes": list(outcome.notes),
        "error": None if outcome.error_kind is None else {"kind": outcome.error_kind, "message": outcome.error_message},
        "duplicate_of": outcome.duplicate_of,
        "seconds": round(outcome.seconds, 4),
        "heatmap": outcome.heatmap,
        "redacted": outcome.redacted,
        "fingerprint": known.get("fingerprint"),
    }
    return {name: _finite(value) for name, value in row.items()}


class JsonWriter:
    """One JSON object a line, each written out at once."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, outcome: Outcome) -> None:
        """Write a line; NaN and infinity became null."""
        self.stream.write(json.dumps(record(outcome), ensure_ascii=False, allow_nan=False) + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the stream to its owner."""


class CsvWriter:
    """One row a picture, with a score column for each category of the policy; lists are joined by "; ".

    No cell begins like a formula, because spreadsheets run those: a path gets "./" in front, other text an apostrophe.
    """

    def __init__(self, stream: IO[str], categories: tuple[str, ...]) -> None:
        names = ["path", "status", "action", "flagged", "found", "category", "score", "p_value"]
        names += [f"score:{category}" for category in categories]
        names += ["regions", "format", "width", "height", "notes", "error_kind", "error_message"]
        names += ["duplicate_of", "seconds", "heatmap", "redacted", "fingerprint"]
        self.stream = stream
        # Python before 3.13 quotes a carriage return only if it is part of the line's end. Rows still end with \n.
        self.line = io.StringIO(newline="")
        self.rows = csv.DictWriter(self.line, names, extrasaction="ignore", lineterminator="\r\n")
        self.rows.writeheader()
        self._flush()

    def write(self, outcome: Outcome) -> None:
        """Write a row; an unknown value is an empty cell."""
        row = record(outcome)
        row.update({f"score:{category}": score for category, score in row["scores"].items()})
        row["width"], row["height"] = row["size"] or (None, None)
        row["error_kind"], row["error_message"] = outcome.error_kind, outcome.error_message
        row["regions"] = "; ".join(_region(region) for region in row["regions"])
        row["notes"], row["found"] = "; ".join(row["notes"]), "; ".join(row["found"])
        self.rows.writerow({name: _inert(name, value) for name, value in row.items()})
        self._flush()

    def close(self) -> None:
        """Leave the stream to its owner."""

    def _flush(self) -> None:
        self.stream.write(self.line.getvalue().removesuffix("\r\n") + "\n")
        self.stream.flush()
        self.line.seek(0)
        self.line.truncate()


def _inert(column: str, value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    return ("./" if column in ("path", "duplicate_of", "heatmap", "redacted") else "'") + value


def require_parquet() -> None:
    """Raise MissingExtra if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise MissingExtra("--format parquet needs pyarrow: pip install 'guardcore-vlm[parquet]'")


class ParquetWriter:
    """One row a picture, nested columns as in JSON; scores, distances and statistics are maps.

    Raises MissingExtra without pyarrow. An interrupted run leaves a valid file: `close` writes the footer.
    """

    def __init__(self, path: Path) -> None:
        require_parquet()
        import pyarrow
        import pyarrow.parquet

        self.arrow = pyarrow
        self.schema = _parquet_schema(pyarrow)
        self.file = pyarrow.parquet.ParquetWriter(path, self.schema)
        self.rows: list[dict[str, Any]] = []

    def write(self, outcome: Outcome) -> None:
        """Keep a row, and write a full row group."""
        row = record(outcome)
        maps = {name: list(row[name].items()) for name in _FIGURES}
        self.rows.append({**row, **maps})
        if len(self.rows) == _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is left and the footer."""
        self._flush()
        self.file.close()

    def _flush(self) -> None:
        if self.rows:
            self.file.write_table(self.arrow.Table.from_pylist(self.rows, self.schema))
            self.rows = []


def _parquet_schema(arrow: Any) -> Any:
    text, real, flag, whole = arrow.string(), arrow.float64(), arrow.bool_(), arrow.int64()
    figures = arrow.map_(text, real)
    region = arrow.struct({"category": text, "score": real, "box": arrow.list_(whole), "area": real})
    kinds = {"schema": arrow.int32(), "flagged": flag, "score": real, "p_value": real, "seconds": real}
    kinds |= {
        "scores": figures,
        "distances": figures,
        "statistics": figures,
        "certificates": figures,
        "regions": arrow.list_(region),
    }
    kinds |= {"found": arrow.list_(text), "notes": arrow.list_(text), "size": arrow.list_(whole)}
    kinds |= {"error": arrow.struct({"kind": text, "message": text})}
    names = "schema path status action flagged found category score p_value scores distances statistics certificates"
    names += " regions format size notes error duplicate_of seconds heatmap redacted fingerprint"
    return arrow.schema([(name, kinds.get(name, text)) for name in names.split()])


class TableWriter:
    """A table as wide as the terminal, drawn when everything is known, so that its columns fit."""

    STYLES: ClassVar = {"flagged": "bold red", "clean": "green", "uncalibrated": "yellow", "error": "magenta"}

    def __init__(self, console: Console) -> None:
        self.console = console
        self.outcomes: list[tuple[str, ...]] = []

    def write(self, outcome: Outcome) -> None:
        """Keep the cells of one row; verdicts with their patch scores are let go."""
        row = record(outcome)
        verdict = row["action"].upper() if outcome.status == "flagged" else outcome.status
        score = "" if row["score"] is None else f"{row['score']:.3f}"
        where = str(len(row["regions"]) or "")
        # Why a run is uncalibrated is told once, on standard error.
        notes = [f"{outcome.error_kind}: {outcome.error_message}"] if outcome.status == "error" else []
        notes += [f"same file as {outcome.duplicate_of}"] if outcome.duplicate_of else []
        cells = (verdict, outcome.path, row["category"] or "", score, where, f"{outcome.seconds:.2f} s")
        self.outcomes.append((outcome.status, *cells, "; ".join([*notes, *outcome.notes])))

    def close(self) -> None:
        """Draw the table."""
        from rich.table import Table
        from rich.text import Text

        if not self.outcomes:
            return
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        table.add_column("verdict", no_wrap=True)
        table.add_column("picture", overflow="fold", ratio=3, min_width=12)
        table.add_column("nearest to", overflow="fold")
        for name in ("score", "regions", "decoding"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("notes", overflow="fold", ratio=4, style="dim")
        for status, verdict, *cells in self.outcomes:
            # Text, never markup: a file name may hold brackets, and control characters could drive the terminal.
            style = self.STYLES[status]
            table.add_row(Text(verdict, style=style), *(Text(_visible(cell)) for cell in cells))
        self.console.print(table)


class Tally:
    """Counts outcomes; knows the summary line and the exit code."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.unwritten = 0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.counts[outcome.status] += 1
        self.unwritten += outcome.unwritten

    @property
    def exit_code(self) -> int:
        """1 if anything is flagged, else 3 if anything could not be judged or written, else 0.

        A finding comes before an incomplete run: it is certain whatever the missing inputs hold, and both fail a job.
        """
        if self.counts["flagged"]:
            return 1
        return 3 if self.counts["error"] or self.counts["uncalibrated"] or self.unwritten else 0

    def summary(self, seconds: float) -> str:
        """One line, such as `12 pictures: 3 flagged, 8 clean, 1 not judged in 2.1 s`."""
        count = self.counts
        parts = [f"{count['flagged']} flagged", f"{count['clean']} clean"]
        parts += [f"{count['uncalibrated']} without calibration"] if count["uncalibrated"] else []
        parts += [f"{count['error']} could not be judged"] if count["error"] else []
        parts += [f"{self.unwritten} could not be written"] if self.unwritten else []
        total = sum(count.values())
        return f"{total} input{'' if total == 1 else 's'}: {', '.join(parts)} ({seconds:.1f} s)"


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _visible(text: str) -> str:
    """Escape control characters and line breaks."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _region(region: dict[str, Any]) -> str:
    score = "" if region["score"] is None else f" {region['score']:.3f}"
    return f"{region['category']}{score} at {','.join(map(str, region['box']))}"
