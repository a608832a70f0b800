"""Which tokens of a prompt are the safety prefix, the instruction, the image, and the unsafe parts of the image."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations
from typing import Literal, get_args

import torch
from torch import Tensor

Range = tuple[int, int]
Rows = Literal["instruction", "instruction+generated"]


class TokenClass(IntEnum):
    """What a key is to a calibration; the values are the classes of `guardcore.ops.calibrated_attention`."""

    UNTOUCHED = 0
    PREFIX = 1
    INSTRUCTION = 2
    IMAGE = 3
    UNSAFE = 4


NUM_CLASSES = len(TokenClass)
# Painted in this order, so that an unsafe patch, which is an image token too, ends as unsafe.
_PAINTED = (TokenClass.PREFIX, TokenClass.INSTRUCTION, TokenClass.IMAGE, TokenClass.UNSAFE)


@dataclass(frozen=True, kw_only=True)
class TokenSpans:
    """Spans of one request, in tokens of its prompt without padding; ranges are half open.

    Attributes:
        length: tokens of the prompt.
        answer: first token of the answer's header, where the user's turn ends; at most `length`.
        prefix: the safety prefix.
        instruction: what the user asks.
        image: the tokens that stand for pictures.
        unsafe: those among them that show what a verdict found unsafe.

    Raises:
        ValueError: a range that is reversed or leaves the prompt, an answer beyond it, spans that overlap where they
            may not, unsafe tokens that are no image tokens. The span is named.
    """

    length: int
    answer: int
    prefix: tuple[Range, ...] = ()
    instruction: tuple[Range, ...] = ()
    image: tuple[Range, ...] = ()
    unsafe: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        """Check every span."""
        if not 0 <= self.answer <= self.length:
            raise ValueError(f"answer: expected 0 to the length {self.length}; got {self.answer}")
        covered = {name: self._covered(name) for name in ("prefix", "instruction", "image", "unsafe")}
        for first, second in combinations(("prefix", "instruction", "image"), 2):
            shared = covered[first] & covered[second]
            if shared:
                raise ValueError(f"{second}: expected no token of {first}; token {min(shared)} is in both")
        stray = covered["unsafe"] - covered["image"]
        if stray:
            raise ValueError(f"unsafe: expected image tokens only; token {min(stray)} is none")

    def classes(self, only: Collection[TokenClass] | None = None) -> Tensor:
        """The class of every token, [length] uint8.

        Args:
            only: the classes that matter, such as those with a rule; None is all. Tokens of other classes are
                untouched, but unsafe ones are plain image tokens then.

        Token 0 is never in a class: models park attention there (the sink), and moving it breaks them.
        """
        found = torch.zeros(self.length, dtype=torch.uint8)
        for kind in _PAINTED:
            if only is None or kind in only:
                for start, end in self._ranges(kind.name.lower()):
                    found[start:end] = int(kind)
        found[:1] = int(TokenClass.UNTOUCHED)
        return found

    def rows(self, rows: Rows) -> Tensor:
        """Which tokens attend under the rule, [length] bool.

        Args:
            rows: `instruction`, or `instruction+generated`, which adds the answer's header and what is generated.

        Raises:
            ValueError: any other value.
        """
        check_rows(rows)
        found = torch.zeros(self.length, dtype=torch.bool)
        for start, end in self.instruction:
            found[start:end] = True
        if rows == "instruction+generated":
            found[self.answer :] = True
        return found

    def _ranges(self, name: str) -> tuple[Range, ...]:
        ranges: tuple[Range, ...] = getattr(self, name)
        return ranges

    def _covered(self, name: str) -> set[int]:
        covered: set[int] = set()
        for start, end in self._ranges(name):
            if not 0 <= start <= end <= self.length:
                raise ValueError(f"{name}: expected 0 <= start <= end <= {self.length}; got ({start}, {end})")
            covered.update(range(start, end))
        return covered


def check_rows(rows: object) -> None:
    """Raise ValueError unless `rows` is one of `Rows`."""
    if rows not in get_args(Rows):
        raise ValueError(f"rows: expected {' or '.join(map(repr, get_args(Rows)))}; got {rows!r}")
