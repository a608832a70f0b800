"""The screening stage of a defense: a verdict for every picture of a batch, and what becomes of those without one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guardcore.defenses.case import Case
from guardcore.defenses.protocol import Host
from guardcore.detector.judging import judge_error
from guardcore.detector.verdict import ScreenError, Verdict

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.detector.detector import Detector
    from guardcore.policy.policy import Action


def screen(host: Host, detector: Detector | None, cases: Sequence[Case], on_error: Action) -> None:
    """Judge the pictures of all cases in one call of the host, and refuse cases by `on_error` = block.

    A picture that can't be judged never takes another one with it. Under `review` and `allow` the case goes on.
    """
    started = time.perf_counter()
    images = [image for case in cases for image in case.request.images]
    verdicts = iter(_screened(host, detector, images)) if detector is not None and images else None
    seconds = time.perf_counter() - started
    looked = getattr(host, "screened_by", None)
    who = f"by {looked(detector)}" if looked is not None and verdicts is not None else ""
    for case in cases:
        count = len(case.request.images)
        if verdicts is not None:
            case.verdicts = tuple(next(verdicts) for _ in range(count))
        faults = _faults(case)
        if faults and on_error == "block":
            case.reason = faults[0]
        told = "; ".join(filter(None, (_told(case, faults, detector is None), who if count else "")))
        case.note("screen", bool(case.verdicts), told, seconds if count else 0.0)


def _screened(host: Host, detector: Detector, images: Sequence[Image.Image | Exception]) -> list[Verdict]:
    """The host's verdicts; if a picture makes it fail, all of them one by one, so that only that picture has none."""
    try:
        found = host.screen(detector, images)
    except (ValueError, OSError, ArithmeticError) as error:  # a picture's fault; anything else is a fault of ours
        if len(images) == 1:
            fault = ScreenError("unreadable", f"{type(error).__name__}: {error}")
            return [judge_error(fault, detector.policy, detector.fingerprint)]
        return [verdict for image in images for verdict in _screened(host, detector, [image])]
    if len(found) != len(images):
        raise RuntimeError(f"{host.name}: expected {len(images)} verdicts; got {len(found)}")
    return found


def _faults(case: Case) -> list[str]:
    """What is wrong with the case's pictures, by number."""
    faults = []
    for index, image in enumerate(case.request.images):
        if case.verdicts and case.verdicts[index].error is not None:
            faults.append(f"image {index} could not be judged: {case.verdicts[index].error}")
        elif isinstance(image, Exception):
            faults.append(f"image {index} could not be opened: {image}")
    return faults


def _told(case: Case, faults: list[str], off: bool) -> str:
    if case.reason is not None:
        return f"refused: {case.reason}"
    parts = [f"image {index} {verdict.headline}" for index, verdict in enumerate(case.verdicts)]
    if off:
        parts = ["switched off", *faults]
    left_out = [str(index) for index, image in enumerate(case.request.images) if isinstance(image, Exception)]
    if left_out:
        parts.append(f"goes on without image {', '.join(left_out)}")
    return "; ".join(parts) or "no pictures"
