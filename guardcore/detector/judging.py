"""From scores to a verdict: p-values or thresholds, found categories, regions, action."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from guardcore.detector.conformal import Calibration
from guardcore.detector.regions import Region, find_regions
from guardcore.detector.verdict import ScreenError, Verdict
from guardcore.policy.policy import Action, Policy

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

_STRICTNESS: dict[Action, int] = {"allow": 0, "review": 1, "block": 2}


class Measured(Protocol):
    """Scores of one picture; `guardcore.detector.measurement.Measurement` has the shapes."""

    @property
    def statistic(self) -> NDArray[np.float64]:
        """Of each category, [C]."""

    @property
    def distance(self) -> NDArray[np.float64]:
        """Of each category, [C]."""

    @property
    def patch_scores(self) -> NDArray[np.float32]:
        """Of each category and patch, [C, N]."""

    @property
    def boxes(self) -> NDArray[np.int64] | None:
        """Of each patch, [N, 4]."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""


def judge(measured: Measured, policy: Policy, calibration: Calibration | None, fingerprint: str) -> Verdict:
    """Apply a policy to the scores of one picture.

    A category is found when t <= its `threshold` if it has one; else when its p-value is at most its own `target_fpr`
    if it has one; else when its family-wise p-value, over the categories that have neither, is at most the
    calibration's target. Without a calibration, categories without a threshold can't be judged: unless another one
    was found, the verdict is an error.
    """
    names = [category.name for category in policy.categories]
    adjusted = None if calibration is None else calibration.family_p_values(measured.statistic, _family(policy))
    found = find_categories(measured.statistic, policy, calibration, adjusted)
    p_values = None if calibration is None else calibration.p_values(measured.statistic)
    levels = _levels(measured, calibration)
    ranked = sorted(np.flatnonzero(found), key=lambda c: (measured.statistic[c], measured.distance[c]))
    error = None if found.any() else _undecided(policy, calibration)
    return Verdict(
        flagged=bool(found.any()),
        action=policy.on_error if error else strictest(policy, found),
        found=tuple(names[c] for c in ranked),
        scores={name: None if p_values is None else float(1 - p_values[c]) for c, name in enumerate(names)},
        p_value=None if adjusted is None else float(adjusted.min()),
        distances=dict(zip(names, measured.distance.tolist(), strict=True)),
        statistics=dict(zip(names, measured.statistic.tolist(), strict=True)),
        regions=_regions(measured, policy, calibration, levels, found),
        patch_scores=measured.patch_scores,
        patch_levels=levels,
        boxes=measured.boxes,
        size=measured.size,
        error=error,
        fingerprint=fingerprint,
    )


class Cleared(Protocol):
    """A picture without findings; `guardcore.detector.clearing.Clearance` has the shapes."""

    @property
    def bound(self) -> NDArray[np.float32]:
        """Of each category, [C]."""

    @property
    def boxes(self) -> NDArray[np.int64] | None:
        """Of each patch, [N, 4]."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""


def judge_clearance(cleared: Cleared, policy: Policy, calibration: Calibration | None, fingerprint: str) -> Verdict:
    """The verdict of a picture whose bounds are above all `flag_thresholds`: `judge` would not find anything either.

    It has certificates in place of scores, distances and statistics, and no regions.
    """
    names = [category.name for category in policy.categories]
    error = _undecided(policy, calibration)
    return Verdict(
        flagged=False,
        action=policy.on_error if error else "allow",
        found=(),
        scores=dict.fromkeys(names),
        p_value=None,
        distances={},
        statistics={},
        regions=(),
        patch_scores=None,
        patch_levels=None,
        boxes=cleared.boxes,
        size=cleared.size,
        error=error,
        fingerprint=fingerprint,
        certificates=dict(zip(names, cleared.bound.tolist(), strict=True)),
    )


def judge_error(error: ScreenError, policy: Policy, fingerprint: str) -> Verdict:
    """The verdict of a picture that could not be scored: no figures, and the policy's on_error action."""
    return Verdict(False, policy.on_error, (), {}, None, {}, {}, (), None, None, None, (0, 0), error, fingerprint)


