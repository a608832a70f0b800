"""GuardAlign: cover what transport finds unsafe, put a safety prefix first, keep it heard, generate once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.spans import TokenClass
from guardcore.defenses.case import REFUSAL, Case, answers, generate, ongoing, open_cases
from guardcore.defenses.fingerprint import digest
from guardcore.defenses.prefix import SAFETY_PREFIX, add_prefix
from guardcore.defenses.protocol import Answer, Host, Request
from guardcore.defenses.screening import screen
from guardcore.defenses.streaming import streamed
from guardcore.policy.policy import Action
from guardcore.redaction import RedactionStyle

if TYPE_CHECKING:
    from guardcore.detector.detector import Detector


_DEFAULT = AttentionCalibration()


class GuardAlign:
    """Screens pictures, covers unsafe regions, prefixes the instruction, calibrates attention, and generates once.

    Every stage can be switched off by None (a blank prefix likewise), and each answer's trace says of every stage
    whether it was done and why: `screen`, `redact`, `prefix`, `calibrate`, `generate`.

    Args:
        detector: finds unsafe regions; None switches screening off, and with it redaction.
        prefix: the safety prefix; a request's own comes first.
        calibration: of the attention; a request's own comes first.
        redaction: how the regions of flagged pictures are covered.
        on_error: what becomes of a request with a picture that can't be judged. `block` refuses it, by name and
            without generation; `review` and `allow` go on without the picture if it can't be opened and with it
            otherwise, which the trace says. None is the policy's own choice, `block` without a detector.
        refusal: the text of a refusal.

    Raises:
        TypeError: a detector that can't screen, a calibration that is none, a text that is none.
        ValueError: an unknown style or action.

    What the paper leaves open, and what is done here:

    * A flagged picture is covered, not refused, whatever the policy's action for its category: the paper has no
      decision about whole pictures. `answer.verdict.action` says what the policy would have done.
    * Regions of pictures that are not flagged stay visible: they have an error rate of their own (about 2 % of benign
      pixels), and covering them would spoil harmless pictures.
    * Which patches are unsafe is decided by the detector, at a calibrated false-positive rate, and not by tau = 0.42.
    * The prefix stands before the instruction, in the user's turn: only there can the instruction attend to it.
    * Rule, layers, heads and rows: see `AttentionCalibration`.
    * If the calibration has a rule for `unsafe`, the tokens of flagged regions are of that class, covered or not;
      without screening, those of the request's own regions.

    Source: Zhu et al. 2026 (arXiv 2602.24027), equations 5 to 14.
    """

    name = "guardalign"

    def __init__(
        self,
        detector: Detector | None,
        *,
        prefix: str | None = SAFETY_PREFIX,
        calibration: AttentionCalibration | None = _DEFAULT,
        redaction: RedactionStyle | None = "zero",
        on_error: Action | None = None,
        refusal: str = REFUSAL,
    ) -> None:
        _check_types(detector, prefix, calibration, refusal)
        if redaction is not None and redaction not in get_args(RedactionStyle):
            raise ValueError(f"redaction: expected one of {', '.join(get_args(RedactionStyle))}; got {redaction!r}")
        if on_error is not None and on_error not in get_args(Action):
            raise ValueError(f"on_error: expected one of {', '.join(get_args(Action))}; got {on_error!r}")
        self.detector = detector
        self.prefix = prefix or ""
        self.calibration = calibration
        self.redaction = redaction
        self.on_error: Action = on_error or ("block" if detector is None else detector.policy.on_error)
        self.refusal = refusal

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all that an answer depends on but the request and the model."""
        return digest(
            self.name,
            None if self.detector is None else self.detector.fingerprint,
            self.prefix,
            None if self.calibration is None else self.calibration.fingerprint,
            self.redaction,
            self.on_error,
            self.refusal,
        )

    def answer(self, host: Host, requests: Sequence[Request], **generation: Any) -> list[Answer]:
        """Answer a batch with one call of the host's `generate`; see `guardcore.defenses.protocol.Defense`."""
        with streamed(generation) as options:
            cases = open_cases(requests)
            screen(host, self.detector, cases, self.on_error)
            for case in ongoing(cases, "redact"):
                self._redact(case)
            add_prefix(cases, self.prefix)
            for case in ongoing(cases, "calibrate"):
                self._calibrate(case)
            generate(host, cases, options)
            return answers(cases, options, self.refusal)

    def _redact(self, case: Case) -> None:
        """Cover the flagged regions, then leave out what can't be shown to a model at all."""
        started, images, covered = time.perf_counter(), list(case.request.images), []
        unsafe = [verdict.regions if verdict.flagged else () for verdict in case.verdicts] or case.request.unsafe
        for index, verdict in enumerate(case.verdicts):
            image = images[index]
            if verdict.flagged and self.redaction and not isinstance(image, Exception):
                images[index] = verdict.redact(image, self.redaction)
                what = "; ".join(map(str, verdict.regions)) or "all of it"
                covered.append(f"image {index}: {what}")
        kept = [index for index, image in enumerate(images) if not isinstance(image, Exception)]
        marked = tuple(unsafe[index] for index in kept) if any(unsafe) else ()
        case.change(images=tuple(images[index] for index in kept), unsafe=marked)
        reason = ", ".join(covered) or self._why_not_redacted(case)
        case.note("redact", bool(covered), reason, time.perf_counter() - started)

    def _why_not_redacted(self, case: Case) -> str:
        if self.detector is None or self.redaction is None:
            return "switched off"
        return "nothing flagged" if case.verdicts else "no pictures"

    def _calibrate(self, case: Case) -> None:
        """Give the request its calibration; without anything that it could act on, the model runs as it is."""
        calibration = case.request.calibration or self.calibration
        if calibration is None:
            case.note("calibrate", False, "switched off")
            return
        present = _present(case.request)
        found, lost = calibration.classes & present, sorted(calibration.classes - present)
        missing = ", ".join(_MISSING[kind] for kind in lost)
        if not calibration.classes:
            why_not = "no rule changes anything"
        elif not found:
            why_not = f"nothing to act on: {missing}"
        elif calibration.rows == "instruction" and TokenClass.INSTRUCTION not in present:
            why_not = f"no row to act in: {_MISSING[TokenClass.INSTRUCTION]}"
        else:
            why_not = ""
        unsafe = case.request.unsafe if TokenClass.UNSAFE in found and not why_not else ()
        case.change(calibration=None if why_not else calibration, unsafe=unsafe)
        told = f"{calibration}; nothing else to act on: {missing}" if missing else str(calibration)
        case.note("calibrate", not why_not, why_not or told)


_MISSING = {
    TokenClass.PREFIX: "no prefix",
    TokenClass.INSTRUCTION: "no instruction",
    TokenClass.IMAGE: "no picture",
    TokenClass.UNSAFE: "no unsafe region",
}


def _present(request: Request) -> frozenset[TokenClass]:
    """The classes that some token of the request will have."""
    there = {
        TokenClass.PREFIX: request.prefix.strip(),
        TokenClass.INSTRUCTION: request.prompt.strip(),
        TokenClass.IMAGE: request.images,
        TokenClass.UNSAFE: any(request.unsafe),
    }
    return frozenset(kind for kind, some in there.items() if some)


def _check_types(detector: object, prefix: object, calibration: object, refusal: object) -> None:
    if detector is not None and not callable(getattr(detector, "screen", None)):
        raise TypeError(f"detector: expected a guardcore.Detector or None; got {type(detector).__name__}")
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"prefix: expected a string or None; got {type(prefix).__name__}")
    if calibration is not None and not isinstance(calibration, AttentionCalibration):
        raise TypeError(f"calibration: expected an AttentionCalibration or None; got {type(calibration).__name__}")
    if not isinstance(refusal, str):
        raise TypeError(f"refusal: expected a string; got {type(refusal).__name__}")
