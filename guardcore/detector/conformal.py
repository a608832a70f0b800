"""Thresholds with a guarantee, from the user's own benign pictures: split conformal calibration.

Let t_1 ... t_n in R^C be the statistics of n benign pictures (one figure a category, lower = closer to unsafe) and t
that of a new picture. Per category, p_c = (1 + #{i: t_ic <= t_c}) / (n + 1). Over the categories, a picture is as
unsafe as its worst one, S_i = min_c t_ic, and

    P_c = (1 + #{i: S_i <= t_c}) / (n + 1),     P = min_c P_c = (1 + #{i: S_i <= S}) / (n + 1)

A category is found when P_c <= target_fpr; the picture is flagged when any is, that is, when P <= target_fpr.

Guarantee: if the new picture is benign and exchangeable with the calibration pictures (independent draws from the same
source are), then Pr(P <= alpha) <= alpha for every alpha, n, encoder and rule, and whatever the dependence between
categories. Proof: S is one fixed function of a picture, so S_1 ... S_n, S are exchangeable and the rank of S among
them is uniform on 1 ... n + 1 if there are no ties; ties, counted with <=, only raise it. P is that rank over n + 1,
hence Pr(P <= k / (n + 1)) <= k / (n + 1), with equality if there are no ties. The probability is over the calibration
pictures as well: with one particular set, the rate varies around alpha by about sqrt(alpha / n).

No category is charged for the others as in Bonferroni's correction, which could not flag anything with n < C / alpha;
P_c is the adjusted p-value of Westfall and Young (1993, single step). Statistics of categories are compared as they
are, not as ranks within their category: docs/decisions/0006-family-statistic.md has the measurement. A category that is
never the lowest can have a `target_fpr` of its own.

Patches share one threshold tau: a patch is flagged when its lowest score over the categories is at most tau. With
area_i(tau) the share of picture i in flagged patches, tau is the largest with (sum_i area_i(tau) + 1) / (n + 1) <=
mask rate. By conformal risk control (arXiv 2208.02814, Theorem 1) the expected flagged share of a benign exchangeable
picture is then at most that.

Source: split conformal prediction (Vovk et al., 2005).
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from guardcore.detector.patch_levels import PATCH_LEVELS, level_at, mask_threshold, quantiles_of
from guardcore.detector.regions import Lattice
from guardcore.detector.verdict import ScreenError
from guardcore.prototypes.bank import FingerprintError, PrototypeBank

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.policy.policy import Policy

Floats = NDArray[np.floating[Any]]

FORMAT = 1


class CalibrationError(ValueError):
    """Benign pictures that can't calibrate the asked-for rate, or a calibration file that can't be read."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What benign pictures look like to one detector.

    Attributes:
        categories: C names, in the order of the columns.
        statistics: float64 [n, C], a row a benign picture: the family-wise rank needs its categories together.
        patch_quantiles: float64 [K], lowest scores of benign patches at the levels PATCH_LEVELS; empty without regions.
        patch_threshold: tau; -inf flags none.
        target_fpr: family-wise false-positive rate in (0, 1).
        parts: what the figures depend on, by name: a label for people, a space and a fingerprint that must be the same.
        cost_spread: of the bank on calibration pictures, which sets the absolute epsilon; > 0.
    """

    categories: tuple[str, ...]
    statistics: Floats
    patch_quantiles: Floats
    patch_threshold: float
    target_fpr: float
    parts: Mapping[str, str] = field(default_factory=dict)
    cost_spread: float = 1.0

    def __post_init__(self) -> None:
        """Check shapes and ranges; raise CalibrationError."""
        width = len(self.categories)
        if self.statistics.ndim != 2 or self.statistics.shape[1] != width or not np.isfinite(self.statistics).all():
            raise CalibrationError(f"statistics: expected finite [n, {width}]; got shape {self.statistics.shape}")
        if self.patch_quantiles.shape not in (PATCH_LEVELS.shape, (0,)) or not np.isfinite(self.patch_quantiles).all():
            expected = list(PATCH_LEVELS.shape)
            raise CalibrationError(
                f"patch_quantiles: expected finite {expected}; got shape {self.patch_quantiles.shape}"
            )
        if np.isnan(self.patch_threshold):
            raise CalibrationError("patch_threshold: expected a number; got NaN")
        if not 0 < self.cost_spread < float("inf"):
            raise CalibrationError(f"cost_spread: expected a finite number above 0; got {self.cost_spread!r}")
        check_size(len(self.statistics), self.target_fpr)

    @property
    def count(self) -> int:
        """Number n of benign pictures."""
        return len(self.statistics)

    def p_values(self, statistic: Floats) -> Floats:
        """Conformal p-value of each category, (1 + #{t_i <= t}) / (n + 1) in (0, 1]: statistic [C] -> float64 [C]."""
        p: Floats = (1 + (self.statistics <= statistic).sum(axis=0)) / (self.count + 1)
        return p

    def family_p_values(self, statistic: Floats, family: NDArray[np.bool_] | None = None) -> Floats:
        """P_c of the module docstring, float64 [C]; the lowest of them is the picture's P.

        statistic: finite [C]. family: bool [C], the categories that share the target rate (None = all); others get 1.
        """
        family = np.ones(len(self.categories), dtype=bool) if family is None else family
        adjusted = np.ones(len(self.categories))
        if family.any():
            worst = self.statistics[:, family].min(axis=1)
            adjusted[family] = (1 + (worst[:, None] <= statistic[family]).sum(axis=0)) / (self.count + 1)
        return adjusted

    @property
    def has_patches(self) -> bool:
        """Whether patch scores were calibrated, so that regions can be told."""
        return self.patch_quantiles.size > 0

    def patch_p_values(self, scores: Floats) -> Floats:
        """Share of benign patches whose lowest score is as low, float64 [N] for scores [C, N]."""
        return level_at(self.patch_quantiles, scores.min(axis=0))

    def check(self, parts: Mapping[str, str]) -> None:
        """Compare with a detector's parts; raise FingerprintError naming every one that differs."""
        names = [*parts, *(name for name in self.parts if name not in parts)]
        wrong = [
            f"{name}: calibrated for {self.parts.get(name, 'nothing')}, detector has {parts.get(name, 'nothing')}"
            for name in names
            if _identity(parts.get(name)) != _identity(self.parts.get(name))
        ]
        if wrong:
            raise FingerprintError("this calibration belongs to another detector. " + "; ".join(wrong))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything in the file."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write JSON; figures keep nine digits, which is all that fp32 has."""
        Path(path).write_text(self._json(), encoding="utf-8")

    def _json(self) -> str:
        data = {
            "format": FORMAT,
            "parts": dict(self.parts),
            "target_fpr": self.target_fpr,
            "cost_spread": self.cost_spread,
            "categories": list(self.categories),
            "patch_threshold": _digits(self.patch_threshold),
            "patch_quantiles": [_digits(value) for value in self.patch_quantiles],
            "statistics": [[_digits(value) for value in row] for row in self.statistics],
        }
        return json.dumps(data, separators=(",", ":"), sort_keys=True) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` wrote; raise CalibrationError if it is anything else, OSError if it can't be read."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise CalibrationError(f"{path}: expected calibration format {FORMAT}; got {data['format']!r}")
            categories = tuple(map(str, data["categories"]))
            return cls(
                categories,
                # Through fp32, so that a figure equals the one that was measured and ties stay ties.
                np.array(data["statistics"], dtype=np.float32).astype(np.float64),
                np.array(data["patch_quantiles"], dtype=np.float64),
                -np.inf if data["patch_threshold"] is None else float(np.float32(data["patch_threshold"])),
                float(data["target_fpr"]),
                {str(name): str(value) for name, value in data["parts"].items()},
                float(data["cost_spread"]),
            )
        except CalibrationError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise CalibrationError(f"{path}: not a calibration file ({type(error).__name__}: {error})") from error


def check_size(count: int, target_fpr: float) -> None:
    """Raise CalibrationError unless n benign pictures can hold a target rate: n >= 1 / target_fpr - 1."""
    if not 0 < target_fpr < 1:
        raise CalibrationError(f"target_fpr: expected a rate between 0 and 1; got {target_fpr!r}")
    least = int(np.ceil(1 / target_fpr - 1 - 1e-9))  # the tolerance forgives 1 / 0.05 - 1 = 19.000000000000004
    if count < least:
        raise CalibrationError(
            f"a false-positive rate of {target_fpr:g} takes at least {least} benign pictures "
            f"(the lowest p-value of n pictures is 1 / (n + 1)); got {count} that could be judged"
        )


def _identity(part: str | None) -> str | None:
    """The fingerprint of a part, without the label in front: a checkpoint may move to another folder."""
    return None if part is None else part.rpartition(" ")[2]


def _digits(value: float) -> float | None:
    """Nine digits, which is all that fp32 has; JSON knows no infinity."""
    return float(f"{value:.9g}") if np.isfinite(value) else None


class Measures(Protocol):
    """The part of `guardcore.Detector` that calibration uses."""

    policy: Policy
    bank: PrototypeBank

    @property
    def parts(self) -> Mapping[str, str]:
        """What the statistics depend on."""

    def measure_batches(self, images: Iterable[Any]) -> Iterator[Any]:
        """Yield a `guardcore.detector.measurement.Measurement` or a ScreenError per picture."""


def calibrate(
    detector: Measures,
    images: Iterable[Image.Image | Exception],
    target_fpr: float | None = None,
    *,
    mask_rate: float = 0.02,
) -> Calibration:
    """Measure benign pictures and return the calibration that holds a family-wise false-positive rate.

    The pictures must be benign and drawn like those that will be screened; then the guarantee of this module holds.
    Pictures that can't be judged don't count and are told of in a warning.

    Args:
        detector: what is calibrated; a calibration that it has is ignored.
        images: benign pictures, read once and as a stream; at least 1 / target_fpr - 1 of them.
        target_fpr: rate in (0, 1); None = the policy's.
        mask_rate: largest share of benign pixels that flagged patches may cover, in (0, 1).

    Raises:
        CalibrationError: too few pictures for the rate, or a rate outside (0, 1).
    """
    target_fpr = detector.policy.target_fpr if target_fpr is None else target_fpr
    if not 0 < mask_rate < 1:
        raise CalibrationError(f"mask_rate: expected a rate between 0 and 1; got {mask_rate!r}")
    check_size(sys.maxsize, target_fpr)  # a wrong rate must not cost a pass over all pictures
    measured = list(detector.measure_batches(images))
    sound = [found for found in measured if not isinstance(found, ScreenError)]
    if len(sound) < len(measured):
        first = next(found for found in measured if isinstance(found, ScreenError))
        warnings.warn(
            f"{len(measured) - len(sound)} of {len(measured)} pictures could not be judged and don't count: {first}",
            stacklevel=2,
        )
    check_size(len(sound), target_fpr)
    quantiles, threshold = _calibrate_patches([found for found in sound if found.boxes is not None], mask_rate)
    return Calibration(
        categories=detector.bank.categories,
        statistics=np.stack([found.statistic for found in sound]),
        patch_quantiles=quantiles,
        patch_threshold=threshold,
        target_fpr=target_fpr,
        parts=dict(detector.parts),
        cost_spread=detector.bank.cost_spread,
    )


def _calibrate_patches(measured: Sequence[Any], mask_rate: float) -> tuple[Floats, float]:
    """Patch quantiles and tau; nothing for `views`, whose patches have no place."""
    if not measured:
        return np.empty(0), -np.inf
    lowest = [found.patch_scores.min(axis=0) for found in measured]
    lattices = [Lattice.of(found.boxes, found.size) for found in measured]
    return quantiles_of(lowest), mask_threshold(lowest, lattices, mask_rate)
