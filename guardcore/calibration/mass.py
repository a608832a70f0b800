"""How much of the attention the safety prefix gets, before and after calibration: the audit trail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerMass:
    """The prefix's share of the attention in one layer, at the prompt's last calibrated row, by query head.

    That is the prompt's last row under rows="instruction+generated", and the instruction's under "instruction". Both
    are of the same inputs to the layer, so their difference is this layer's own effect.

    Attributes:
        layer: index of the layer.
        before: with the rule off, each in [0, 1].
        after: with the rule on, each in [0, 1].

    Raises:
        ValueError: not one number of each kind for each head.
    """

    layer: int
    before: tuple[float, ...]
    after: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that both are of the same heads."""
        if len(self.before) != len(self.after) or not self.before:
            raise ValueError(f"after: expected {len(self.before) or 'some'} heads as before; got {len(self.after)}")

    @property
    def change(self) -> tuple[float, ...]:
        """By head, what the rule adds: after - before."""
        return tuple(after - before for before, after in zip(self.before, self.after, strict=True))

    @property
    def means(self) -> tuple[float, float]:
        """Mean over the heads, before and after."""
        return sum(self.before) / len(self.before), sum(self.after) / len(self.after)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN, which it does not know, is None."""
        before, after = ([None if math.isnan(mass) else mass for mass in own] for own in (self.before, self.after))
        return {"layer": self.layer, "before": before, "after": after}

    def __str__(self) -> str:
        before, after = self.means
        return f"layer {self.layer}: {before:.4f} -> {after:.4f}"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        """Give rich the means; the heads are data."""
        yield "layer", self.layer
        yield "means", self.means
