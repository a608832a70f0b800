"""What `guardcore screen` and `guardcore calibrate` do once their options are read."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from rich.console import Console

from guardcore.cli.exit import UsageError, as_usage, say
from guardcore.images.pillow_warnings import silence_decoders
from guardcore.screening.inputs import Inputs
from guardcore.screening.outcome import Outcome
from guardcore.screening.output_pictures import OutputPictures, check_output
from guardcore.screening.pipeline import Reading, screen_inputs, sound_pictures
from guardcore.screening.report import (
    CsvWriter,
    JsonWriter,
    ParquetWriter,
    ReportWriter,
    TableWriter,
    Tally,
    require_parquet,
)

if TYPE_CHECKING:
    from guardcore.detector.detector import Detector
    from guardcore.policy.policy import Policy
    from guardcore.redaction import RedactionStyle

T = TypeVar("T")
_PIPE_WIDTH = 140  # of a table that goes to no terminal


@dataclass(frozen=True)
class Setup:
    """What a detector is made of, as the options say it; None = the default for this encoder."""

    encoder: str = "builtin"
    policy: str | None = None
    patches: str = "tokens"
    scoring: str | None = None
    calibration: Path | None = None
    cache: Path | None = None
    batch_size: int = 4
    decisions_only: bool = False

    @property
    def policy_name(self) -> str:
        """The policy asked for; the built-in encoder knows the demonstration's concepts only."""
        return self.policy or ("demo" if self.encoder == "builtin" else "default")


def load_policy(name: str) -> Policy:
    """Return a policy of the package or of a file; raise UsageError. A file named like a shipped one needs `./`."""
    from guardcore.policy.policy import BUILTIN, Policy

    with as_usage():
        return Policy.builtin(name) if name in BUILTIN else Policy.load(name)


def build_detector(setup: Setup) -> Detector:
    """Make the detector; raise UsageError for everything that the options can be wrong about."""
    policy = load_policy(setup.policy_name)  # this and all else that is quick to refuse comes before the model
    with as_usage():
        from guardcore.detector.conformal import Calibration
        from guardcore.detector.detector import Detector
        from guardcore.detector.scoring import Scoring
        from guardcore.encoders import load_encoder
        from guardcore.patches import PatchMode

        calibration = None if setup.calibration is None else Calibration.load(setup.calibration)
        patches = PatchMode.parse(setup.patches)
        scoring = Scoring() if setup.scoring is None else Scoring.parse(setup.scoring)
        return Detector(
            load_encoder(setup.encoder),
            policy,
            calibration=calibration,
            patches=patches,
            scoring=scoring,
            decisions_only=setup.decisions_only,
            batch_size=setup.batch_size,
            cache_dir=setup.cache,
        )


