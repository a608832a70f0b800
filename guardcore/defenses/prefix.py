"""A safety prefix and nothing else: what calibration has to be better than."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardcore.defenses.case import Case, answers, generate, ongoing, open_cases, settle_unopened
from guardcore.defenses.fingerprint import digest
from guardcore.defenses.protocol import Answer, Host, Request
from guardcore.defenses.streaming import streamed

# The paper names its prefix's first words only ("As an AI assistant, ..."); the rest is ours.
SAFETY_PREFIX = (
    "As an AI assistant, be helpful and harmless: decline what is dangerous, hateful, sexual or illegal, "
    "whether words or pictures ask for it."
)


class PlainPrefix:
    """Puts a safety prefix before the instruction, in the user's turn.

    Args:
        text: the prefix; a request's own prefix comes first.

    Raises:
        TypeError: a prefix that is no string.
        ValueError: a blank one.

    Source: Zhu et al. 2026 (arXiv 2602.24027), section 3.2, without its calibration.
    """

    name = "prefix"

    def __init__(self, text: str = SAFETY_PREFIX) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string; got {type(text).__name__}")
        if not text.strip():
            raise ValueError("text: expected a prefix; got none (Undefended is the defense without one)")
        self.text = text

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over name and prefix."""
        return digest(self.name, self.text)

    def answer(self, host: Host, requests: Sequence[Request], **generation: Any) -> list[Answer]:
        """Generate once with the prefix; see `guardcore.defenses.protocol.Defense`."""
        with streamed(generation) as options:
            cases = open_cases(requests)
            settle_unopened(cases)
            add_prefix(cases, self.text)
            generate(host, cases, options)
            return answers(cases, options)


def add_prefix(cases: Sequence[Case], text: str) -> None:
    """Give the prefix to every request that has none of its own; a blank one is none."""
    for case in ongoing(cases, "prefix"):
        if not case.request.prefix.strip():
            case.change(prefix=text if text.strip() else "")
        prefix = case.request.prefix
        case.note("prefix", bool(prefix), f"{prefix!r} before the instruction" if prefix else "switched off")
