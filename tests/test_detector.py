"""The detector end to end with an encoder whose patches are colors, so that every region is known."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from guardcore.detector.conformal import CalibrationError, calibrate
from guardcore.detector.detector import Detector
from guardcore.detector.prefetch import prefetch
from guardcore.detector.scoring import Scoring
from guardcore.detector.verdict import ScreenError
from guardcore.encoders.protocol import ImageEmbedding
from guardcore.patches import PatchMode, extract_patches
from guardcore.policy.policy import Policy
from guardcore.prototypes.bank import FingerprintError

COLORS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255),
    "gray": (128, 128, 128),
}  # fmt: skip
POISON = (1, 2, 3)  # the encoder breaks on this color


class ColorEncoder:
    """A patch's vector is the share of each color among its pixels; a text's is the color that it names."""

    name, fingerprint, image_size, grid, width = "colors", "c" * 64, 32, 4, len(COLORS)

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        tiles = [np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.NEAREST)) for image in images]
        return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float()

    def embed_images(self, pixels: torch.Tensor) -> ImageEmbedding:
        palette = torch.tensor(list(COLORS.values())).float()
        nearest = (pixels[:, None] - palette[:, :, None, None]).abs().sum(2).argmin(1)  # [B, 32, 32]
        shares = torch.nn.functional.one_hot(nearest, self.width).float().view(-1, 4, 8, 4, 8, self.width).mean((2, 4))
        shares[(pixels == torch.tensor(POISON)[:, None, None]).all(1).flatten(1).any(1)] = torch.nan
        return ImageEmbedding(shares.flatten(1, 2), shares.mean((1, 2)))

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [[float(color in text) for color in COLORS] for text in texts]
        return torch.tensor(rows).reshape(-1, self.width)


def policy_of(**changes: object) -> Policy:
    data = {
        "name": "colors",
        "templates": ["{}"],
        "neutral": ["green", "blue", "gray"],
        "target_fpr": 0.05,
        "categories": [
            {"name": "red_things", "nouns": ["red"], "action": "block"},
            {"name": "yellow_things", "nouns": ["yellow"], "safe_lookalikes": ["cyan"], "action": "review"},
        ],
    }
    return Policy.from_data({**data, **changes})


def scene(*squares: tuple[str, int, int, int], size: tuple[int, int] = (32, 32), ground: str = "gray") -> Image.Image:
    """Squares of a color at x, y with a side."""
    image = Image.new("RGB", size, COLORS[ground])
    for color, x, y, side in squares:
        ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=COLORS[color])
    return image


def benign(count: int, seed: int = 0) -> list[Image.Image]:
    """Harmless squares, and specks of unsafe colors up to a tenth of a patch, so that benign scores vary."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        image = scene(*[(str(rng.choice(["green", "blue", "cyan"])), *rng.integers(0, 24, 2).tolist(), 8)])
        for color in ("red", "yellow"):
            for _ in range(int(rng.integers(0, 6))):
                image.putpixel(tuple(rng.integers(0, 8, 2).tolist()), COLORS[color])
        pictures.append(image)
    return pictures


@pytest.fixture(scope="module")
def detector() -> Detector:
    bare = Detector(ColorEncoder(), policy_of(), batch_size=4)
    return bare.with_calibration(calibrate(bare, benign(200)))


@pytest.mark.parametrize("rule", ["normalized", "joint", "softmax", "mean-prototype-cosine", "max-patch-cosine"])
def test_a_red_square_is_found_where_it_is(rule: str) -> None:
    bare = Detector(ColorEncoder(), policy_of(), scoring=Scoring(rule=rule))
    detector = bare.with_calibration(calibrate(bare, benign(200)))
    verdict = detector.screen(scene(("red", 8, 16, 16), ("green", 0, 0, 8)))
    assert verdict.flagged
    assert verdict.found == ("red_things",)
    assert verdict.category == "red_things"
    assert verdict.action == "block"
    assert verdict.scores["red_things"] == pytest.approx(1 - 1 / 201)
    assert verdict.p_value == pytest.approx(1 / 201)
    (region,) = verdict.regions
    assert (region.category, region.box, region.area) == ("red_things", (8, 16, 24, 32), pytest.approx(0.25))
    assert verdict.mask.sum() == 256
    assert verdict.error is None


