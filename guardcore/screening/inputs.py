"""From arguments to an ordered list of files: files, folders, globs and a list on standard input.

Nothing that is named gets lost. A path that does not exist, a folder that cannot be read and a pattern without a match
are entries with an error, and what is left out on purpose is told in a notice.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from guardcore.images.opening import ImageError, ImageErrorKind


@dataclass(frozen=True)
class Input:
    """One file to judge, as the user would name it; `error` is set if it is known already that it cannot be read."""

    path: str
    error: ImageError | None = None


@dataclass
class Inputs:
    """What the arguments stand for, in order.

    Attributes:
        files: everything that gets a line in the report.
        folders: the folders that were walked, as given.
        notices: what was left out on purpose, for people.
    """

    files: list[Input] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def discover(arguments: Sequence[str], listed: Iterable[str] = (), *, hidden: bool = False) -> Inputs:
    """Expand arguments to files, in the order given; within a folder by name.

    Args:
        arguments: files, folders (walked recursively), patterns such as `shots/**/*.png` if the shell did not expand
            them, and `-` for the paths in `listed`.
        listed: paths taken literally, usually from standard input; folders among them are walked.
        hidden: also take what is found in a folder under a name that starts with a dot. What is named is always taken.

    Returns:
        every named or found file once for each time it is named.
    """
    inputs = Inputs()
    for argument in arguments:
        if argument == "-":
            paths = list(listed)
        elif _is_pattern(argument):
            paths = sorted(glob.glob(argument, recursive=True))
            if not paths:
                inputs.files.append(Input(argument, ImageError(ImageErrorKind.NOT_FOUND, "no file matches")))
        else:
            paths = [argument]
        for path in paths:
            _add(path, inputs, hidden)
    return inputs


def read_list(stream: IO[bytes], *, null: bool = False) -> Iterator[str]:
    r"""Split a byte stream into paths: one a line, or separated by NUL (`find -print0`); empty ones are dropped."""
    for entry in stream.read().split(b"\0" if null else b"\n"):
        path = entry if null else entry.removesuffix(b"\r")
        if path:
            yield os.fsdecode(path)


def printable(path: str) -> str:
    r"""Return a path as valid Unicode: bytes that are not UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_pattern(argument: str) -> bool:
    return glob.has_magic(argument) and not os.path.lexists(argument)


def _add(path: str, inputs: Inputs, hidden: bool) -> None:
    """Take one path: a folder is walked, all else is a file, whatever it turns out to be."""
    if not os.path.isdir(path):
        inputs.files.append(Input(path))
        return
    inputs.folders.append(path)
    before, skipped = len(inputs.files), _walk(path, inputs, hidden)
    if skipped:
        what = "entry" if skipped == 1 else "entries"
        inputs.notices.append(f"{printable(path)}: {skipped} hidden {what} left out (--hidden takes them)")
    if len(inputs.files) == before:
        inputs.notices.append(f"{printable(path)}: no file in this folder")


def _walk(root: str, inputs: Inputs, hidden: bool) -> int:
    """Append every file below a folder by name and return how many hidden entries were skipped.

    Links to folders are followed. A folder that was walked before, as a loop of links makes it, is told and not walked
    again, so the walk ends. The stack is explicit: depth is the attacker's choice, Python's recursion limit is not.
    """
    skipped = 0
    walked: dict[tuple[int, int], str] = {}
    stack = [root]
    while stack:
        path = stack.pop()
        if path != root and not _is_dir(path):
            inputs.files.append(Input(path))
            continue
        try:
            status = os.stat(path)
            first = walked.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                inputs.notices.append(f"{printable(path)}: the same folder as {printable(first)}, walked once")
                continue
            names = sorted(os.listdir(path))
        except OSError as error:
            inputs.files.append(Input(path, _folder_error(error)))
            continue
        shown = [name for name in names if hidden or not name.startswith(".")]
        skipped += len(names) - len(shown)
        stack += [os.path.join(path, name) for name in reversed(shown)]
    return skipped


def _is_dir(path: str) -> bool:
    try:
        return os.path.isdir(path)
    except (OSError, ValueError):
        return False


def _folder_error(error: OSError) -> ImageError:
    denied = isinstance(error, PermissionError)
    kind = ImageErrorKind.PERMISSION_DENIED if denied else ImageErrorKind.UNREADABLE
    return ImageError(kind, f"folder not readable: {error.strerror or error}")
