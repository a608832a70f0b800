"""What defenses and the hosts that run models agree on: requests, generations, answers and their traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from guardcore.calibration.attention_calibration import AttentionCalibration
from guardcore.calibration.mass import LayerMass
from guardcore.calibration.spans import TokenSpans
from guardcore.detector.regions import Region
from guardcore.detector.verdict import Verdict

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.detector.detector import Detector

_STRICTNESS = ("allow", "review", "block")


class RequestError(ValueError):
    """A host can't encode one request of a batch; the defense refuses that one and goes on with the others.

    Attributes:
        index: of the request in the batch.
        message: what is wrong with it.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(f"request {index}: {message}")
        self.index = index
        self.message = message


@dataclass(frozen=True, eq=False)
class Request:
    """One question to a vision-language model.

    Attributes:
        prompt: what the user asks.
        images: the pictures of the user's turn; an exception stands for one that could not be opened.
        prefix: text right before the prompt in the user's turn. The host separates the two by one space or newline
            that belongs to neither span.
        answer_start: forced beginning of the answer.
        system: the system prompt, None for the model's own.
        calibration: of the attention, None for none.
        unsafe: for each picture the regions whose tokens are of the class UNSAFE; empty for none.

    Raises:
        TypeError: a field of another type; what is wrong with a picture is found out by the defense, not here.
        ValueError: `unsafe` of another length than `images`.
    """

    prompt: str
    images: tuple[Image.Image | Exception, ...] = ()
    prefix: str = ""
    answer_start: str = ""
    system: str | None = None
    calibration: AttentionCalibration | None = None
    unsafe: tuple[tuple[Region, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check every field's type, and take any sequence of pictures and regions."""
        _check_texts(self)
        if self.calibration is not None and not isinstance(self.calibration, AttentionCalibration):
            told = type(self.calibration).__name__
            raise TypeError(f"calibration: expected an AttentionCalibration or None; got {told}")
        if not _is_sequence(self.images):
            raise TypeError(f"images: expected a sequence of PIL images; got {type(self.images).__name__}")
        if not _is_sequence(self.unsafe) or not all(map(_are_regions, self.unsafe)):
            raise TypeError(f"unsafe: expected for each image a sequence of Region; got {self.unsafe!r}")
        object.__setattr__(self, "images", tuple(self.images))
        object.__setattr__(self, "unsafe", tuple(map(tuple, self.unsafe)))
        if self.unsafe and len(self.unsafe) != len(self.images):
            raise ValueError(f"unsafe: expected an entry for each of {len(self.images)} images; got {len(self.unsafe)}")


def _check_texts(request: Request) -> None:
    for name in ("prompt", "prefix", "answer_start", "system"):
        value = getattr(request, name)
        if not isinstance(value, str) and (name, value) != ("system", None):
            raise TypeError(f"{name}: expected a string; got {type(value).__name__}")


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _are_regions(regions: object) -> bool:
    return isinstance(regions, Sequence) and all(isinstance(region, Region) for region in regions)


@dataclass(frozen=True)
class Generation:
    """What a host generated for one request.

    Attributes:
        text: the answer, the request's `answer_start` included.
        token_ids: the new tokens, without padding.
        spans: where the request's parts were among the prompt's tokens; None if the host did not look.
        masses: of the prefix, one a calibrated layer; empty without calibration or without a trace.
        seconds: `encode` and `generate`, of the whole batch.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    spans: TokenSpans | None = None
    masses: tuple[LayerMass, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Host(Protocol):
    """Something that runs one vision-language model.

    A host may also have `screened_by(detector) -> str`: who looks at pictures for a detector, its own vision tower or
    the detector's encoder, and why; traces tell it.
    """

    @property
    def name(self) -> str:
        """How a person would call the model."""

    def generate(self, requests: Sequence[Request], **generation: Any) -> list[Generation]:
        """Answer a batch; with num_return_sequences = n, n generations a request, those of one request together.

        `generation` are keyword arguments of transformers' `generate` (max_new_tokens, do_sample, streamer, ...).
        Requests come without exceptions among their images. Raises RequestError if one of them can't be encoded.
        """

    def screen(self, detector: Detector, images: Sequence[Image.Image | Exception]) -> list[Verdict]:
        """`detector.screen`, by the model's own vision tower where its weights are those of the detector's encoder."""


@runtime_checkable
class Defense(Protocol):
    """A way to answer safely."""

    @property
    def name(self) -> str:
        """How a person would call the method."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that an answer depends on but the request and the model; salt prefix caches with it."""

    def answer(self, host: Host, requests: Sequence[Request], **generation: Any) -> list[Answer]:
        """Answer a batch, as many answers a request as `num_return_sequences` says (1), those of one request together.

        `generation` goes to `Host.generate`. A request that can't be answered is refused by name; it never takes
        others with it.
        """


@dataclass(frozen=True)
class Stage:
    """One step of a defense: whether it was done, why (not) or with what result, and the batch's seconds in it."""

    name: str
    done: bool
    reason: str
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "done": self.done, "reason": self.reason, "seconds": self.seconds}


@dataclass(frozen=True)
class Trace:
    """What was done for one request, in order, and the prefix's attention mass by layer."""

    stages: tuple[Stage, ...] = ()
    masses: tuple[LayerMass, ...] = ()

    def stage(self, name: str) -> Stage:
        """The stage of that name; raise KeyError with the names there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(f"{name!r} is none of the stages {', '.join(stage.name for stage in self.stages)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "stages": [stage.to_dict() for stage in self.stages],
            "masses": [mass.to_dict() for mass in self.masses],
        }

    def __str__(self) -> str:
        width = max((len(stage.name) for stage in self.stages), default=0)
        lines = [
            f"{stage.name:<{width}}  {'done' if stage.done else '-':<4}  {stage.seconds:8.3f} s  {stage.reason}"
            for stage in self.stages
        ]
        if self.masses:
            lines.append("prefix mass at the last prompt token that is calibrated, mean over heads")
            lines += [f"  {mass}" for mass in self.masses]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Answer:
    """A defended answer.

    Attributes:
        text: the answer, or the refusal.
        verdicts: of the request's pictures, in order; empty if they were not screened.
        trace: what was done, and why.
        generation: what the host generated, None for a refusal without generation.
        reason: why the request was refused without asking the model, None if it was answered.
    """

    text: str
    verdicts: tuple[Verdict, ...] = ()
    trace: Trace = Trace()
    generation: Generation | None = None
    reason: str | None = None

    @property
    def refused(self) -> bool:
        """Whether the request was refused without asking the model."""
        return self.reason is not None

    @property
    def verdict(self) -> Verdict | None:
        """The strictest verdict, the first among equals; None without any."""
        return max(self.verdicts, key=lambda verdict: _STRICTNESS.index(verdict.action), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "text": self.text,
            "refused": self.refused,
            "reason": self.reason,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "trace": self.trace.to_dict(),
            "new_tokens": None if self.generation is None else len(self.generation.token_ids),
        }

    def __str__(self) -> str:
        return self.text
