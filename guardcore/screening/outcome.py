"""What became of one input of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardcore.images.opening import ImageError

if TYPE_CHECKING:
    from guardcore.detector.verdict import Verdict
    from guardcore.policy.policy import Action


@dataclass(frozen=True)
class Outcome:
    """What happened to one input: a verdict, or an error that says why there is none.

    Attributes:
        path: as the user named it, valid Unicode.
        verdict: of the detector; None if the file could not be decoded.
        error: why the file could not be judged; a verdict may carry an error of its own.
        on_error: the policy's action for pictures that cannot be judged.
        format: as decoded, e.g. "PNG"; None if it was not.
        notes: what was changed on the way to 8-bit upright RGB, and what was not looked at.
        seconds: spent on reading and decoding the file. Judging is done by the batch and has no share a picture.
        duplicate_of: path of the earlier input that is the same file; the verdict is that one's.
        heatmap, redacted: the files written about this picture.
        unwritten: a picture that was asked for could not be written; why is in the notes.
    """

    path: str
    verdict: Verdict | None = None
    error: ImageError | None = None
    on_error: Action = "block"
    format: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    duplicate_of: str | None = None
    heatmap: str | None = None
    redacted: str | None = None
    unwritten: bool = False

    @property
    def error_kind(self) -> str | None:
        """Kind of the error, of the file or of the detector; None for a judged picture."""
        if self.error is not None:
            return self.error.kind.value
        return self.verdict.error.kind if self.verdict is not None and self.verdict.error is not None else None

    @property
    def error_message(self) -> str | None:
        """What a person is told about the error."""
        if self.error is not None:
            return self.error.message
        return self.verdict.error.message if self.verdict is not None and self.verdict.error is not None else None

    @property
    def status(self) -> str:
        """`flagged`, `clean`, `uncalibrated` or `error`."""
        if self.error_kind == "uncalibrated":
            return "uncalibrated"
        if self.error_kind is not None or self.verdict is None:
            return "error"
        return "flagged" if self.verdict.flagged else "clean"

    @property
    def action(self) -> Action:
        """What to do with the picture: the verdict's action, or the policy's `on_error`."""
        return self.on_error if self.verdict is None else self.verdict.action
