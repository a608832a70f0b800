"""The benchmark's metrics against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench import detection_metrics as metrics

sklearn = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("levels", [3, 20, 10**6], ids=["many ties", "some ties", "no ties"])
def test_ranking_metrics_agree_with_scikit_learn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        positive = rng.random(157) < 0.3
        scores = rng.integers(0, levels, 157) / levels + 0.3 * positive
        assert metrics.auroc(scores, positive) == pytest.approx(sklearn.roc_auc_score(positive, scores))
        assert metrics.average_precision(scores, positive) == pytest.approx(
            sklearn.average_precision_score(positive, scores)
        )
        fpr, tpr, _ = sklearn.roc_curve(positive, scores, drop_intermediate=False)
        for recall in (0.5, 0.95, 1.0):
            assert metrics.fpr_at_recall(scores, positive, recall) == pytest.approx(fpr[tpr >= recall - 1e-9].min())


def test_an_object_is_found_at_the_level_that_covers_half_of_it() -> None:
    levels = np.array([[0.5, 0.1, 0.9, 0.2]])
    assert metrics.critical_levels(levels, np.array([[0.2, 0.3, 0.3, 0.2]])) == pytest.approx(0.2)  # .3 + .2 is half
    assert metrics.critical_levels(levels, np.array([[0.2, 0.3, 0.4, 0.1]])) == pytest.approx(0.5)
    assert metrics.critical_levels(levels, np.array([[0.0, 0.0, 1.0, 0.0]])) == pytest.approx(0.9)


def test_false_mask_is_taken_at_the_threshold_that_finds_nine_in_ten() -> None:
    critical = np.arange(1, 11) / 100
    benign = np.array([[0.01, 0.095], [0.5, 0.09]])
    assert metrics.false_mask_at_recall(benign, critical, 0.9) == pytest.approx(0.5)  # 0.09 finds exactly nine
    assert metrics.false_mask_at_recall(benign, critical, 1.0) == pytest.approx(0.75)


def test_patch_iou_pools_scenes() -> None:
    flagged, shown = np.array([[1, 1, 0], [0, 0, 0]], bool), np.array([[0, 1, 1], [1, 0, 0]], bool)
    assert metrics.patch_iou(flagged, shown) == pytest.approx(1 / 4)
    assert metrics.patch_iou(flagged & ~flagged, shown & ~shown) == 1.0


def test_bootstrap_interval_has_the_width_of_the_standard_error() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(2000) < 1000
    scores = rng.normal(size=2000) + positive
    low, high = metrics.interval(lambda picks: metrics.auroc(scores[picks], positive[picks]), positive, 300)
    assert low < metrics.auroc(scores, positive) < high
    # Hanley and McNeil (1982) at AUROC .76 with 1000 + 1000: standard error 0.0106.
    assert (high - low) / 3.92 == pytest.approx(0.0106, rel=0.2)
