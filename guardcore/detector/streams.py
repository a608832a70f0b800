"""Generators that hand on what came before an exception, and close what they read from."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; those before an exception of the source are handed out before it is raised."""
    source, batch = iter(items), []
    try:
        for item in source:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def mapped(function: Callable[[Any], T], source: Iterable[Any]) -> Generator[T, None, None]:
    """`map` whose closing closes the source."""
    try:
        for item in source:
            yield function(item)
    finally:
        if isinstance(source, Generator):
            source.close()