def test_two_objects_are_two_regions_with_their_own_categories(detector: Detector) -> None:
    verdict = detector.screen(scene(("red", 0, 0, 8), ("yellow", 24, 24, 8)))
    assert set(verdict.found) == {"red_things", "yellow_things"}
    assert {(region.category, region.box) for region in verdict.regions} == {
        ("red_things", (0, 0, 8, 8)),
        ("yellow_things", (24, 24, 32, 32)),
    }
    assert verdict.action == "block"  # the stricter of block and review
    assert detector.screen(scene(("yellow", 8, 8, 8))).action == "review"


def test_benign_pictures_pass(detector: Detector) -> None:
    verdicts = detector.screen(benign(300, seed=1))
    # Three standard errors of 200 calibration and 300 new pictures.
    assert np.mean([verdict.flagged for verdict in verdicts]) <= 0.05 + 3 * (0.05 * 0.95 * (1 / 200 + 1 / 300)) ** 0.5
    assert np.mean([verdict.mask.mean() for verdict in verdicts]) <= 0.03
    clean = detector.screen(scene(("green", 8, 8, 16)))
    assert (clean.flagged, clean.action, clean.found, clean.regions) == (False, "allow", (), ())


def test_a_wide_picture_is_screened_to_its_edge(detector: Detector) -> None:
    verdict = detector.screen(scene(("red", 118, 10, 10), size=(128, 32)))
    assert verdict.flagged
    assert verdict.size == (128, 32)
    assert verdict.mask[10:20, 118:].mean() >= 0.5
    assert verdict.mask[8:16, 120:].all()
    assert verdict.mask.mean() < 0.3


def test_alone_in_a_batch_and_in_a_stream_is_the_same(detector: Detector) -> None:
    pictures = [scene(("red", 8, 8, 8)), scene(size=(90, 30)), *benign(9), scene(("yellow", 0, 0, 16))]
    alone = [detector.screen(picture).to_json(patches=True) for picture in pictures]
    assert [verdict.to_json(patches=True) for verdict in detector.screen(pictures)] == alone
    for size in (1, 5, 64):
        assert [verdict.to_json(patches=True) for verdict in detector.screen_batches(iter(pictures), size)] == alone


def test_a_picture_that_cannot_be_judged_spoils_no_other(detector: Detector, tmp_path: Path) -> None:
    scene().save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    torn = Image.open(tmp_path / "torn.png")  # lazily: the damage shows in load()
    red, empty, poisoned = scene(("red", 8, 8, 8)), Image.new("RGB", (0, 5)), scene(("red", 0, 0, 8))
    poisoned.putpixel((20, 20), POISON)
    items = [red, torn, poisoned, None, empty, OSError("gone"), red]
    for verdicts in (detector.screen(items), list(detector.screen_batches(items, 3))):
        kinds = [verdict.error and verdict.error.kind for verdict in verdicts]
        assert kinds == [None, "unreadable", "non-finite-embedding", "unreadable", "unreadable", "unreadable", None]
        assert verdicts[0].to_json() == verdicts[-1].to_json() == detector.screen(red).to_json()
        for verdict in verdicts[1:-1]:
            assert (verdict.action, verdict.flagged, verdict.category, verdict.scores) == ("block", False, None, {})
            assert "could not be judged" in str(verdict)
            json.loads(verdict.to_json())
        assert "gone" in verdicts[5].error.message


def test_patches_that_were_embedded_elsewhere_are_judged_alike(detector: Detector) -> None:
    pictures = [scene(("red", 8, 8, 8)), *benign(5), scene(size=(90, 30))]  # more than a batch of 4
    sets = [*extract_patches(ColorEncoder(), pictures, detector.patches), ScreenError("unreadable", "gone")]
    expected = [verdict.to_json(patches=True) for verdict in detector.screen([*pictures, OSError("gone")])]
    found = detector.screen_patches(sets)
    assert [verdict.to_json(patches=True) for verdict in found[:-1]] == expected[:-1]
    assert found[-1].error == sets[-1]
    assert found[-1].action == "block"
    narrow = dataclasses.replace(sets[0], embeddings=sets[0].embeddings[:, 1:])
    with pytest.raises(ValueError, match=r"sets\[1\]: expected embeddings \[N, 6\]; got \[16, 5\]"):
        detector.screen_patches([sets[0], narrow])
    assert detector.screen_patches([]) == []


