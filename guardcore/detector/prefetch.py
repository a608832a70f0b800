"""Run an iterator ahead of its consumer in a thread, in order and with bounded memory."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")

# How long a producer sleeps at most before it looks whether the consumer has gone, and how long the consumer waits
# for it to end.
_POLL_SECONDS = 0.05
_JOIN_SECONDS = 2.0


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def prefetch(source: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield what `source` yields, at most `depth` finished items ahead.

    An exception of the source is raised here after all items before it. Closing the generator stops the thread and
    closes the source if it is a generator; a source that is blocked in its own `next` is left to a daemon thread that
    ends with it.
    """
    queue: Queue[_Item[T] | _End] = Queue(depth)
    stop = Event()
    thread = Thread(target=_produce, args=(source, queue, stop), name="guardcore-prefetch", daemon=True)
    thread.start()
    try:
        while isinstance(got := queue.get(), _Item):
            yield got.value
        if got.error is not None:
            raise got.error
    finally:
        stop.set()
        thread.join(_JOIN_SECONDS)


def _produce(source: Iterable[T], queue: Queue[_Item[T] | _End], stop: Event) -> None:
    error: BaseException | None = None
    try:
        for value in source:
            if not _put(queue, _Item(value), stop):
                break
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to the consumer's thread
        error = raised
    finally:
        if isinstance(source, Generator):
            source.close()
    _put(queue, _End(error), stop)


def _put(queue: Queue[_Item[T] | _End], item: _Item[T] | _End, stop: Event) -> bool:
    """Wait for room; False if the consumer has gone."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=_POLL_SECONDS)
        except Full:
            continue
        return True
    return False
