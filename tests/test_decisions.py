"""A detector that is asked for decisions only decides as the full one does, and proves what it did not solve."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import guardcore
from bench.detection_data import generator, styles
from guardcore.cli import app
from guardcore.detector.conformal import Calibration
from guardcore.detector.detector import Detector
from guardcore.detector.judging import find_categories, flag_thresholds
from guardcore.detector.verdict import Verdict
from guardcore.policy.policy import Policy


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Scenes, every third with an unsafe object, and one that is wider than a tile."""
    source = generator(styles()[0], seed=7)
    scenes = [Image.fromarray(source.scene(i, "benign" if i % 3 else "unsafe").image) for i in range(36)]
    return [*scenes, scenes[0].resize((300, 100))]


def detector(policy: Policy | None = None, **options: object) -> Detector:
    encoder = guardcore.load_encoder("builtin")
    options = {"scoring": "normalized", "batch_size": 8} | options
    return Detector(encoder, Policy.builtin("demo") if policy is None else policy, **options)


@pytest.fixture(scope="module")
def full() -> Detector:
    return detector()


def limits(screener: Detector) -> dict[str, float]:
    thresholds = flag_thresholds(screener.policy, screener.calibration)
    return dict(zip(screener.bank.categories, thresholds.tolist(), strict=True))


def compare(screener: Detector, pictures: list[Image.Image], expected: list[Verdict]) -> tuple[int, int]:
    """Check every promise; returns how many pictures were cleared and how many flagged."""
    verdicts = screener.screen(pictures)
    for verdict, whole in zip(verdicts, expected, strict=True):
        decision = (verdict.flagged, verdict.action, verdict.found, verdict.error, verdict.size, verdict.fingerprint)
        assert decision == (whole.flagged, whole.action, whole.found, whole.error, whole.size, whole.fingerprint)
        if not verdict.certificates:
            assert verdict.to_dict(patches=True) == whole.to_dict(patches=True)
            continue
        assert not whole.flagged
        for name, limit in limits(screener).items():
            assert limit < verdict.certificates[name] <= whole.statistics[name]
    return sum(bool(verdict.certificates) for verdict in verdicts), sum(verdict.flagged for verdict in verdicts)


def test_decides_as_the_full_detector_does(full, pictures):
    cleared, flagged = compare(detector(decisions_only=True), pictures, full.screen(pictures))
    assert cleared >= 15
    assert flagged >= 6


def test_decides_alike_in_a_stream(full, pictures):
    decider = detector(decisions_only=True)
    streamed = list(decider.screen_batches(iter(pictures), batch_size=5))
    assert [verdict.to_dict() for verdict in streamed] == [verdict.to_dict() for verdict in decider.screen(pictures)]


@pytest.mark.parametrize("setting", ["relaxation=1", "weights=inverse-entropy", "relative_epsilon=0.05"])
def test_decides_alike_with_other_settings_and_own_thresholds(setting, pictures):
    """Thresholds exactly at the statistics of pictures: a tie is a finding, and must not be cleared."""
    scoring = f"normalized:{setting}"
    demo = Policy.builtin("demo")
    statistics = [verdict.statistics for verdict in detector(scoring=scoring).screen(pictures[:12])]
    ties = {name: sorted(each[name] for each in statistics)[2 + i % 5] for i, name in enumerate(statistics[0])}
    categories = [each.model_copy(update={"threshold": ties[each.name]}) for each in demo.categories]
    policy = demo.model_copy(update={"categories": tuple(categories)})
    expected = detector(policy, scoring=scoring).screen(pictures)
    cleared, flagged = compare(detector(policy, scoring=scoring, decisions_only=True), pictures, expected)
    assert min(cleared, flagged) >= 1


def test_certificates_can_be_verified_in_float64(pictures):
    from guardcore.patches import extract_patches

    decider = detector(decisions_only=True)
    unit = torch.nn.functional.normalize
    with torch.inference_mode():
        sets = extract_patches(decider.encoder, pictures, decider.patches)
    for verdict, item in zip(decider.screen(pictures), sets, strict=True):
        rows, prototypes = unit(item.embeddings.double(), dim=-1), unit(decider.bank.prototypes.double(), dim=-1)
        cost = (1 - rows @ prototypes.transpose(1, 2)).amin(1)  # [C, M]
        lowest = cost.masked_fill(decider.bank.weights == 0, torch.inf).amin(1).tolist()
        for certificate, truth in zip(verdict.certificates.values(), lowest, strict=False):
            assert certificate <= truth


