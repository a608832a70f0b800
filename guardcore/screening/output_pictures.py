"""Where heat maps and redacted pictures go: names that mirror the inputs, never collide, and never hit an input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from guardcore.screening.inputs import Inputs, printable

if TYPE_CHECKING:
    from PIL import Image

    from guardcore.detector.verdict import Verdict
    from guardcore.redaction import RedactionStyle


class OutputClash(ValueError):  # noqa: N818 - says what it is
    """An output would overwrite an input, or be screened itself by the next run."""


class OutputPictures:
    """Writes PNG files below two folders, each of which mirrors the inputs' own folders.

    Heat maps are written for every judged picture, redacted copies for flagged ones.
    """

    def __init__(
        self, inputs: Inputs, heatmaps: Path | None, redacted: Path | None, style: RedactionStyle = "zero"
    ) -> None:
        self.heatmaps, self.redacted, self.style = heatmaps, redacted, style
        self._places = mirrored(item.path for item in inputs.files)
        for folder in (heatmaps, redacted):
            if folder is not None:
                check_output(folder, inputs, [folder / place for place in self._places.values()])
        if heatmaps is not None and redacted is not None and heatmaps.resolve() == redacted.resolve():
            raise OutputClash(f"--heatmaps and --redact: expected two folders, got {heatmaps} for both")

    def write(self, path: str, image: Image.Image, verdict: Verdict) -> dict[str, str]:
        """Write the pictures of one verdict; raise OSError if the disk refuses."""
        place, written = self._places[path], {}
        if self.heatmaps is not None:
            written["heatmap"] = _save(verdict.overlay(image), self.heatmaps / place)
        if self.redacted is not None and verdict.flagged:
            written["redacted"] = _save(verdict.redact(image, self.style), self.redacted / place)
        return written


def check_output(target: Path, inputs: Inputs, files: Sequence[Path] = ()) -> None:
    """Raise OutputClash if `target` lies in a folder that is screened, or if a file to write is an input."""
    resolved = target.resolve()
    for folder in inputs.folders:
        if resolved.is_relative_to(Path(folder).resolve()):
            raise OutputClash(
                f"{target} lies in {printable(folder)}, which is being screened: the next run would screen it too"
            )
    sources = {os.path.realpath(item.path) for item in inputs.files if item.error is None}
    for file in (target, *files):
        if os.path.realpath(file) in sources:
            raise OutputClash(f"{file} is one of the inputs and would be overwritten")


def mirrored(paths: Iterable[str]) -> dict[str, Path]:
    """Map every path to a relative one ending in .png, all different even where upper and lower case are the same.

    A path below the current folder keeps its folders, any other one is mirrored from the root: `a/x.jpg` ->
    `a/x.jpg.png`, `/data/x.png` -> `data/x.png`. If a name is taken, `-2`, `-3` ... is appended.
    """
    places: dict[str, Path] = {}
    taken: set[str] = set()
    for path in paths:
        if path in places:
            continue
        plain = _relative(path)
        plain = plain if plain.suffix.lower() == ".png" else plain.with_name(plain.name + ".png")
        place, count = plain, 1
        while str(place).casefold() in taken:
            count += 1
            place = plain.with_name(f"{plain.stem}-{count}.png")
        taken.add(str(place).casefold())
        places[path] = place
    return places


def _relative(path: str) -> Path:
    """Turn a path into one without root or `..`; links are kept as they are named."""
    absolute = Path(os.path.abspath(path.replace("\0", "_")))
    here = Path.cwd()
    return absolute.relative_to(here if absolute.is_relative_to(here) and absolute != here else absolute.anchor)


def _save(image: Image.Image, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")
    return printable(str(path))