def test_on_error_is_the_policys() -> None:
    lenient = Detector(ColorEncoder(), policy_of(on_error="review"))
    assert lenient.screen([OSError("gone")])[0].action == "review"


def test_what_is_no_picture_is_a_type_error(detector: Detector) -> None:
    for value in ("picture.png", 3, None):
        with pytest.raises(TypeError, match="images: expected a PIL image or a sequence"):
            detector.screen(value)
    assert detector.screen([]) == []
    assert list(detector.screen_batches([])) == []


def test_without_calibration_nothing_is_cleared() -> None:
    verdict = Detector(ColorEncoder(), policy_of()).screen(scene())
    assert verdict.error == ScreenError(
        "uncalibrated",
        "no calibration and no threshold for red_things, yellow_things; run `guardcore calibrate` on benign pictures",
    )
    assert (verdict.action, verdict.flagged, verdict.p_value) == ("block", False, None)
    assert verdict.scores == {"red_things": None, "yellow_things": None}
    assert verdict.distances.keys() == verdict.statistics.keys() == verdict.scores.keys()


def with_bounds(red: dict[str, float], yellow: dict[str, float]) -> Policy:
    return policy_of(
        categories=[
            {"name": "red_things", "nouns": ["red"], **red},
            {"name": "yellow_things", "nouns": ["yellow"], "safe_lookalikes": ["cyan"], **yellow},
        ]
    )


def test_thresholds_judge_without_calibration() -> None:
    policy = with_bounds({"threshold": 0.4}, {"threshold": 0.4})
    detector = Detector(ColorEncoder(), policy, scoring=Scoring(rule="max-patch-cosine"))
    verdict = detector.screen(scene(("red", 8, 8, 8)))
    assert (verdict.found, verdict.error) == (("red_things",), None)
    assert [(r.category, r.box, r.score) for r in verdict.regions] == [("red_things", (8, 8, 16, 16), None)]
    clean = detector.screen(scene())
    assert (clean.error, clean.action) == (None, "allow")


def test_one_threshold_decides_only_what_it_can() -> None:
    detector = Detector(ColorEncoder(), with_bounds({"threshold": 0.4}, {}), scoring="max-patch-cosine")
    assert detector.screen(scene(("red", 8, 8, 8))).found == ("red_things",)
    undecided = detector.screen(scene()).error
    assert undecided is not None
    assert "yellow_things" in undecided.message
    assert "red_things" not in undecided.message


def test_a_threshold_overrides_calibration(detector: Detector) -> None:
    never = Detector(ColorEncoder(), with_bounds({"threshold": 0.0}, {}), calibration=detector.calibration)
    verdict = never.screen(scene(("red", 8, 8, 4)))
    assert not verdict.flagged
    assert verdict.regions == ()
    assert verdict.scores["red_things"] > 0.99  # the score tells, the policy decides


def test_a_category_with_its_own_rate_uses_its_own_p_value(detector: Detector) -> None:
    strict = Detector(ColorEncoder(), with_bounds({"target_fpr": 0.001}, {}), calibration=detector.calibration)
    red = strict.screen(scene(("red", 8, 8, 8)))
    assert not red.flagged  # 200 pictures can't reach 0.001
    assert strict.screen(scene(("yellow", 8, 8, 8))).found == ("yellow_things",)


