"""Open one picture from an untrusted source: limits first, then a restricted decoder, then upright 8-bit RGB.

Nothing here trusts a name, an extension or a header. Every way a file can fail has a kind, so that a report can say
which picture was not judged and why; no failure of one file is any other kind of exception.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError

from guardcore.images.formats import decoders, format_by_start, is_picture_suffix, name_note, other_format_by_start
from guardcore.images.pillow_warnings import collected_warnings
from guardcore.images.pixels import ORIENTATION_TAG, Alpha, profile_note, to_rgb, upright

_URL = re.compile(r"^(?:[a-zA-Z][a-zA-Z0-9+.-]*://|data:)")
_MAX_PROGRESSIVE_SCANS = 500  # a 1 MB progressive JPEG can ask for hours of work by empty scans
_COUNTED, _WALKED = 1 << 20, 8 << 20  # bytes of a GIF or TIFF whose frames are counted, of a GIF that is walked at all


class ImageErrorKind(str, Enum):
    """Why a picture could not be judged; the values are part of the report's schema."""

    NOT_FOUND = "not-found"
    NOT_A_FILE = "not-a-file"  # a folder, pipe, socket or device
    PERMISSION_DENIED = "permission-denied"
    UNREADABLE = "unreadable"  # the operating system could not read it
    REMOTE = "remote-url"
    EMPTY = "empty"
    TOO_MANY_BYTES = "too-many-bytes"
    TOO_MANY_PIXELS = "too-many-pixels"
    TOO_LARGE = "too-large"  # one side
    TOO_ELONGATED = "too-elongated"
    NOT_AN_IMAGE = "not-an-image"
    UNSUPPORTED_FORMAT = "unsupported-format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_SCREENED = "not-screened"  # decoded, but the detector had no answer