@dataclass(frozen=True)
class ScreenJob:
    """One run of `guardcore screen`."""

    setup: Setup
    reading: Reading
    format: str = "table"
    output: Path | None = None
    heatmaps: Path | None = None
    redacted: Path | None = None
    style: RedactionStyle = "zero"
    quiet: bool = False

    def run(self, inputs: Inputs) -> int:
        """Screen, report and return the exit code."""
        started = time.perf_counter()
        silence_decoders()
        sink = self._check(inputs)
        with _busy("loading the model", self.quiet):
            detector = build_detector(self.setup)
        warn_uncalibrated(detector, self.setup)
        tally = Tally()
        outcomes = screen_inputs(
            inputs.files,
            detector,
            reading=self.reading,
            batch_size=self.setup.batch_size,
            on_error=detector.policy.on_error,
            sink=sink,
        )
        with self._writer(tuple(each.name for each in detector.policy.categories)) as writer:
            for outcome in self._progress(outcomes, len(inputs.files), tally):
                tally.add(outcome)
                writer.write(outcome)
        if not self.quiet:
            say(tally.summary(time.perf_counter() - started))
        return tally.exit_code

    def _check(self, inputs: Inputs) -> OutputPictures | None:
        """Find out what cannot work before a model is loaded."""
        if self.format == "parquet":
            if self.output is None:
                raise UsageError("--format parquet: expected --output FILE, a binary file does not go to a terminal")
            with as_usage():
                require_parquet()
        with as_usage():
            if self.output is not None:
                check_output(self.output, inputs)
            if self.heatmaps is None and self.redacted is None:
                return None
            return OutputPictures(inputs, self.heatmaps, self.redacted, self.style)

    @contextmanager
    def _writer(self, categories: tuple[str, ...]) -> Iterator[ReportWriter]:
        """Open the report; it is closed, and valid, however the run ends."""
        with ExitStack() as stack:
            writer: ReportWriter
            if self.format == "parquet" and self.output is not None:
                writer = ParquetWriter(self.output)
            else:
                stream = _stream(self.output, stack)
                if self.format == "json":
                    writer = JsonWriter(stream)
                elif self.format == "csv":
                    writer = CsvWriter(stream, categories)
                else:
                    writer = TableWriter(_TableConsole(file=stream, width=None if stream.isatty() else _PIPE_WIDTH))
            stack.callback(writer.close)
            yield writer

    def _progress(self, outcomes: Iterator[Outcome], total: int, tally: Tally) -> Iterator[Outcome]:
        """Show a bar on a terminal, unless the report's own lines go there."""
        lines_on_terminal = self.format in {"json", "csv"} and self.output is None and sys.stdout.isatty()
        if self.quiet or lines_on_terminal:
            return outcomes
        return _bar(outcomes, total, lambda: f"{tally.counts['flagged']} flagged")


def calibrate_on(
    inputs: Inputs, setup: Setup, reading: Reading, target_fpr: float | None, output: Path, quiet: bool
) -> None:
    """Calibrate on harmless pictures and write the file; pictures that cannot be read are named and do not count."""
    from guardcore.detector.conformal import calibrate

    silence_decoders()
    with as_usage():
        check_output(output, inputs)
    with _busy("loading the model", quiet):
        detector = build_detector(setup)
    refused: list[Outcome] = []
    pictures: Iterator[Any] = sound_pictures(inputs.files, reading, refused)
    if not quiet:
        pictures = _bar(pictures, len(inputs.files), lambda: f"{len(refused)} not read")
    with as_usage():
        found = calibrate(detector, pictures, target_fpr)
        found.save(output)
    for outcome in refused:
        say(f"{outcome.path}: does not count, {outcome.error_kind}: {outcome.error_message}")
    if not quiet:
        say(f"{output}: calibrated on {found.count} pictures for a false-positive rate of {found.target_fpr:g}")


class _TableConsole(Console):
    def on_broken_pipe(self) -> None:
        """Let the command end as documented; rich would end it with code 1, which means "flagged"."""
        raise BrokenPipeError


def _stream(output: Path | None, stack: ExitStack) -> TextIO:
    """Open the output file, or take standard output as UTF-8: a path may hold any character."""
    if output is not None:
        with as_usage():
            return stack.enter_context(output.open("w", encoding="utf-8", newline=""))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    return sys.stdout


def _bar(items: Iterator[T], total: int, status: Callable[[], str]) -> Iterator[T]:
    """Pass items on with a progress bar on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(status(), total=total)
        for item in items:
            yield item
            progress.update(task, advance=1, description=status())


def _busy(what: str, quiet: bool) -> AbstractContextManager[Any]:
    """Show a spinner on a terminal while nothing else moves."""
    return Console(stderr=True, quiet=quiet or not sys.stderr.isatty()).status(what)


def warn_uncalibrated(detector: Detector, setup: Setup) -> None:
    """Say once, also when quiet, that nothing can be judged, and how to mend it."""
    categories: Iterable[Any] = detector.policy.categories
    if detector.calibration is not None or all(each.threshold is not None for each in categories):
        return
    options = f"--encoder {setup.encoder} --policy {setup.policy_name}"
    options += "" if setup.patches == "tokens" else f" --patches {setup.patches}"
    options += "" if setup.scoring is None else f" --scoring {setup.scoring}"
    say(
        "no calibration for this encoder, policy and scoring: distances only, nothing can be judged. Make one: "
        f"guardcore calibrate BENIGN_DIR {options} -o calibration.json, then screen with --calibration calibration.json"
    )