def test_a_picture_that_cannot_be_judged_is_never_cleared(full, pictures):
    decider = detector(decisions_only=True)
    sets = decider._embed([pictures[1], pictures[2]])
    embeddings = sets[0].embeddings.clone()
    embeddings[3, 5] = torch.nan
    broken, sound = decider._judge(decider._look([dataclasses.replace(sets[0], embeddings=embeddings), sets[1]]))
    assert broken.error is not None
    assert broken.error.kind == "non-finite-embedding"
    assert not broken.certificates
    assert sound.to_dict() == decider.screen(pictures[2]).to_dict()
    unreadable = decider.screen([OSError("gone"), pictures[2]])[0]
    assert (unreadable.error.kind, unreadable.action) == ("unreadable", decider.policy.on_error)


def test_without_calibration_nothing_is_judged(pictures):
    """With settings that no calibration is for."""
    whole = detector(scoring="normalized:relative_epsilon=0.4").screen(pictures[1])
    decided = detector(scoring="normalized:relative_epsilon=0.4", decisions_only=True).screen(pictures[1])
    assert decided.error == whole.error
    assert (decided.action, decided.flagged) == (whole.action, False)
    assert decided.error.kind == "uncalibrated"


def test_a_cleared_verdict_prints_draws_and_becomes_json(pictures):
    verdicts = detector(decisions_only=True).screen(pictures)
    verdict, picture = next(pair for pair in zip(verdicts, pictures, strict=True) if pair[0].certificates)
    assert str(verdict) == "allow: nothing found"
    assert verdict.category is None
    assert not verdict.mask.any()
    data = json.loads(verdict.to_json(patches=True))
    assert set(data["scores"].values()) == {None}
    assert data["certificates"] == verdict.certificates
    assert (data["statistics"], data["distances"], data["p_value"], data["patch_scores"]) == ({}, {}, None, None)
    assert min(verdict.overlay(picture).size) >= 480
    assert np.array_equal(np.asarray(verdict.redact(picture)), np.asarray(picture))


@pytest.mark.parametrize("scoring", ["softmax", "joint", "paper", "max-patch-cosine", "normalized:pool=2"])
def test_rules_without_a_bound_are_refused(scoring):
    with pytest.raises(ValueError, match="decisions_only: expected the scoring rule 'normalized' with pool 1"):
        detector(scoring=scoring, decisions_only=True)


def test_calibration_still_sees_scores(pictures):
    measured = list(detector(decisions_only=True).measure_batches(pictures[:3]))
    assert all(found.patch_scores.shape[0] == 6 for found in measured)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_flag_thresholds_are_the_last_statistics_that_are_found(data):
    """At the threshold a category is found, one float32 above it is not; for every way that a category is decided."""
    seed = data.draw(st.integers(0, 2**32))
    target = data.draw(st.sampled_from([0.01, 0.05, 0.34, 0.5, 0.99]))
    rng = np.random.default_rng(seed)
    demo = Policy.builtin("demo")
    own = {0: {"threshold": float(rng.random())}, 1: {"target_fpr": target}, 2: {"target_fpr": 0.2}}
    policy = demo.model_copy(
        update={"categories": tuple(each.model_copy(update=own.get(c, {})) for c, each in enumerate(demo.categories))}
    )
    names = tuple(each.name for each in policy.categories)
    # few distinct values: ties among the benign pictures
    benign = rng.integers(0, 30, (120, len(names))).astype(np.float32) / np.float32(7)
    calibration = Calibration(names, benign.astype(np.float64), np.empty(0), -np.inf, target)

    def found(statistic: np.ndarray) -> np.ndarray:
        wide = statistic.astype(np.float64)
        return find_categories(wide, policy, calibration, calibration.family_p_values(wide, family))

    family = np.array([each.threshold is None and each.target_fpr is None for each in policy.categories])
    limit = flag_thresholds(policy, calibration)
    assert limit.dtype == np.float32
    finite = np.isfinite(limit)
    at = np.where(finite, limit, np.float32(0))
    above = np.nextafter(at, np.float32(np.inf))
    assert found(at)[finite].all()
    assert not found(above)[finite].any()
    assert not found(np.full_like(at, -1e30))[np.isneginf(limit)].any()


def test_on_the_command_line(tmp_path, pictures):
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for path, picture in zip(paths, pictures, strict=False):
        picture.save(path)
    refused = CliRunner().invoke(app, ["screen", *paths, "--decisions-only"])
    assert refused.exit_code == 2
    assert "decisions_only: expected the scoring rule 'normalized'" in refused.stderr
    options = ["--scoring", "normalized", "-f", "json", "-q"]
    whole, decided = (
        [json.loads(line) for line in CliRunner().invoke(app, ["screen", *paths, *options, *more]).stdout.splitlines()]
        for more in ([], ["--decisions-only"])
    )
    assert [row["status"] for row in decided] == [row["status"] for row in whole]
    assert any(row["certificates"] for row in decided)
    assert all(row["certificates"] == {} for row in whole)


def test_default_verdicts_have_no_certificates(full, pictures):
    verdict = full.screen(pictures[1])
    assert verdict.certificates == {}
    assert {field.name for field in dataclasses.fields(verdict)} >= {"certificates", "statistics"}
