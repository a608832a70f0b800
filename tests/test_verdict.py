"""From scores to verdicts, on hand-made numbers: which categories are found, which action follows, where."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from guardcore.detector.conformal import Calibration
from guardcore.detector.judging import find_categories, judge, judge_error, strictest
from guardcore.detector.patch_levels import PATCH_LEVELS
from guardcore.detector.verdict import ScreenError
from guardcore.policy.policy import Policy

NAMES = ("knives", "fire", "dice")
BOXES = np.array([[0, 0, 5, 10], [5, 0, 10, 10]])


def policy_of(*extra: dict[str, object], on_error: str = "block") -> Policy:
    actions = ("block", "review", "allow")
    categories = [
        {"name": name, "nouns": [name], "action": action, **more}
        for name, action, more in zip(NAMES, actions, extra or ({}, {}, {}), strict=True)
    ]
    return Policy.from_data({"name": "test", "on_error": on_error, "categories": categories})


def calibration() -> Calibration:
    """99 benign pictures with statistics 0.01 ... 0.99 in every category; lowest patch scores uniform in [0, 1]."""
    columns = np.stack([np.arange(1, 100) / 100] * 3, axis=1)
    return Calibration(NAMES, columns, PATCH_LEVELS, 0.005, 0.05)


def measured(*statistic: float, patches: list[list[float]] | None = None) -> SimpleNamespace:
    scores = np.array(patches or [[t, 1.0] for t in statistic], dtype=np.float32)
    return SimpleNamespace(
        statistic=np.array(statistic), distance=np.array(statistic) + 1, patch_scores=scores, boxes=BOXES, size=(10, 10)
    )


def test_the_strictest_action_of_the_found_categories_counts() -> None:
    policy = policy_of()
    for found, action in (("100", "block"), ("010", "review"), ("011", "review"), ("001", "allow"), ("000", "allow")):
        assert strictest(policy, np.array([int(bit) for bit in found], bool)) == action


def test_categories_are_found_by_the_family_and_ordered_by_nearness() -> None:
    verdict = judge(measured(0.02, -1.0, 0.9), policy_of(), calibration(), "f")
    assert verdict.found == ("fire", "knives")
    assert (verdict.flagged, verdict.action, verdict.category) == (True, "block", "fire")
    assert verdict.scores == pytest.approx({"knives": 0.97, "fire": 0.99, "dice": 0.09})
    assert verdict.p_value == pytest.approx(0.01)
    assert verdict.distances == pytest.approx({"knives": 1.02, "fire": 0.0, "dice": 1.9})


def test_thresholds_and_own_rates_come_before_the_family() -> None:
    policy = policy_of({"threshold": 0.5}, {"target_fpr": 0.2}, {})
    statistic = np.array([0.45, 0.15, 0.5])
    known = calibration()
    adjusted = known.family_p_values(statistic, np.array([False, False, True]))
    assert find_categories(statistic, policy, known, adjusted).tolist() == [True, True, False]
    assert find_categories(statistic, policy, None, None).tolist() == [True, False, False]


def test_a_found_category_always_has_a_region_to_redact() -> None:
    # The picture is rare for its statistic, its patches are not: tau alone would leave nothing to cover.
    verdict = judge(measured(-1.0, 0.9, 0.9, patches=[[0.4, 0.5], [1, 1], [1, 1]]), policy_of(), calibration(), "f")
    assert verdict.flagged
    assert [(region.category, region.box) for region in verdict.regions] == [("knives", (0, 0, 5, 10))]
    assert verdict.mask.sum() == 50


def test_regions_may_stand_in_a_picture_that_is_not_flagged() -> None:
    verdict = judge(measured(0.5, 0.5, 0.5, patches=[[0.5, 0.001], [1, 1], [1, 1]]), policy_of(), calibration(), "f")
    assert not verdict.flagged
    assert [region.box for region in verdict.regions] == [(5, 0, 10, 10)]


def test_a_verdict_without_figures_is_an_error_with_the_policys_action() -> None:
    verdict = judge_error(ScreenError("unreadable", "torn"), policy_of(on_error="review"), "f")
    assert (verdict.flagged, verdict.action, verdict.category) == (False, "review", None)
    assert str(verdict) == "review: could not be judged (unreadable: torn)"
    assert json.loads(verdict.to_json(patches=True))["error"] == {"kind": "unreadable", "message": "torn"}


def test_json_is_one_line_of_plain_values() -> None:
    verdict = judge(measured(0.0, 0.5, 0.9), policy_of(), calibration(), "f")
    text = verdict.to_json(patches=True)
    assert "\n" not in text
    data = json.loads(text)
    assert data["found"] == ["knives"]
    assert data["regions"][0]["box"] == [0, 0, 5, 10]
    assert data["patch_scores"][0] == [0.0, 1.0]
    assert "patch_scores" not in verdict.to_dict()


def test_rich_shows_no_arrays() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(judge(measured(0.0, 0.5, 0.9), policy_of(), calibration(), "f"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "action='block'" in shown
    assert "patch_scores" not in shown
