"""Pictures in, verdicts out: patches, scores, calibration and policy put together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import replace
from enum import Enum
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from PIL import Image

from guardcore.detector.clearing import Clearance, check_bounded, measure_suspects
from guardcore.detector.conformal import Calibration
from guardcore.detector.judging import flag_thresholds, judge, judge_clearance, judge_error
from guardcore.detector.measurement import Measurement, measure
from guardcore.detector.prefetch import prefetch
from guardcore.detector.probes import probe_pictures
from guardcore.detector.scoring import Scoring, Weights
from guardcore.detector.streams import batched, mapped
from guardcore.detector.verdict import ScreenError, Verdict
from guardcore.encoders.protocol import Encoder
from guardcore.patches import PatchMode, PatchSet, extract_patches
from guardcore.policy.policy import Policy
from guardcore.prototypes.bank import FingerprintError, PrototypeBank, image_cost_spread

T = TypeVar("T")
# Of the built-in encoder and the demonstration policy, each for a scoring rule at its default settings.
SHIPPED = ("calibration-builtin-demo.json", "calibration-builtin-demo-normalized.json")


class Detector:
    """Screens pictures against a policy.

    Args:
        encoder: any `Encoder`.
        policy: what is unsafe, and what to do about it.
        calibration: a `Calibration` or its file. None = the one shipped for the built-in encoder and the
            demonstration policy if it fits. Without any, only categories with a `threshold` can be judged; the others
            make the verdict an error.
        patches: how pictures become patches.
        scoring: the rule and its settings, or text for `Scoring.parse`.
        weights, relative_epsilon: replace these settings of `scoring`.
        decisions_only: where only flags, actions and regions of flagged pictures are wanted, clear pictures by bounds
            alone (`guardcore.ops.sinkhorn_screen`). A cleared picture has certificates in place of scores; every other
            one gets the verdict that it would get anyway. For the rule `normalized` with pool 1.
        batch_size: pictures that are processed together, and tiles an encoder call; >= 1.
        cache_dir: where to keep the policy's embeddings; None = embed them anew.

    Raises:
        FingerprintError: the calibration belongs to another encoder, policy, patch mode or scoring; the message names
            which.
        CalibrationError: the calibration can't be read.
        ValueError: a setting is out of its range, the rule needs neutral anchors and the policy has none, or it has no
            bound and `decisions_only` is set.
    """

    def __init__(
        self,
        encoder: Encoder,
        policy: Policy,
        *,
        calibration: Calibration | str | Path | None = None,
        patches: PatchMode = PatchMode(),  # noqa: B008 - frozen
        scoring: Scoring | str = Scoring(),  # noqa: B008 - frozen
        weights: Weights | None = None,
        relative_epsilon: float | None = None,
        decisions_only: bool = False,
        batch_size: int = 32,
        cache_dir: str | Path | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1; got {batch_size!r}")
        scoring = Scoring.parse(scoring) if isinstance(scoring, str) else scoring
        self.encoder = encoder
        self.policy = policy
        self.patches = patches
        self.scoring = replace(
            scoring,
            weights=scoring.weights if weights is None else weights,
            relative_epsilon=scoring.relative_epsilon if relative_epsilon is None else relative_epsilon,
        )
        self.batch_size = batch_size
        self.decisions_only = decisions_only
        if decisions_only:
            check_bounded(self.scoring)
        with torch.inference_mode():
            self.bank = (
                PrototypeBank.cached(policy, encoder, cache_dir) if cache_dir else PrototypeBank.build(policy, encoder)
            )
            self.scoring.check(self.bank)
            self._calibrate(calibration)

    @property
    def parts(self) -> dict[str, str]:
        """What statistics depend on, by name; a calibration is for exactly these."""
        return {
            "encoder": f"{self.encoder.name} {self.encoder.fingerprint[:16]}",
            "policy texts": f"{self.policy.name} {self.policy.texts_fingerprint[:16]}",
            "patches": f"{self.patches} {self.patches.fingerprint[:16]}",
            "scoring": str(self.scoring),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that a verdict depends on but the picture."""
        return self._fingerprint

    def with_calibration(self, calibration: Calibration | str | Path) -> Detector:
        """The same detector with another calibration; nothing is embedded again. Raises like the constructor."""
        other = copy(self)
        with torch.inference_mode():
            other._calibrate(calibration)
        return other

    @overload
    def screen(self, images: Image.Image) -> Verdict: ...
    @overload
    def screen(self, images: Sequence[Image.Image | Exception]) -> list[Verdict]: ...
    def screen(self, images: Image.Image | Sequence[Image.Image | Exception]) -> Verdict | list[Verdict]:
        """Judge one picture or several.

        A picture that can't be judged gives a verdict with `error` set and the policy's `on_error` action; the others
        are not touched. An exception in a picture's place stands for one that could not be opened, and gives such a
        verdict.

        Raises:
            TypeError: `images` is neither a picture nor a sequence.
        """
        if isinstance(images, Image.Image):
            return self.screen([images])[0]
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            raise TypeError(f"images: expected a PIL image or a sequence of them; got {type(images).__name__}")
        batches = batched(images, self.batch_size)
        return list(self._judge(found for batch in batches for found in self._look(self._embed(batch))))

    def screen_patches(self, sets: Sequence[PatchSet | ScreenError]) -> list[Verdict]:
        """Judge pictures that were embedded elsewhere, such as by the vision tower of the model that is guarded.

        Args:
            sets: patches that an encoder of this detector's fingerprint made; an error stands for a picture that could
                not be embedded, and gives a verdict as in `screen`.

        Raises:
            ValueError: patches of another width than the encoder's.
        """
        for index, item in enumerate(sets):
            if isinstance(item, PatchSet) and item.embeddings.shape[-1] != self.encoder.width:
                shape = list(item.embeddings.shape)
                raise ValueError(f"sets[{index}]: expected embeddings [N, {self.encoder.width}]; got {shape}")
        return list(self._judge(found for batch in batched(sets, self.batch_size) for found in self._look(batch)))

    def screen_batches(
        self, images: Iterable[Image.Image | Exception], batch_size: int | None = None
    ) -> Generator[Verdict, None, None]:
        """Judge a stream of pictures, in order and in bounded memory.

        Reading `images`, encoding and transport run in three threads, so that a lazy iterable (one that opens files
        as it goes) is decoded while earlier pictures are encoded. At most seven batches exist at a time. An exception
        that the iterable raises is raised after the verdicts before it; closing the generator stops the threads.
        """
        with closing(self._stream(images, batch_size, self._look)) as found:
            yield from self._judge(found)

    def measure_batches(
        self, images: Iterable[Image.Image | Exception], batch_size: int | None = None
    ) -> Generator[Measurement | ScreenError, None, None]:
        """`screen_batches` without policy and calibration: scores of all pictures, for calibration and benchmarks."""
        yield from self._stream(images, batch_size, self._measure)

    def _stream(
        self,
        images: Iterable[Image.Image | Exception],
        batch_size: int | None,
        look: Callable[[Sequence[PatchSet | ScreenError]], Sequence[T]],
    ) -> Generator[T, None, None]:
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size: expected at least 1; got {size!r}")
        decoded = prefetch(mapped(lambda batch: [_decoded(item) for item in batch], batched(images, size)))
        embedded = prefetch(mapped(self._embed, decoded))
        try:
            for sets in embedded:
                yield from look(sets)
        finally:
            embedded.close()

    @torch.inference_mode()
    def _embed(self, items: Sequence[object]) -> list[PatchSet | ScreenError]:
        pictures = [_decoded(item) for item in items]
        sound = [picture for picture in pictures if isinstance(picture, Image.Image)]
        embedded = iter(self._extract(sound))
        return [next(embedded) if isinstance(picture, Image.Image) else picture for picture in pictures]

    def _extract(self, pictures: list[Image.Image]) -> Sequence[PatchSet | ScreenError]:
        if not pictures:
            return []
        try:
            return extract_patches(self.encoder, pictures, self.patches, batch_size=self.batch_size)
        except (ValueError, OSError, ArithmeticError) as error:  # a picture's fault; anything else is a fault of ours
            if len(pictures) == 1:
                return [ScreenError("unreadable", f"{type(error).__name__}: {error}")]
            return [found for picture in pictures for found in self._extract([picture])]

    @torch.inference_mode()
    def _measure(self, sets: Sequence[PatchSet | ScreenError]) -> list[Measurement | ScreenError]:
        return _of_sound(sets, lambda sound: measure(sound, self.bank, self.scoring))

    @torch.inference_mode()
    def _look(self, sets: Sequence[PatchSet | ScreenError]) -> Sequence[Measurement | Clearance | ScreenError]:
        if not self.decisions_only:
            return self._measure(sets)
        thresholds = flag_thresholds(self.policy, self.calibration)
        return _of_sound(sets, lambda sound: measure_suspects(sound, self.bank, self.scoring, thresholds))

    def _judge(self, seen: Iterable[Measurement | Clearance | ScreenError]) -> Iterator[Verdict]:
        fingerprint = self.fingerprint
        for found in seen:
            if isinstance(found, ScreenError):
                yield judge_error(found, self.policy, fingerprint)
            elif isinstance(found, Clearance):
                yield judge_clearance(found, self.policy, self.calibration, fingerprint)
            else:
                yield judge(found, self.policy, self.calibration, fingerprint)

    def _calibrate(self, calibration: Calibration | str | Path | None) -> None:
        """Take a calibration and what follows from it; the fingerprint is in every verdict, and takes milliseconds."""
        self.calibration = self._find_calibration(calibration)
        self.bank = self.bank.with_cost_spread(self._cost_spread())
        found = None if self.calibration is None else self.calibration.fingerprint
        whole = [self.parts, self.policy.fingerprint, self.bank.cost_spread, found]
        self._fingerprint = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _find_calibration(self, calibration: Calibration | str | Path | None) -> Calibration | None:
        if calibration is None:
            return self._shipped_calibration()
        found = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        found.check(self.parts)
        return found

    def _shipped_calibration(self) -> Calibration | None:
        for name in SHIPPED:
            with as_file(files("guardcore") / "data" / name) as path:
                if not path.is_file():
                    continue
                calibration = Calibration.load(path)
            try:
                calibration.check(self.parts)
            except FingerprintError:
                continue
            return calibration
        return None

    def _cost_spread(self) -> float:
        """The calibration's spread, or that on the probe pictures."""
        if self.calibration is not None:
            return self.calibration.cost_spread
        probes = extract_patches(
            self.encoder, probe_pictures(self.encoder.image_size), self.patches, batch_size=self.batch_size
        )
        return image_cost_spread(torch.cat([probe.embeddings for probe in probes]), self.bank)


def _of_sound(
    sets: Sequence[PatchSet | ScreenError], look: Callable[[list[PatchSet]], Sequence[T]]
) -> list[T | ScreenError]:
    """What `look` says of the pictures that were embedded, errors in their places."""
    sound = [item for item in sets if isinstance(item, PatchSet)]
    seen = iter(look(sound) if sound else ())
    return [next(seen) if isinstance(item, PatchSet) else item for item in sets]


def _decoded(item: object) -> Image.Image | ScreenError:
    """Force the pixels of a lazily opened picture, so that what is wrong with it shows here and not in the encoder."""
    if isinstance(item, ScreenError):
        return item
    if isinstance(item, Exception):
        kind: Any = getattr(item, "kind", "unreadable")  # an ImageError has one, and a message that does not repeat it
        message = getattr(item, "message", str(item)) or type(item).__name__
        return ScreenError(kind.value if isinstance(kind, Enum) else kind, message)
    if not isinstance(item, Image.Image):
        return ScreenError("unreadable", f"expected a PIL image; got {type(item).__name__}")
    try:
        item.load()
    except Exception as error:  # noqa: BLE001 - decoders raise whatever they like; the picture is the culprit
        return ScreenError("unreadable", f"{type(error).__name__}: {error}")
    return item
