"""Which picture formats are decoded, and what a file that is none of them looks like.

Only formats whose Pillow decoder is self-contained are allowed. Left out on purpose: EPS, PDF and WMF (they start or
need another program), PSD, ICO, ICNS and DDS (several pictures or layers in one), TGA and SPIDER (no magic number, so
that almost any file fits).
"""

from __future__ import annotations

from functools import cache

from PIL import Image

EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif", ".jif"},
    "MPO": {".mpo", ".jpg", ".jpeg"},
    "PNG": {".png", ".apng"},
    "GIF": {".gif"},
    "WEBP": {".webp"},
    "AVIF": {".avif", ".avifs"},
    "BMP": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".pam"},
    "JPEG2000": {".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"},
}
_KNOWN_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"BM", "BMP"),
)
_OTHER_STARTS = (
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"\x00\x00\x01\x00", "an icon file"),
    (b"<svg", "an SVG drawing"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"FWS", "a Flash file"),
    (b"\x1aE\xdf\xa3", "a Matroska video"),
)
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"heim", b"heis"}


@cache
def decoders() -> tuple[str, ...]:
    """Return the allowed formats that this Pillow knows; MPO has no decoder of its own, it comes out of JPEG's."""
    Image.init()
    return tuple(name for name in EXTENSIONS if name in Image.OPEN)


def is_picture_suffix(suffix: str) -> bool:
    """Tell whether a lower-case suffix such as `.jpg` promises one of the allowed formats."""
    return any(suffix in names for names in EXTENSIONS.values())


def name_note(kind: str, suffix: str) -> str | None:
    """Note a file name that promises another format than the bytes hold."""
    return None if not suffix or suffix in EXTENSIONS.get(kind, ()) else f"a {kind} despite its name {suffix!r}"


def format_by_start(data: bytes) -> str | None:
    """Name the allowed format whose magic number the bytes start with."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _KNOWN_STARTS if data.startswith(start)), None)


def other_format_by_start(data: bytes) -> str | None:
    """Name a well-known format that is not decoded, by the bytes it starts with."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "a HEIC picture"
    text = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")  # a byte-order mark or blanks may stand before markup
    return next((name for start, name in _OTHER_STARTS if data.startswith(start) or text.startswith(start)), None)
