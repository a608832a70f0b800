"""The main job: decode pictures ahead, let the detector judge them in batches, hand out one outcome an input, in order.

    inputs -> [decoder threads, a few pictures ahead] -> Detector.screen_batches -> outcomes

Memory holds the pictures of the look-ahead and of the detector's batches, however long the list is. A file that cannot
be decoded never reaches the detector; its outcome waits in line for its turn.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from guardcore.images.opening import ImageError, ImageErrorKind, ImageLimits, LoadedImage, open_image
from guardcore.images.pixels import Alpha
from guardcore.screening.inputs import Input, printable
from guardcore.screening.outcome import Outcome

if TYPE_CHECKING:
    from guardcore.detector.verdict import Verdict
    from guardcore.policy.policy import Action


_NO_PIXELS = Image.new("RGB", (1, 1))


class Screener(Protocol):
    """The part of `guardcore.Detector` that is used here."""

    def screen_batches(self, images: Iterable[Image.Image], batch_size: int | None = None) -> Iterator[Verdict]:
        """Judge a stream of pictures, one verdict each, in order."""
        ...


class PictureSink(Protocol):
    """Writes pictures about a verdict; see `guardcore.screening.output_pictures`."""

    def write(self, path: str, image: Image.Image, verdict: Verdict) -> dict[str, str]:
        """Write what there is to write and return {"heatmap": path, "redacted": path}, with what was written."""
        ...


@dataclass(frozen=True)
class Reading:
    """How files are read: limits, what lies behind see-through pixels, decoder threads."""

    limits: ImageLimits = field(default_factory=ImageLimits)
    alpha: Alpha = Alpha.WHITE
    threads: int = 2


def screen_inputs(
    inputs: Sequence[Input],
    screener: Screener,
    *,
    reading: Reading = Reading(),
    batch_size: int = 4,
    on_error: Action = "block",
    sink: PictureSink | None = None,
) -> Iterator[Outcome]:
    """Judge every input and yield its outcome, in order, as soon as it is known.

    A file that is named twice is judged once and reported twice. If the detector itself fails (out of memory, a broken
    kernel), the inputs that it leaves without a verdict are reported as `not-screened` by name.

    Args:
        inputs: from `guardcore.screening.inputs.discover`.
        screener: a Detector.
        reading: how files are read.
        batch_size: pictures a batch; at least 1.
        on_error: the policy's action for pictures that cannot be judged.
        sink: writes heat maps and redacted pictures.
    """
    with _Decoders(reading.threads) as pool:
        feed = _Feed(inputs, pool, reading, on_error, sink)
        reason = "the detector gave no verdict"
        try:
            for verdict in screener.screen_batches(feed.images(), batch_size=batch_size):
                yield from feed.without_picture()
                yield feed.judged(verdict)
        except RuntimeError as error:  # what torch raises, out of memory included; any other kind is a bug and is shown
            reason = f"the detector stopped: {' '.join(str(error).split())}"
        yield from feed.rest(ImageError(ImageErrorKind.NOT_SCREENED, reason))


class _Decoders(ThreadPoolExecutor):
    """Threads that drop their waiting work at the exit: after Ctrl-C nobody needs it."""

    def __exit__(self, *error: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


class _Job:
    """An input on its way: first a future, then a picture or an error, then an outcome."""

    def __init__(self, source: Input, first: _Job | None) -> None:
        self.source = source.path
        self.path = printable(source.path)
        self.first = first  # the earlier job for the same file
        self.error = source.error
        self.decoding: Future[LoadedImage] | None = None
        self.loaded: LoadedImage | None = None
        self.seconds = 0.0
        self.outcome: Outcome | None = None

    def decode(self, reading: Reading) -> LoadedImage:
        """Open the picture; runs in a decoder thread."""
        started = time.perf_counter()
        try:
            return open_image(self.source, reading.limits, alpha=reading.alpha)
        finally:
            self.seconds = time.perf_counter() - started

    def settle(self) -> None:
        """Wait for the decoder, if one was asked."""
        if self.decoding is None:
            return
        try:
            self.loaded = self.decoding.result()
        except ImageError as error:
            self.error = error
        self.decoding = None


class _Feed:
    """The inputs in order, in three parts: in line for a verdict, being decoded ahead, and not looked at yet.

    The detector draws `images` in a thread of its own; all else is called by the consumer of the outcomes.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        pool: ThreadPoolExecutor,
        reading: Reading,
        on_error: Action,
        sink: PictureSink | None,
    ) -> None:
        self.pool, self.reading, self.on_error, self.sink = pool, reading, on_error, sink
        self.line: deque[_Job] = deque()
        self.ahead: deque[_Job] = deque()
        self.jobs = _jobs(inputs)
        self.drawing = Lock()  # a detector that gave up may still be drawing while the rest is reported
        self.stopped = False

    def images(self) -> Iterator[Image.Image]:
        """Yield the pictures that could be decoded; every job joins the line before its picture goes out."""
        while True:
            with self.drawing:
                if self.stopped or not self._look_ahead():
                    return
                job = self.ahead.popleft()
                job.settle()
                loaded = job.loaded
                if loaded is not None and self.sink is None:  # nobody will look at the pixels again
                    job.loaded = replace(loaded, image=_NO_PIXELS)
                self.line.append(job)
            if loaded is not None:
                yield loaded.image

    def _look_ahead(self) -> bool:
        """Keep every thread busy and one picture more at hand; tell whether anything is left."""
        while len(self.ahead) <= self.reading.threads and (job := next(self.jobs, None)) is not None:
            if job.first is None and job.error is None:
                job.decoding = self.pool.submit(job.decode, self.reading)
            self.ahead.append(job)
        return bool(self.ahead)

    def without_picture(self) -> Iterator[Outcome]:
        """Yield the outcomes at the front of the line that wait for no verdict."""
        while self.line and self.line[0].loaded is None:
            yield self._finished(self.line.popleft())

    def judged(self, verdict: Verdict) -> Outcome:
        """Give the verdict to the first picture in line."""
        job = self.line.popleft()
        loaded, job.loaded = job.loaded, None
        assert loaded is not None  # without_picture has just made sure
        outcome = Outcome(job.path, verdict, None, self.on_error, loaded.format, loaded.notes, job.seconds)
        if self.sink is not None:
            outcome = _with_pictures(outcome, job.source, loaded.image, self.sink)
        job.outcome = outcome
        return outcome

    def rest(self, reason: ImageError) -> Iterator[Outcome]:
        """Yield an outcome for everything that no verdict came for."""
        with self.drawing:
            self.stopped = True
        for job in (*self.line, *self.ahead, *self.jobs):
            job.settle()
            yield self._finished(job, reason)

    def _finished(self, job: _Job, reason: ImageError | None = None) -> Outcome:
        """Close a job without a verdict of its own: a repeated file, a broken one, or one the detector left out."""
        if job.first is not None and job.first.outcome is not None:
            return replace(job.first.outcome, path=job.path, duplicate_of=job.first.path, seconds=0.0)
        job.outcome = Outcome(job.path, error=job.error or reason, on_error=self.on_error, seconds=job.seconds)
        return job.outcome


