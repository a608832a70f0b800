"""Conformal calibration: the guarantee by simulation, ranks by their definition, files, fingerprints."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from guardcore.detector.conformal import Calibration, CalibrationError, calibrate, check_size
from guardcore.detector.patch_levels import PATCH_LEVELS, level_at, mask_threshold, quantiles_of
from guardcore.detector.regions import Lattice
from guardcore.detector.verdict import ScreenError
from guardcore.prototypes.bank import FingerprintError

NO_PATCHES = np.empty(0)


def calibration_of(statistics: np.ndarray, target: float = 0.05) -> Calibration:
    names = tuple(f"c{i}" for i in range(statistics.shape[1]))
    return Calibration(names, statistics, NO_PATCHES, -np.inf, target, {"encoder": "e"})


def test_p_value_counts_ties_and_the_picture_itself() -> None:
    calibration = calibration_of(np.array([[0.1], [0.2], [0.2], [0.4]] * 5))
    assert calibration.p_values(np.array([0.05])) == pytest.approx(1 / 21)
    assert calibration.p_values(np.array([0.2])) == pytest.approx(16 / 21)
    assert calibration.p_values(np.array([9.0])) == pytest.approx(1.0)


def test_family_p_value_is_the_rank_among_worst_categories() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, categories = int(rng.integers(19, 30)), int(rng.integers(1, 6))
        benign = rng.integers(0, 8, (n, categories)) / 8.0  # coarse values: many ties
        new = rng.integers(-1, 8, categories) / 8.0
        adjusted = calibration_of(benign).family_p_values(new)
        for category in range(categories):
            as_bad = sum(min(row) <= new[category] for row in benign.tolist())
            assert adjusted[category] == pytest.approx((1 + as_bad) / (n + 1))
        assert (adjusted >= calibration_of(benign).p_values(new) - 1e-12).all()


@pytest.mark.parametrize("correlation", [0.0, 0.9], ids=["independent", "correlated categories"])
def test_false_positive_rate_is_held_in_finite_samples(correlation: float) -> None:
    # 59 pictures at 0.05: (n + 1) * alpha = 3 is whole, so without ties the rate is exactly 3 / 60 = 0.05.
    # The same 59 can't flag anything at Bonferroni's 0.05 / 5.
    rng, trials, n, categories = np.random.default_rng(1), 4000, 59, 5
    flagged = 0
    for _ in range(trials):
        common, own = rng.normal(size=(n + 1, 1)), rng.normal(size=(n + 1, categories))
        t = correlation * common + own * np.array([0.1, 1, 3, 1, 1]) + np.array([5, 0, 0, -9, 1])
        flagged += calibration_of(t[:n]).family_p_values(t[n]).min() <= 0.05
    error = (0.05 * 0.95 / trials) ** 0.5
    assert abs(flagged / trials - 0.05) <= 3.5 * error


def test_ties_only_lower_the_rate() -> None:
    rng, trials = np.random.default_rng(2), 2000
    t = rng.integers(0, 4, (trials, 40, 3)).astype(float)
    flagged = sum(calibration_of(rows[:-1]).family_p_values(rows[-1]).min() <= 0.05 for rows in t)
    assert flagged / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_family_p_value_falls_with_the_statistic_and_can_reach_the_lowest_rank() -> None:
    rng = np.random.default_rng(3)
    calibration = calibration_of(rng.normal(size=(50, 6)))
    new = rng.normal(size=6)
    for category in range(6):
        path = [np.where(np.arange(6) == category, value, new) for value in np.linspace(3, -30, 60)]
        p = [calibration.family_p_values(t).min() for t in path]
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(p))
        assert p[-1] == pytest.approx(1 / 51)  # Bonferroni's would stop at 6 / 51


def test_categories_outside_the_family_neither_pay_nor_count() -> None:
    rng = np.random.default_rng(4)
    benign, new = rng.normal(size=(40, 3)), np.array([0.0, -9.0, 0.3])
    family = np.array([True, False, True])
    adjusted = calibration_of(benign).family_p_values(new, family)
    alone = calibration_of(benign[:, family]).family_p_values(new[family])
    np.testing.assert_allclose(adjusted, [alone[0], 1.0, alone[1]])
    assert calibration_of(benign).family_p_values(new, np.zeros(3, bool)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("count", "rate", "enough"), [(99, 0.01, True), (98, 0.01, False), (19, 0.05, True), (18, 0.05, False)]
)
def test_too_few_pictures_for_a_rate_is_a_named_error(count: int, rate: float, enough: bool) -> None:
    if enough:
        check_size(count, rate)
        return
    with pytest.raises(CalibrationError, match=f"takes at least {count + 1} benign pictures .* got {count}"):
        check_size(count, rate)


def test_levels_are_the_share_of_benign_patches() -> None:
    scores = np.random.default_rng(5).random((20, 10_000))
    quantiles = quantiles_of(list(scores))
    for value in (0.003, 0.02, 0.4):
        assert level_at(quantiles, np.array([value])) == pytest.approx((scores <= value).mean(), rel=0.05)
    assert level_at(quantiles, np.array([-1.0, 9.0])).tolist() == pytest.approx([PATCH_LEVELS[0], 1.0])


def test_mask_threshold_holds_the_pixel_rate_and_is_the_largest_that_does() -> None:
    rng = np.random.default_rng(6)
    boxes = np.array([[x, y, x + 12, y + 12] for y in range(0, 40, 8) for x in range(0, 40, 8)])  # patches overlap
    lattice = Lattice.of(boxes, (44, 44))
    scores = [rng.integers(0, 200, 25) / 200 for _ in range(60)]  # with ties
    chosen = mask_threshold(scores, [lattice] * 60, 0.1)

    def rate(threshold: float) -> float:
        return (sum(lattice.area[lattice.covered(each <= threshold)].sum() for each in scores) + 1) / 61

    assert rate(chosen) <= 0.1
    assert rate(chosen + 1 / 200) > 0.1


def test_masked_share_of_a_new_picture_is_held_on_average() -> None:
    rng, boxes = np.random.default_rng(8), np.array([[0, 0, 4, 8], [4, 0, 8, 8]])
    lattice, shares = Lattice.of(boxes, (8, 8)), []
    for _ in range(1500):
        scores = rng.normal(size=(31, 2)) + rng.normal(size=(31, 1))
        threshold = mask_threshold(list(scores[:-1]), [lattice] * 30, 0.1)
        shares.append((scores[-1] <= threshold).mean())
    assert np.mean(shares) <= 0.1 + 3 * np.std(shares) / 1500**0.5


def test_mask_threshold_flags_nothing_where_even_one_patch_is_too_much() -> None:
    lattice = Lattice.of(np.array([[0, 0, 4, 4]]), (4, 4))
    assert mask_threshold([np.full(1, 0.5)] * 3, [lattice] * 3, 0.02) == -np.inf


class FakeDetector:
    """Hands out given statistics; one picture is a number, an exception is an error."""

    policy = SimpleNamespace(target_fpr=0.1)
    bank = SimpleNamespace(categories=("a", "b"), cost_spread=0.25)
    parts = {"encoder": "fake", "patches": "tokens"}  # noqa: RUF012 - never changed

    def measure_batches(self, images):
        boxes = np.array([[0, 0, 4, 8], [4, 0, 8, 8]])
        for value in images:
            if isinstance(value, Exception):
                yield ScreenError("unreadable", str(value))
                continue
            statistic = np.array([value, 1 - value])
            yield SimpleNamespace(
                statistic=statistic, patch_scores=np.stack([statistic, statistic + 1], 1), boxes=boxes, size=(8, 8)
            )


def test_calibrate_collects_what_the_detector_measures() -> None:
    values = np.linspace(0, 1, 40)
    calibration = calibrate(FakeDetector(), values, mask_rate=0.2)
    np.testing.assert_allclose(calibration.statistics, np.stack([values, 1 - values], 1))
    assert (calibration.count, calibration.target_fpr, calibration.cost_spread) == (40, 0.1, 0.25)
    assert calibration.parts == FakeDetector.parts
    assert calibration.has_patches
    assert np.isfinite(calibration.patch_threshold)


def test_calibrate_tells_of_pictures_that_do_not_count() -> None:
    with pytest.warns(UserWarning, match="1 of 21 pictures could not be judged and don't count: unreadable: torn"):
        assert calibrate(FakeDetector(), [*np.linspace(0, 1, 20), OSError("torn")]).count == 20
    with pytest.warns(UserWarning, match="1 of 9"), pytest.raises(CalibrationError, match=r"at least 9 .* got 8"):
        calibrate(FakeDetector(), [*np.linspace(0, 1, 8), OSError("torn")])
    with pytest.raises(CalibrationError, match="mask_rate: expected a rate between 0 and 1; got 2"):
        calibrate(FakeDetector(), [], mask_rate=2)


def test_file_round_trip_is_exact_for_fp32(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    statistics = rng.random((30, 2)).astype(np.float32).astype(np.float64)
    quantiles = np.sort(rng.random(len(PATCH_LEVELS)).astype(np.float32).astype(np.float64))
    saved = Calibration(
        ("a", "b"), statistics, quantiles, float(np.float32(0.01)), 0.05, {"encoder": "e 12", "patches": "tokens"}, 0.3
    )
    saved.save(tmp_path / "c.json")
    loaded = Calibration.load(tmp_path / "c.json")
    np.testing.assert_array_equal(loaded.statistics, statistics)
    np.testing.assert_allclose(loaded.patch_quantiles, quantiles, rtol=1e-8)
    assert loaded.fingerprint == saved.fingerprint
    assert (loaded.parts, loaded.cost_spread, loaded.patch_threshold) == (saved.parts, 0.3, saved.patch_threshold)
    changed = dataclasses.replace(saved, target_fpr=0.06)
    assert changed.fingerprint != saved.fingerprint


def test_mismatch_names_every_part_that_differs() -> None:
    calibration = dataclasses.replace(
        calibration_of(np.zeros((20, 1))), parts={"encoder": "clip 1", "patches": "tokens", "scoring": "joint"}
    )
    calibration.check({"encoder": "a-copy-of-clip 1", "patches": "tokens", "scoring": "joint"})  # a label may change
    with pytest.raises(FingerprintError) as caught:
        calibration.check({"encoder": "clip 2", "patches": "tokens", "scoring": "paper"})
    message = str(caught.value)
    assert "encoder: calibrated for clip 1, detector has clip 2" in message
    assert "scoring: calibrated for joint, detector has paper" in message
    assert "patches" not in message


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "not json", '{"format": 99}', "null"],
    ids=["empty", "list", "no fields", "text", "format", "null"],
)
def test_a_file_that_is_no_calibration_is_a_named_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError, match=r"c\.json"):
        Calibration.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("statistics", [[0.1, float("nan")]] * 30, "statistics"),
        ("statistics", [[0.1]] * 30, "statistics"),
        ("patch_quantiles", [1.0, 2.0], "patch_quantiles"),
        ("patch_threshold", float("nan"), "patch_threshold"),
        ("target_fpr", 0.0001, "at least 9999"),
        ("cost_spread", 0.0, "cost_spread"),
        ("parts", [], "not a calibration file"),
    ],
)
def test_a_damaged_field_is_named(tmp_path: Path, field: str, value: object, match: str) -> None:
    Calibration(("a", "b"), np.zeros((30, 2)), NO_PATCHES, -np.inf, 0.05).save(tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps(data | {field: value}))
    with pytest.raises(CalibrationError, match=match):
        Calibration.load(tmp_path / "c.json")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "none.json")