def find_categories(
    statistic: Floats, policy: Policy, calibration: Calibration | None, adjusted: Floats | None
) -> Bools:
    """Which categories are found, bool [C]; see `judge`. adjusted: [C], from `Calibration.family_p_values`."""
    thresholds = np.array([-np.inf if each.threshold is None else each.threshold for each in policy.categories])
    found: Bools = statistic <= thresholds
    if calibration is None or adjusted is None:
        return found
    own = np.array([-np.inf if each.target_fpr is None else each.target_fpr for each in policy.categories])
    family = _family(policy)
    calibrated = np.where(family, adjusted <= calibration.target_fpr, calibration.p_values(statistic) <= own)
    return np.where(np.isneginf(thresholds), calibrated, found).astype(bool)


def flag_thresholds(policy: Policy, calibration: Calibration | None) -> NDArray[np.float32]:
    """The largest fp32 statistic at which `find_categories` finds each category, [C]; -inf where none is."""
    family = _family(policy)
    limits = np.array([-np.inf if each.threshold is None else each.threshold for each in policy.categories])
    for c, category in enumerate(policy.categories):
        if calibration is None or category.threshold is not None:
            continue
        if category.target_fpr is None:
            limits[c] = _largest_found(calibration.statistics[:, family].min(axis=1), calibration.target_fpr)
        else:
            limits[c] = _largest_found(calibration.statistics[:, c], category.target_fpr)
    rounded = limits.astype(np.float32)
    return np.where(rounded > limits, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _largest_found(benign: Floats, target: float) -> float:
    """The largest t with (1 + #{benign <= t}) / (n + 1) <= target."""
    n = len(benign)
    counts = int(((1 + np.arange(n + 1)) / (n + 1) <= target).sum())  # 0 ... counts - 1 benign ones may be as low
    if counts in (0, n + 1):
        return np.inf if counts else -np.inf
    return float(np.nextafter(np.sort(benign)[counts - 1], -np.inf))


def strictest(policy: Policy, found: Bools) -> Action:
    """The strictest action among found categories [C]; allow if there are none."""
    actions = [category.action for category, here in zip(policy.categories, found, strict=True) if here]
    return max(actions, key=_STRICTNESS.__getitem__, default="allow")


def _family(policy: Policy) -> Bools:
    """The categories that share the family-wise target rate."""
    return np.array([each.threshold is None and each.target_fpr is None for each in policy.categories])


def _undecided(policy: Policy, calibration: Calibration | None) -> ScreenError | None:
    open_ones = [category.name for category in policy.categories if category.threshold is None]
    if calibration is not None or not open_ones:
        return None
    names = ", ".join(open_ones)
    return ScreenError(
        "uncalibrated", f"no calibration and no threshold for {names}; run `guardcore calibrate` on benign pictures"
    )


def _levels(measured: Measured, calibration: Calibration | None) -> NDArray[np.float64] | None:
    if calibration is None or not calibration.has_patches:
        return None
    return np.asarray(calibration.patch_p_values(measured.patch_scores), dtype=np.float64)


def _regions(
    measured: Measured, policy: Policy, calibration: Calibration | None, levels: Floats | None, found: Bools
) -> tuple[Region, ...]:
    """Patches at or below the policy's threshold, or the calibrated tau where it has none, joined to regions.

    The lowest patch of a found category is always among them, so that a flagged picture has a place to redact.
    """
    if measured.boxes is None:
        return ()
    common = -np.inf if calibration is None else calibration.patch_threshold
    tau = np.array([common if each.threshold is None else each.threshold for each in policy.categories])
    scores = measured.patch_scores
    flagged = scores <= tau[:, None]
    flagged[found, scores[found].argmin(axis=1)] = True
    margins = scores - np.where(np.isneginf(tau), 0, tau)[:, None]
    names = [each.name for each in policy.categories]
    return find_regions(flagged, margins, levels, measured.boxes, measured.size, names, measured.distance)