def _jobs(inputs: Sequence[Input]) -> Iterator[_Job]:
    """Make the jobs one by one, and find the repeated files: only those are kept beyond their turn."""
    keys = ["" if item.error else _identity(item.path) for item in inputs]
    repeated = {key for key, count in Counter(keys).items() if count > 1 and key}
    firsts: dict[str, _Job] = {}
    for item, key in zip(inputs, keys, strict=True):
        job = _Job(item, firsts.get(key))
        if key in repeated:
            firsts.setdefault(key, job)
        yield job


def _identity(path: str) -> str:
    """Resolve links, so that one file under two names is judged once; a path that cannot be resolved is its own."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return path


def _with_pictures(outcome: Outcome, source: str, image: Image.Image, sink: PictureSink) -> Outcome:
    """Have the pictures written; what could not be written becomes a note, the verdict stands."""
    if outcome.verdict is None or outcome.verdict.error is not None:
        return outcome
    try:
        written = sink.write(source, image, outcome.verdict)
    except OSError as error:
        note = f"picture not written: {error.strerror or error}"
        return replace(outcome, notes=(*outcome.notes, note), unwritten=True)
    return replace(outcome, heatmap=written.get("heatmap"), redacted=written.get("redacted"))


def sound_pictures(inputs: Sequence[Input], reading: Reading, refused: list[Outcome]) -> Iterator[Image.Image]:
    """Yield the pictures that can be decoded, each file once; outcomes of the others are appended to `refused`."""
    with _Decoders(reading.threads) as pool:
        feed = _Feed(inputs, pool, reading, "block", None)
        for image in feed.images():
            refused += [outcome for outcome in feed.without_picture() if outcome.error is not None]
            feed.line.clear()
            yield image
        refused += [outcome for outcome in feed.without_picture() if outcome.error is not None]
