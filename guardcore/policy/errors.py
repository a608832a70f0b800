"""What is wrong with a policy: one `Problem` a mistake, all of them in one `PolicyError`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One mistake: its line in the file (1-based, None without a file), the field's path and what to do about it."""

    line: int | None
    field: str
    message: str

    def __str__(self) -> str:
        """Give one readable line, such as `line 7, categories[0].action: expected ...`."""
        place = [f"line {self.line}"] if self.line is not None else []
        place += [self.field] if self.field else []
        return f"{', '.join(place)}: {self.message}" if place else self.message


class PolicyError(ValueError):
    """A policy that can't be used: `source` names the file, `problems` has every mistake in file order."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        count = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[PolicyError], tuple[str, tuple[Problem, ...]]]:
        """Survive a trip between processes: the default would call the constructor with the message alone."""
        return type(self), (self.source, self.problems)


def field_name(path: FieldPath) -> str:
    """Write a path as a person would: `("categories", 0, "nouns", 2)` is `categories[0].nouns[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def suggestion(word: str, choices: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` for the closest choice, or nothing if none is close."""
    close = get_close_matches(word.casefold(), choices, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
