"""The pipeline: one outcome an input, in order, whatever breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardcore.images.opening import ImageError, ImageErrorKind
from guardcore.screening.inputs import Input, discover
from guardcore.screening.outcome import Outcome
from guardcore.screening.pipeline import Reading, screen_inputs, sound_pictures


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.error_kind or outcome.status for outcome in outcomes]


@pytest.fixture(params=[True, False], ids=["threaded", "plain"])
def detector(request: pytest.FixtureRequest, red_detector: Callable[..., object]) -> Callable[..., object]:
    return lambda **options: red_detector(threaded=request.param, **options)


def test_order_and_kinds(pictures: Path, detector: Callable[..., object]) -> None:
    inputs = discover(["missing.png", "pictures", "pictures/red.png", "http://x.org/a.png"]).files
    outcomes = list(screen_inputs(inputs, detector(), batch_size=2))
    assert [outcome.path for outcome in outcomes] == [item.path for item in inputs]
    assert statuses(outcomes) == ["not-found", "clean", "not-an-image", "flagged", "flagged", "flagged", "remote-url"]


def test_one_file_under_two_names_is_judged_once(pictures: Path, detector: Callable[..., object]) -> None:
    (pictures / "link.png").symlink_to(pictures / "red.png")
    judge = detector()
    paths = ["pictures/red.png", "pictures/../pictures/red.png", "pictures/link.png", "pictures/blue.jpg"]
    outcomes = list(screen_inputs([Input(path) for path in paths], judge))
    assert judge.seen == 2
    assert [outcome.duplicate_of for outcome in outcomes] == [None, paths[0], paths[0], None]
    assert statuses(outcomes) == ["flagged"] * 3 + ["clean"]
    assert [outcome.path for outcome in outcomes] == paths


def test_a_broken_file_named_twice_fails_twice(pictures: Path, detector: Callable[..., object]) -> None:
    outcomes = list(screen_inputs([Input("pictures/notes.txt")] * 2, detector()))
    assert statuses(outcomes) == ["not-an-image"] * 2


def test_errors_take_the_policys_action(pictures: Path, detector: Callable[..., object]) -> None:
    (outcome,) = screen_inputs([Input("missing.png")], detector(), on_error="review")
    assert (outcome.action, outcome.verdict) == ("review", None)


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_a_failing_detector_leaves_a_line_for_every_input(
    answers: int, pictures: Path, detector: Callable[..., object]
) -> None:
    failing = detector(answers=answers, failure=RuntimeError("out of\nmemory"))
    inputs = [Input(str(pictures / f"{i}.png")) for i in range(12)]
    for item in inputs[::2]:
        Image.new("RGB", (8, 8), "red").save(item.path)
    outcomes = list(screen_inputs(inputs, failing, batch_size=2))
    assert [outcome.path for outcome in outcomes] == [item.path for item in inputs]
    judged = [outcome for outcome in outcomes if outcome.verdict]
    assert len(judged) == answers
    assert {outcome.error_message for outcome in outcomes[::2] if not outcome.verdict} == {
        "the detector stopped: out of memory"
    }
    assert {outcome.error_kind for outcome in outcomes[1::2]} <= {"not-found", "not-screened"}


def test_a_detector_that_stops_early_is_not_trusted(pictures: Path, detector: Callable[..., object]) -> None:
    outcomes = list(screen_inputs(discover(["pictures"]).files, detector(answers=1)))
    assert statuses(outcomes) == ["clean", "not-an-image", "not-screened", "not-screened"]


def test_a_bug_is_not_swallowed(pictures: Path, detector: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="a bug"):
        list(screen_inputs(discover(["pictures"]).files, detector(answers=0, failure=TypeError("a bug"))))


def test_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, red_detector: Callable[..., object]
) -> None:
    # Count pictures that are decoded and not yet judged, while the consumer is slow.
    from guardcore.screening import pipeline as screening

    for i in range(60):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    opened = 0
    lock = threading.Lock()
    really_open = screening.open_image

    def counting(*args: object, **options: object) -> object:
        nonlocal opened
        with lock:
            opened += 1
        return really_open(*args, **options)

    monkeypatch.setattr(screening, "open_image", counting)
    judge = red_detector()
    most = 0
    for _ in screen_inputs(discover([str(tmp_path)]).files, judge, reading=Reading(threads=3), batch_size=4):
        time.sleep(0.002)
        most = max(most, opened - judge.seen)
    assert opened == 60
    assert most <= 4 + 3 + 2 * 2  # a batch, the decoders' look-ahead, the fake's own queue; not the length of the list


def test_pictures_are_let_go_without_a_sink(tmp_path: Path, red_detector: Callable[..., object]) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    (outcome,) = screen_inputs(discover([str(tmp_path)]).files, red_detector())
    assert outcome.verdict is not None
    assert not any(isinstance(value, Image.Image) for value in vars(outcome).values())


class Sink:
    def __init__(self, failure: OSError | None = None) -> None:
        self.failure = failure
        self.sizes: list[tuple[int, int]] = []

    def write(self, path: str, image: Image.Image, _verdict: object) -> dict[str, str]:
        self.sizes.append(image.size)
        if self.failure:
            raise self.failure
        return {"heatmap": f"heat/{path}"}


def test_the_sink_gets_the_pixels_of_judged_pictures(pictures: Path, detector: Callable[..., object]) -> None:
    sink = Sink()
    outcomes = list(screen_inputs(discover(["pictures"]).files, detector(), sink=sink))
    assert sink.sizes == [(48, 48), (64, 48), (32, 32)]
    assert [outcome.heatmap for outcome in outcomes] == [
        "heat/pictures/blue.jpg",
        None,
        "heat/pictures/red.png",
        "heat/pictures/sub/red.png",
    ]


def test_a_picture_that_cannot_be_written_is_a_note(pictures: Path, detector: Callable[..., object]) -> None:
    sink = Sink(OSError(28, "No space left on device"))
    (outcome,) = screen_inputs([Input("pictures/red.png")], detector(), sink=sink)
    assert outcome.status == "flagged"
    assert outcome.unwritten
    assert outcome.notes == ("picture not written: No space left on device",)


def test_closing_early_stops_the_threads(tmp_path: Path, detector: Callable[..., object]) -> None:
    for i in range(30):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{i}.png")
    before = threading.active_count()
    outcomes: Iterator[Outcome] = screen_inputs(discover([str(tmp_path)]).files, detector(), batch_size=2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_sound_pictures_name_the_refused_and_skip_repetitions(pictures: Path) -> None:
    refused: list[Outcome] = []
    inputs = [*discover(["pictures"]).files, Input("pictures/red.png"), Input("missing.png")]
    sizes = [image.size for image in sound_pictures(inputs, Reading(), refused)]
    assert sizes == [(48, 48), (64, 48), (32, 32)]
    assert [(outcome.path, outcome.error_kind) for outcome in refused] == [
        ("pictures/notes.txt", "not-an-image"),
        ("missing.png", "not-found"),
    ]


def test_an_error_prints_its_kind_first() -> None:
    assert str(ImageError(ImageErrorKind.EMPTY, "no bytes")) == "empty: no bytes"
