"""What the detector says about one picture: frozen results that print themselves and become JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from guardcore.detector.regions import Box, Region, paint
from guardcore.policy.policy import Action

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.redaction import RedactionStyle

__all__ = ["Region", "ScreenError", "Verdict"]

Floats = NDArray[np.floating[Any]]
ErrorKind = Literal["unreadable", "non-finite-embedding", "uncalibrated"]


@dataclass(frozen=True)
class ScreenError:
    """Why a picture could not be judged: a kind that programs can match and a message for people."""

    kind: ErrorKind
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True, eq=False)
class Verdict:
    """The judgment of one picture.

    Attributes:
        flagged: whether some category of the policy was found.
        action: allow, or the strictest action among the found categories; the policy's on_error if `error` is set.
        found: the categories that were found, nearest first.
        scores: 1 - conformal p-value of each category, in [0, 1); None before calibration. 0.99 reads "nearer to this
            concept than 99 % of benign pictures".
        p_value: family-wise p-value of the picture, in (0, 1]; None before calibration.
        distances: transport distance of each category, lower = closer.
        statistics: statistic t of each category, lower = closer.
        regions: where, most unusual first; empty without calibration or threshold, and in patch mode `views`. Regions
            have an error rate of their own (a share of benign pixels), so a picture that is not flagged may have
            some.
        patch_scores: fp32 [C, N], lower = closer, C as in `statistics`; None if the picture could not be embedded.
        patch_levels: float64 [N], the share of benign patches whose lowest score is as low; None before calibration.
        boxes: int64 [N, 4], x0, y0, x1, y1 of each patch in pixels of the original, half-open; None for `views`.
        size: width and height of the original; (0, 0) if it could not be read.
        error: why the picture could not be judged, or None.
        fingerprint: SHA-256 over all that the verdict depends on but the picture.
        certificates: of a picture that `decisions_only` cleared, a number for each category that its statistic is not
            below, in exact arithmetic, and that is above the threshold at which the category is found; else empty.
    """

    flagged: bool
    action: Action
    found: tuple[str, ...]
    scores: Mapping[str, float | None]
    p_value: float | None
    distances: Mapping[str, float]
    statistics: Mapping[str, float]
    regions: tuple[Region, ...]
    patch_scores: Floats | None
    patch_levels: Floats | None
    boxes: NDArray[np.int64] | None
    size: tuple[int, int]
    error: ScreenError | None
    fingerprint: str
    certificates: Mapping[str, float] = field(default_factory=dict)

    @property
    def category(self) -> str | None:
        """The category that the picture is nearest to, found or not: lowest statistic, then lowest distance."""
        if not self.statistics:
            return None
        return min(self.statistics, key=lambda name: (self.statistics[name], self.distances[name]))

    @property
    def mask(self) -> NDArray[np.bool_]:
        """What to cover, bool [height, width]: all regions, or everything where a flagged picture has none."""
        if self.flagged and not self.regions:
            return np.ones(self.size[::-1], dtype=bool)
        rectangles: list[Box] = [box for region in self.regions for box in region.rectangles]
        return paint(rectangles, self.size)

    def overlay(self, image: Image.Image) -> Image.Image:
        """Draw heat map, regions and labels on the picture; see `guardcore.detector.overlay.overlay`."""
        from guardcore.detector.overlay import overlay

        return overlay(image, self)

    def redact(self, image: Image.Image, style: RedactionStyle = "zero") -> Image.Image:
        """Cover the regions, or all of a picture that could not be judged; see `guardcore.redaction.redact`."""
        from guardcore.redaction import redact

        mask = np.ones(image.size[::-1], dtype=bool) if self.error is not None else self.mask
        return redact(image, mask, style)

    def to_dict(self, *, patches: bool = False) -> dict[str, Any]:
        """Plain values for JSON; with `patches`, patch scores and boxes too."""
        data: dict[str, Any] = {
            "flagged": self.flagged,
            "action": self.action,
            "found": list(self.found),
            "scores": dict(self.scores),
            "p_value": self.p_value,
            "distances": dict(self.distances),
            "statistics": dict(self.statistics),
            "certificates": dict(self.certificates),
            "regions": [region.to_dict() for region in self.regions],
            "size": list(self.size),
            "error": None if self.error is None else {"kind": self.error.kind, "message": self.error.message},
            "fingerprint": self.fingerprint,
        }
        if patches:
            data["patch_scores"] = None if self.patch_scores is None else self.patch_scores.tolist()
            data["boxes"] = None if self.boxes is None else self.boxes.tolist()
        return data

    def to_json(self, *, patches: bool = False) -> str:
        """One line of JSON, without NaN or infinity."""
        return json.dumps(self.to_dict(patches=patches), allow_nan=False)

    def __str__(self) -> str:
        lines = [self.headline, *(f"  {region}" for region in self.regions)]
        return "\n".join(lines)

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if self.error is not None:
            return f"{self.action}: could not be judged ({self.error})"
        if self.flagged:
            return f"{self.action}: " + ", ".join(self._scored(name) for name in self.found)
        return f"{self.action}: nothing found" + (
            "" if self.category is None else f", nearest {self._scored(self.category)}"
        )

    def _scored(self, name: str) -> str:
        score = self.scores[name]
        return name if score is None else f"{name} {score:.3f}"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        """Give rich what a person wants to see; arrays stay out."""
        yield "action", self.action
        yield "found", self.found
        yield "p_value", self.p_value
        yield "scores", dict(self.scores)
        yield "regions", self.regions
        yield "error", self.error
