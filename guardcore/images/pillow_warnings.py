"""Collect the warnings that Pillow raises in one thread, without touching anybody else's.

`warnings.catch_warnings` swaps process-wide state, so two threads that decode at once can leave it swapped for good.
Here a counter installs one hook while any thread collects, and the hook sorts warnings by thread.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_here = threading.local()
_collectors = 0
_restore: Callable[[], None] = lambda: None  # noqa: E731 - set by _install, a placeholder until then


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Gather this thread's warnings as text, one line each; other threads' warnings go their usual way."""
    caught: list[str] = []
    _enter()
    _here.caught = caught
    try:
        yield caught
    finally:
        _here.caught = None
        _leave()


def silence_decoders() -> None:
    """Keep Pillow's log and libtiff from writing to standard error about broken files, for the whole process.

    libtiff does so past Python, into progress bars; a report names those files anyway. A Pillow whose libtiff cannot
    be reached (linked in without its symbols) stays as it is.
    """
    from PIL import _imaging

    logging.getLogger("PIL").addHandler(logging.NullHandler())
    set_handler = getattr(ctypes.CDLL(_imaging.__file__), "TIFFSetErrorHandler", None)
    if set_handler is not None:
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _enter() -> None:
    global _collectors, _restore
    with _lock:
        _collectors += 1
        if _collectors == 1:
            _restore = _install()


def _leave() -> None:
    global _collectors
    with _lock:
        _collectors -= 1
        if _collectors == 0:
            _restore()


def _install() -> Callable[[], None]:
    """Route warnings through the hook and return the function that puts everything back."""
    catcher = warnings.catch_warnings()
    catcher.__enter__()
    usual = warnings.showwarning

    def hook(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        caught = getattr(_here, "caught", None)
        if caught is None:
            usual(message, category, *where, **more)
        else:
            caught.append(" ".join(str(message).split()))

    warnings.showwarning = hook
    warnings.filterwarnings("always", module=r"PIL\.")  # the default filter tells each place once a process
    return lambda: catcher.__exit__(None, None, None)