def test_calibration_of_another_detector_is_refused(detector: Detector, tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    detector.calibration.save(file)
    assert Detector(ColorEncoder(), policy_of(), calibration=file).screen(scene()).p_value is not None
    # What only decides, and not what is measured, may change.
    Detector(ColorEncoder(), policy_of(on_error="allow", target_fpr=0.5), calibration=file, batch_size=1)
    for name, changes in {
        "patches": {"patches": PatchMode(kind="grid")},
        "scoring": {"relative_epsilon": 0.7},
        "policy texts": {"policy": policy_of(neutral=["green"])},
    }.items():
        arguments = {"policy": policy_of(), **changes}
        with pytest.raises(FingerprintError, match=f"{name}: calibrated for"):
            Detector(ColorEncoder(), arguments.pop("policy"), calibration=file, **arguments)


def test_calibration_needs_enough_pictures() -> None:
    with pytest.raises(CalibrationError, match=r"takes at least 19 .* got 18"):
        calibrate(Detector(ColorEncoder(), policy_of()), benign(18))


def test_calibration_is_exact_about_the_statistics(detector: Detector) -> None:
    expected = [list(verdict.statistics.values()) for verdict in detector.screen(benign(200)[:20])]
    np.testing.assert_allclose(detector.calibration.statistics[:20], expected, rtol=0, atol=1e-6)


def test_views_give_scores_but_no_regions_and_redact_everything() -> None:
    bare = Detector(ColorEncoder(), policy_of(), patches=PatchMode(kind="views", views=4), scoring="max-patch-cosine")
    detector = bare.with_calibration(calibrate(bare, benign(60)))
    red = scene(ground="red")
    verdict = detector.screen(red)
    assert verdict.flagged
    assert verdict.regions == ()
    assert verdict.boxes is None
    assert verdict.mask.all()
    assert verdict.redact(red).getextrema() == ((0, 0), (0, 0), (0, 0))


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="batch_size: expected at least 1; got 0"):
        Detector(ColorEncoder(), policy_of(), batch_size=0)
    with pytest.raises(ValueError, match="relative_epsilon"):
        Detector(ColorEncoder(), policy_of(), relative_epsilon=-1)
    bare = {"name": "red_things", "nouns": ["red"]}
    with pytest.raises(ValueError, match="neutral anchors"):
        Detector(ColorEncoder(), policy_of(neutral=[], categories=[bare]), scoring="joint")
    with pytest.raises(ValueError, match="batch_size"):
        next(Detector(ColorEncoder(), policy_of()).screen_batches([scene()], 0))


def test_a_source_that_fails_does_so_after_the_verdicts_before_it(detector: Detector) -> None:
    def source():
        yield from [scene()] * 5
        raise RuntimeError("the disk is gone")

    stream = detector.screen_batches(source(), 2)
    assert [next(stream).action for _ in range(5)] == ["allow"] * 5
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(stream)


def test_the_stream_reads_ahead_a_bounded_number_of_batches(detector: Detector) -> None:
    read = []

    def source():
        for i in range(1000):
            read.append(i)
            yield scene()

    stream = detector.screen_batches(source(), 2)
    next(stream)
    time.sleep(0.3)  # long enough to run away, if it did
    assert len(read) <= 2 * 8
    stream.close()
    assert len(read) <= 2 * 9


def test_closing_the_stream_stops_its_threads(detector: Detector) -> None:
    stream = detector.screen_batches((scene() for _ in range(10**6)), 2)
    next(stream)
    stream.close()
    names = [thread.name for thread in threading.enumerate()]
    assert "guardcore-prefetch" not in names


def test_no_gradient_is_recorded(detector: Detector) -> None:
    verdict = next(detector.screen_batches([scene()]))
    assert isinstance(verdict.patch_scores, np.ndarray)
    assert not detector.bank.prototypes.requires_grad


def test_verdict_prints_itself(detector: Detector) -> None:
    verdict = detector.screen(scene(("red", 8, 16, 16)))
    assert str(verdict).splitlines() == [
        "block: red_things 0.995",
        "  red_things 1.000 at (8, 16)-(24, 32), 25.0% of the picture",
    ]
    data = json.loads(verdict.to_json(patches=True))
    assert data["regions"] == [
        {"category": "red_things", "score": verdict.regions[0].score, "box": [8, 16, 24, 32], "area": 0.25}
    ]
    assert np.array(data["patch_scores"]).shape == (2, 16)
    assert np.array(data["boxes"]).shape == (16, 4)
    assert str(detector.screen(scene())).startswith("allow: nothing found, nearest ")


def test_verdict_fingerprint_covers_policy_and_calibration(detector: Detector) -> None:
    same = detector.with_calibration(detector.calibration)
    other = Detector(ColorEncoder(), policy_of(on_error="allow"), calibration=detector.calibration)
    changed = dataclasses.replace(detector.calibration, patch_threshold=0.0)
    assert same.fingerprint == detector.fingerprint == detector.screen(scene()).fingerprint
    assert len({detector.fingerprint, other.fingerprint, detector.with_calibration(changed).fingerprint}) == 3


def test_prefetch_keeps_order_and_closes_its_source() -> None:
    closed = threading.Event()

    def source():
        try:
            yield from range(100)
        finally:
            closed.set()

    assert list(prefetch(source(), 3)) == list(range(100))
    assert closed.is_set()
    closed.clear()
    ahead = prefetch(source(), 3)
    assert next(ahead) == 0
    ahead.close()
    assert closed.is_set()
