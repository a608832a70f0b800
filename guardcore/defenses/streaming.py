"""A streamer's reader is told the end, whatever becomes of the request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class _Watched:
    """A streamer that remembers whether it was ended; all else is the streamer's own."""

    def __init__(self, streamer: Any) -> None:
        self._streamer, self.ended = streamer, False

    def put(self, value: Any) -> None:
        """Pass tokens on."""
        self._streamer.put(value)

    def end(self) -> None:
        """Pass the end on, and remember it."""
        self.ended = True
        self._streamer.end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streamer, name)


@contextmanager
def streamed(generation: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """End the `streamer` among arguments of `generate` when the block ends, unless a model did it.

    A model ends its streamer only after it has generated. Without this, whoever reads a `TextIteratorStreamer` waits
    forever for a request that was refused, or that raised.

    Args:
        generation: arguments of transformers' `generate`.

    Yields:
        the arguments to go on with.
    """
    streamer = generation.get("streamer")
    if not callable(getattr(streamer, "end", None)):
        yield generation
        return
    watched = _Watched(streamer)
    try:
        yield {**generation, "streamer": watched}
    finally:
        if not watched.ended:
            watched.end()