class ImageError(Exception):
    """One picture cannot be judged; `kind` is for programs, `message` for people."""

    def __init__(self, kind: ImageErrorKind, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        """Return `kind: message`."""
        return f"{self.kind.value}: {self.message}"


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before any pixel is decoded.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width x height; the default is Pillow's own warning threshold, 256 MiB as RGB. Pillow refuses
            twice its `Image.MAX_IMAGE_PIXELS` whatever is set here.
        max_side: longer side in pixels.
        max_aspect: longer side / shorter side: a strip is covered by about this many square tiles.
    """

    max_bytes: int = 128 << 20
    max_pixels: int = 89_478_485
    max_side: int = 65_535
    max_aspect: float = 200.0

    def __post_init__(self) -> None:
        """Refuse limits that no picture could meet."""
        for name in ("max_bytes", "max_pixels", "max_side", "max_aspect"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}: expected a number of at least 1, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class LoadedImage:
    """A decoded picture: upright RGB, and what had to be done to get there."""

    image: Image.Image
    format: str
    notes: tuple[str, ...] = ()


def open_image(
    source: str | os.PathLike[str] | bytes, limits: ImageLimits = ImageLimits(), *, alpha: Alpha = Alpha.WHITE
) -> LoadedImage:
    """Open one picture from a path or from its encoded bytes.

    Args:
        source: path of a regular file, or the file's bytes. URLs are refused, never fetched.
        limits: what is refused before decoding.
        alpha: what see-through pixels are laid on.

    Returns:
        the first frame as RGB, turned by its EXIF orientation (pixel coordinates are those of the upright picture),
        with a note for everything that was changed or left out.

    Raises:
        ImageError: for every file that cannot be judged, whatever is wrong with it.
    """
    data = source if isinstance(source, bytes) else _read(os.fspath(source), limits)
    if not data:
        raise ImageError(ImageErrorKind.EMPTY, "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), limits)
    suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
    with collected_warnings() as warned:
        loaded = _decode(data, suffix, limits, alpha)
    return LoadedImage(loaded.image, loaded.format, (*loaded.notes, *dict.fromkeys(warned)))


def _read(path: str, limits: ImageLimits) -> bytes:
    """Read a regular file of acceptable size; a pipe or device is refused without ever being opened."""
    if _URL.match(path) and not os.path.lexists(path):
        raise ImageError(ImageErrorKind.REMOTE, "URLs are not fetched; download the picture and give its path")
    try:
        _check_regular(os.stat(path), limits)
        # Not blocking: the file may have been swapped for a pipe since; then the second check refuses it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            _check_regular(os.fstat(descriptor), limits)
            return file.read(limits.max_bytes + 1)
    except FileNotFoundError:
        message = "the link points nowhere" if os.path.islink(path) else "no such file"
        raise ImageError(ImageErrorKind.NOT_FOUND, message) from None
    except PermissionError:
        raise ImageError(ImageErrorKind.PERMISSION_DENIED, "not readable by this user") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(ImageErrorKind.UNREADABLE, reason) from None


def _check_regular(status: os.stat_result, limits: ImageLimits) -> None:
    """Refuse what is no regular file or too big, by its status alone."""
    if not stat.S_ISREG(status.st_mode):
        names = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        what = next((name for test, name in names if test(status.st_mode)), "device")
        raise ImageError(ImageErrorKind.NOT_A_FILE, f"a {what}, not a file")
    if status.st_size > limits.max_bytes:
        raise _too_many_bytes(status.st_size, limits)


def _too_many_bytes(size: int, limits: ImageLimits) -> ImageError:
    return ImageError(ImageErrorKind.TOO_MANY_BYTES, f"{size} bytes, the limit is {limits.max_bytes}")


def _decode(data: bytes, suffix: str, limits: ImageLimits, alpha: Alpha) -> LoadedImage:
    """Decode bytes; whatever a decoder raises leaves here as an ImageError."""
    try:
        with Image.open(BytesIO(data), formats=decoders()) as image:
            _check_size(image.width, image.height, limits)
            _check_scans(image, data)
            return _load(image, data, suffix, alpha)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _unidentified(data, suffix) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(ImageErrorKind.TOO_MANY_PIXELS, str(error)) from None
    except MemoryError:
        raise ImageError(ImageErrorKind.OUT_OF_MEMORY, "not enough memory to decode it") from None
    except Exception as error:  # noqa: BLE001 - decoders raise almost anything on hostile bytes; all of it is this one error
        raise _damaged(error) from None


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse a picture by the size that its header announces."""
    size = f"{width} x {height} pixels"
    if width < 1 or height < 1:
        raise ImageError(ImageErrorKind.CORRUPT, f"{size}: there is nothing in it")
    if width * height > limits.max_pixels:
        raise ImageError(ImageErrorKind.TOO_MANY_PIXELS, f"{size}, the limit is {limits.max_pixels} in all")
    if max(width, height) > limits.max_side:
        raise ImageError(ImageErrorKind.TOO_LARGE, f"{size}, the limit is {limits.max_side} a side")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(ImageErrorKind.TOO_ELONGATED, f"{size}, the limit is 1 : {limits.max_aspect:g}")


def _check_scans(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse a progressive JPEG with an absurd number of scans."""
    if "progressive" in image.info and data.count(b"\xff\xda") > _MAX_PROGRESSIVE_SCANS:
        raise ImageError(ImageErrorKind.CORRUPT, f"a progressive JPEG of more than {_MAX_PROGRESSIVE_SCANS} scans")


def _load(image: ImageFile.ImageFile, data: bytes, suffix: str, alpha: Alpha) -> LoadedImage:
    """Decode the pixels of an opened picture and collect the notes."""
    kind = image.format or "?"
    deep = _is_deep(image)
    profile = profile_note(image.info.get("icc_profile"))
    # Pillow's TIFF loader turns the picture itself and forgets the tag; no other format may be asked before load():
    # a PNG decodes its pixels for that, and a failure in there would pass for a failure of EXIF.
    turned = _orientation(image) if kind == "TIFF" else 1
    image.load()
    left = _orientation(image)
    picture, mode_notes = to_rgb(image, alpha)
    notes = (
        name_note(kind, suffix),
        _frame_note(image, len(data)),
        "16-bit scaled to 8" if deep and not any("16-bit" in note for note in mode_notes) else None,
        *mode_notes,
        _orientation_note(turned if left == 1 else left),
        profile,
    )
    return LoadedImage(upright(picture, left or 1), kind, tuple(note for note in notes if note))


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Tell whether the decoder will reduce 16-bit channels by itself: Pillow has no 16-bit color."""
    modes = [tile[3] for tile in image.tile]
    netpbm = image.format == "PPM" and any(isinstance(mode, tuple) and mode[-1] in range(256, 65536) for mode in modes)
    return netpbm or any(";16" in str(mode) for mode in modes)


def _orientation_note(orientation: int | None) -> str | None:
    if orientation is None:
        return "EXIF is unreadable, orientation unknown"
    return None if orientation == 1 else f"EXIF orientation {orientation} applied"


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 where none or a nonsensical one is given, None where EXIF cannot be parsed."""
    try:
        value: Any = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - hostile bytes; an unknown orientation is a note, no reason to refuse a picture
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _frame_note(image: Image.Image, size: int) -> str | None:
    """Note how many frames or pages were not looked at.

    Pillow walks a GIF or TIFF block by block in Python for that, and looks each TIFF page up in a list: a crafted file
    of a few megabytes would take minutes, so large ones are not counted.
    """
    try:
        if image.format == "GIF" and size > _WALKED:
            return "first frame judged, later ones were not looked for"
        if not getattr(image, "is_animated", False):
            return None
        if image.format in {"GIF", "TIFF"} and size > _COUNTED:
            return "first of several frames judged"
        return f"first of {getattr(image, 'n_frames', 1)} frames judged"
    except Exception:  # noqa: BLE001 - a later frame is damaged; the first one is judged, and this says what was not
        return "first frame judged, the later ones are damaged"


def _unidentified(data: bytes, suffix: str) -> ImageError:
    """Tell a damaged picture from a format that is not decoded and from no picture at all."""
    if damaged := format_by_start(data):
        return ImageError(ImageErrorKind.CORRUPT, f"starts like a {damaged}, but its header cannot be read")
    if other := other_format_by_start(data):
        return ImageError(ImageErrorKind.UNSUPPORTED_FORMAT, f"{other}; convert it to JPEG or PNG")
    message = f"no picture despite its name {suffix!r}" if is_picture_suffix(suffix) else "no picture"
    return ImageError(ImageErrorKind.NOT_AN_IMAGE, message)


def _damaged(error: Exception) -> ImageError:
    """Name what a decoder stumbled over."""
    reason = " ".join(str(error).split()) or type(error).__name__
    cut = isinstance(error, EOFError) or "truncated" in reason.lower()
    return ImageError(ImageErrorKind.TRUNCATED if cut else ImageErrorKind.CORRUPT, reason)
