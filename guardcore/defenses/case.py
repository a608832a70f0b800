"""One request on its way through a defense, and the steps that every defense shares: opening, generating, answering."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from guardcore.calibration.mass import LayerMass
from guardcore.defenses.protocol import Answer, Generation, Host, Request, RequestError, Stage, Trace
from guardcore.detector.verdict import Verdict
from guardcore.images.pixels import to_rgb

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.policy.policy import Action

REFUSAL = "I can't help with this request, because it could not be checked."


@dataclass(eq=False)
class Case:
    """A request, what was found and done so far, and why it was refused if it was.

    `request` changes as stages work on it. `reason` ends the case: later stages leave it alone.
    """

    request: Request
    verdicts: tuple[Verdict, ...] = ()
    stages: list[Stage] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    reason: str | None = None

    def note(self, stage: str, done: bool, reason: str, seconds: float = 0.0) -> None:
        """Add to the trace."""
        self.stages.append(Stage(stage, done, reason, seconds))

    def change(self, **changes: Any) -> None:
        """Replace fields of the request."""
        self.request = replace(self.request, **changes)

    def answers(self, count: int, refusal: str) -> list[Answer]:
        """`count` answers: one a generation, or the refusal as often."""
        if self.reason is not None:
            refused = Answer(refusal, self.verdicts, self._trace(()), None, self.reason)
            return [refused] * count
        return [Answer(each.text, self.verdicts, self._trace(each.masses), each) for each in self.generations]

    def _trace(self, masses: tuple[LayerMass, ...]) -> Trace:
        return Trace(tuple(self.stages), masses)


def open_cases(requests: Sequence[Request]) -> list[Case]:
    """Make every picture 8-bit RGB; what can't be decoded becomes its exception, in its place.

    Model libraries differ in what they make of transparency, palettes and 16 bits. Here it is decided once, as
    `guardcore.images` decides it for files, so that what is judged is what the model is shown.

    Raises:
        TypeError: `requests` holds something else than requests.
    """
    cases = []
    for index, request in enumerate(requests):
        if not isinstance(request, Request):
            raise TypeError(f"requests: expected Request objects; got {type(request).__name__} at {index}")
        opened = [_opened(image) for image in request.images]
        case = Case(replace(request, images=tuple(image for image, _ in opened)))
        notes = [f"image {number}: {note}" for number, (_, own) in enumerate(opened) for note in own]
        if notes:
            case.note("open", True, "; ".join(notes))
        cases.append(case)
    return cases


def ongoing(cases: Sequence[Case], stage: str) -> Iterator[Case]:
    """The cases that are not refused; the others' traces say that the stage passed them by."""
    for case in cases:
        if case.reason is None:
            yield case
        else:
            case.note(stage, False, "refused before")


def settle_unopened(cases: Sequence[Case], on_error: Action = "block") -> None:
    """Refuse the cases with a picture that no model can be shown, or, unless `on_error` is block, leave it out."""
    for case in cases:
        faults = {index: image for index, image in enumerate(case.request.images) if isinstance(image, Exception)}
        told = "; ".join(f"image {index} could not be opened: {fault}" for index, fault in faults.items())
        if faults and on_error == "block":
            case.reason = told
        elif faults:
            case.change(images=tuple(image for image in case.request.images if not isinstance(image, Exception)))
            case.note("open", False, f"{told}; goes on without")


def generate(host: Host, cases: Sequence[Case], generation: Mapping[str, Any]) -> None:
    """Ask the host once for all cases that are not refused; again, without it, if it refuses a request by name.

    Raises:
        RuntimeError: the host gave another number of generations than it was asked for.
    """
    started = time.perf_counter()
    waiting = list(ongoing(cases, "generate"))
    while waiting:
        try:
            found = host.generate([case.request for case in waiting], **generation)
        except RequestError as error:
            case = waiting.pop(error.index)
            case.reason = error.message
            case.note("generate", False, f"refused: {error.message}")
            continue
        count = _count(host, found, len(waiting), generation)
        seconds = time.perf_counter() - started
        for index, case in enumerate(waiting):
            case.generations = list(found[index * count : (index + 1) * count])
            case.note("generate", True, _told(case.generations), seconds)
        return


def answers(cases: Sequence[Case], generation: Mapping[str, Any], refusal: str = REFUSAL) -> list[Answer]:
    """The answers of all cases, those of one request together; of one refused as many as of the others."""
    count = max((len(case.generations) for case in cases), default=0) or sequences(generation) or 1
    return [answer for case in cases for answer in case.answers(count, refusal)]


def sequences(generation: Mapping[str, Any]) -> int | None:
    """How many answers a request the host is asked for; None leaves it to the model, which knows a number of its own.

    Raises:
        ValueError: a number that is none.
    """
    configured = getattr(generation.get("generation_config"), "num_return_sequences", None)
    count = generation.get("num_return_sequences")
    count = configured if count is None else count
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ValueError(f"num_return_sequences: expected a whole number >= 1; got {count!r}")
    return count


def _count(host: Host, found: Sequence[Generation], requests: int, generation: Mapping[str, Any]) -> int:
    """Generations a request."""
    asked = sequences(generation)
    count = asked or max(1, len(found) // requests)
    if len(found) != count * requests:
        wanted = str(count * requests) if asked else f"a multiple of {requests}"
        raise RuntimeError(f"{host.name}: expected {wanted} generations; got {len(found)}")
    return count


def _opened(item: object) -> tuple[Image.Image | Exception, tuple[str, ...]]:
    """A picture as RGB, or the reason why it is none, and notes of what was changed; RGB stays the same object."""
    from PIL import Image

    if isinstance(item, Exception):
        return item, ()
    if not isinstance(item, Image.Image):
        return TypeError(f"expected a PIL image; got {type(item).__name__}"), ()
    try:
        item.load()
        return (item, ()) if item.mode == "RGB" and not item.has_transparency_data else to_rgb(item)
    except Exception as error:  # noqa: BLE001 - decoders raise whatever they like; the picture is the culprit
        return error, ()


def _told(generations: Sequence[Generation]) -> str:
    lengths = " + ".join(str(len(each.token_ids)) for each in generations)
    parts = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in generations[0].seconds.items())
    return f"{lengths} new tokens" + (f" ({parts})" if parts else "")
