"""How the scores of a span's keys change: one kind of rule and its strength."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["gated", "literal", "log_gain", "target_mass"]
_RANGES: dict[str, tuple[float, str]] = {
    "gated": (-1.0, "a finite number >= -1"),
    "literal": (0.0, "a finite number >= 0"),
    "log_gain": (0.0, "a finite number >= 0"),
}


@dataclass(frozen=True)
class ScoreRule:
    """What happens to the score s = scale <q, k> of a calibrated row and a key of the span.

    | kind | rule | strength | source |
    |---|---|---|---|
    | gated | s + gamma relu(s) | gamma >= -1 | GuardAlign, equations 13 and 14 with a 0/1 mask |
    | literal | s + gamma sqrt(d) relu(s)^2 | gamma >= 0 | the same as printed |
    | log_gain | s + log g, so that exp(s) is multiplied by g | gain g >= 0, 0 removes the keys | PASTA |
    | target_mass | the log gain that brings the span's share of the row to t, if it is lower | 0 < t < 1 | ours |

    `literal` grows with the square of the score: at d = 128 and gamma 0.1 a score of 5 becomes 33, which saturates the
    softmax. So `gated` is the default everywhere.

    Raises:
        ValueError: an unknown kind, or a strength outside its range.

    Source: Zhu et al. 2026 (arXiv 2602.24027), equations 13 and 14; Zhang et al. 2023 (arXiv 2311.02262).
    """

    kind: Kind
    strength: float

    def __post_init__(self) -> None:
        """Check kind and strength."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}; got {self.kind!r}")
        number = isinstance(self.strength, int | float) and not isinstance(self.strength, bool)
        if self.kind == "target_mass":
            fine, expected = number and 0 < self.strength < 1, "a share between 0 and 1, both excluded"
        else:
            lowest, expected = _RANGES[self.kind]
            fine = number and lowest <= self.strength <= sys.float_info.max
        if not fine:
            raise ValueError(f"strength: expected {expected} for {self.kind}; got {self.strength!r}")
        object.__setattr__(self, "strength", float(self.strength))

    @classmethod
    def parse(cls, text: str) -> ScoreRule:
        """Read `KIND:STRENGTH`, such as `gated:0.15`; str() gives it back. Raise ValueError, TypeError for no text."""
        if not isinstance(text, str):
            raise TypeError(f"rule: expected a string such as gated:0.15; got {type(text).__name__}")
        kind, _, strength = text.partition(":")
        try:
            number = float(strength)
        except ValueError:
            raise ValueError(f"rule: expected KIND:STRENGTH, such as gated:0.15; got {text!r}") from None
        return cls(kind, number)  # type: ignore[arg-type] # the constructor checks it

    def coefficients(self, scale: float) -> tuple[float, float, float]:
        """(linear, quadratic, additive) of `guardcore.ops.calibrated_attention`, for attention of that scale.

        Args:
            scale: of the attention's scores, 1 / sqrt(d) as a rule; > 0.

        Raises:
            ValueError: of `target_mass`, whose gain depends on the row: see `guardcore.ops.target_mass_attention`.
        """
        if self.kind == "gated":
            return self.strength, 0.0, 0.0
        if self.kind == "literal":
            return 0.0, self.strength / scale, 0.0
        if self.kind == "log_gain":
            return 0.0, 0.0, math.log(self.strength) if self.strength > 0 else -math.inf
        raise ValueError("target_mass has no coefficients: its gain depends on the row")

    @property
    def active(self) -> bool:
        """Whether the rule changes anything."""
        return self.strength != (1.0 if self.kind == "log_gain" else 0.0)

    def __str__(self) -> str:
        return f"{self.kind}:{self.strength!r}"
