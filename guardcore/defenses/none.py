"""No defense: the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardcore.defenses.case import answers, generate, open_cases, settle_unopened
from guardcore.defenses.fingerprint import digest
from guardcore.defenses.protocol import Answer, Host, Request
from guardcore.defenses.streaming import streamed


class Undefended:
    """Passes requests to the model as they are; only what can't be shown to it is refused."""

    name = "none"

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the method's name."""
        return digest(self.name)

    def answer(self, host: Host, requests: Sequence[Request], **generation: Any) -> list[Answer]:
        """Generate once; see `guardcore.defenses.protocol.Defense`."""
        with streamed(generation) as options:
            cases = open_cases(requests)
            settle_unopened(cases)
            generate(host, cases, options)
            return answers(cases, options)
