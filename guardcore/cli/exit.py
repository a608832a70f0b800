"""How a command ends: exit codes, and one line on standard error instead of a traceback for what a user can mend."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_CODES = (
    "Exit codes: 0 all clean; 1 something flagged; 2 wrong usage; 3 some inputs could not be judged, none flagged; "
    "70 a bug; 130 interrupted."
)
USAGE, BUG, INTERRUPTED, BROKEN_PIPE = 2, 70, 130, 141


class UsageError(Exception):
    """Something that the user can mend: a wrong option, policy, calibration or path, or a missing extra."""


def say(message: str) -> None:
    """Write to standard error, under the program's name."""
    typer.echo(f"guardcore: {message}", err=True)


@contextmanager
def as_usage() -> Iterator[None]:
    """Turn what bad options raise while things are set up into a UsageError; later the same types would be bugs."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        # A policy's mistakes are listed one a line; anything else fits one.
        raise UsageError(text if hasattr(error, "problems") else " ".join(text.split())) from error


@contextmanager
def named_failures() -> Iterator[None]:
    """End the command with the documented code and a readable line, whatever happens inside."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_more: say(str(message))
        try:
            yield
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except UsageError as error:
            say(str(error))
            raise typer.Exit(USAGE) from None
        except KeyboardInterrupt:
            say("interrupted; what is reported so far stands")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has gone (`| head`); without this, Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from None
        except OSError as error:
            say(f"{error.filename or 'output'}: {error.strerror or error}")
            raise typer.Exit(USAGE) from None
        except Exception:  # noqa: BLE001 - a bug: show all of it, but never as exit code 1, which means "flagged"
            traceback.print_exc()
            raise typer.Exit(BUG) from None
