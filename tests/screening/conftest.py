"""Odd and broken pictures built by hand, and a detector that needs no model: it flags what is red."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardcore.detector.prefetch import prefetch
from guardcore.detector.regions import Region
from guardcore.detector.verdict import ScreenError, Verdict
from guardcore.images.opening import ImageErrorKind
from guardcore.policy.policy import Policy

K = ImageErrorKind
SIZE = (40, 24)  # not square: a wrong turn shows


def noise(mode: str = "RGB", size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], bands) if bands > 1 else (size[1], size[0])
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    check = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def png(width: int, height: int, *extra: bytes, depth: int = 8, color: int = 2, rows: bytes | None = None) -> bytes:
    """A PNG written by hand: `extra` chunks stand before the pixels."""
    if rows is None:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
        rows = (b"\0" + bytes((width * channels * depth + 7) // 8)) * height
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_with_exif(orientation: int, broken: bool = False) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    blob = exif.tobytes()
    return saved(noise(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\1" * 30 if broken else blob)


def gif(frames: int) -> bytes:
    first, *rest = [noise("L", seed=seed) for seed in range(frames)]
    return saved(first, "GIF", save_all=True, append_images=rest)


def tiff_16bit_rgb() -> bytes:
    """A TIFF of 2 x 2 pixels, three 16-bit channels, written by hand: Pillow cannot write one."""
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 8 + 2 + 9 * 12 + 4), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 8 + 2 + 9 * 12 + 4 + 6), (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 1, 24)]
    body = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return body + struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16) + struct.pack("<12H", *([65535, 32768, 0] * 4))


def looping_tiff() -> bytes:
    """A TIFF whose only directory names itself as the next one."""
    data = bytearray(saved(noise(), "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    return bytes(data)


def scan_bomb() -> bytes:
    """A progressive JPEG with its last scan repeated 600 times."""
    data = saved(noise("L"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 600 + data[-2:]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def palette(transparency: object = None) -> bytes:
    image = noise().quantize(16)
    return saved(image, "PNG") if transparency is None else saved(image, "PNG", transparency=transparency)


def float_tiff(values: object) -> bytes:
    return saved(Image.fromarray(np.asarray(values, dtype=np.float32)), "TIFF")


JPEG, PNG, GIF, BMP = (saved(noise(), kind) for kind in ("JPEG", "PNG", "GIF", "BMP"))
TIFF, WEBP = saved(noise(), "TIFF"), saved(noise(), "WEBP")
LOSSLESS = saved(noise(), "WEBP", lossless=True)
IDAT = PNG.index(b"IDAT")
RAMP = np.linspace(0, 1, 24 * 40).reshape(24, 40)

# name -> (bytes, what must come: None = judged without a note, a string = judged with such a note, a kind = refused)
CASES: dict[str, tuple[bytes, ImageErrorKind | str | None]] = {
    # formats as they should be
    "plain.jpg": (JPEG, None),
    "plain.png": (PNG, None),
    "plain.gif": (saved(noise("L"), "GIF"), None),
    "plain.bmp": (BMP, None),
    "plain.tif": (TIFF, None),
    "plain.webp": (WEBP, None),
    "lossless.webp": (LOSSLESS, None),
    "plain.ppm": (saved(noise(), "PPM"), None),
    "ascii.pgm": (b"P2\n3 2\n255\n" + b"0 100 200 50 150 250\n", None),
    "progressive.jpg": (saved(noise(), "JPEG", progressive=True), None),
    "grayscale.jpg": (saved(noise("L"), "JPEG"), None),
    "interlaced.png": (saved(noise(), "PNG", interlace=1), None),
    "lzw.tif": (saved(noise(), "TIFF", compression="tiff_lzw"), None),
    "jpeg.tif": (saved(noise(), "TIFF", compression="jpeg"), None),
    # modes
    "one-bit.png": (saved(noise().convert("1"), "PNG"), None),
    "one-bit.pbm": (saved(noise().convert("1"), "PPM"), None),
    "group4.tif": (saved(noise().convert("1"), "TIFF", compression="group4"), None),
    "gray-alpha.png": (saved(noise("LA"), "PNG"), "alpha composited on white"),
    "rgba.png": (saved(noise("RGBA"), "PNG"), "alpha composited on white"),
    "rgba.webp": (saved(noise("RGBA"), "WEBP", lossless=True), "alpha composited on white"),
    "opaque-rgba.png": (saved(noise().convert("RGBA"), "PNG"), None),
    "invisible.png": (saved(Image.new("RGBA", SIZE, (255, 0, 0, 0)), "PNG"), "100 % of the pixels are see-through"),
    "palette.png": (palette(), None),
    "palette-transparent-index.png": (palette(3), "alpha composited"),
    "palette-transparent-bytes.png": (palette(bytes([0, 128, 255])), "alpha composited"),
    "gray-transparent.png": (saved(Image.new("L", SIZE, 7), "PNG", transparency=7), "alpha composited"),
    "rgb-transparent.png": (saved(Image.new("RGB", SIZE, (1, 2, 3)), "PNG", transparency=(1, 2, 3)), "alpha"),
    "gray16.png": (saved(Image.fromarray((RAMP * 65535).astype(np.uint16)), "PNG"), "16-bit scaled to 8"),
    "rgb16.png": (png(4, 3, depth=16), "16-bit scaled to 8"),
    "rgba16.png": (png(4, 3, depth=16, color=6), "16-bit scaled to 8"),
    "rgb16.tif": (tiff_16bit_rgb(), "16-bit scaled to 8"),
    "gray16.pgm": (b"P5\n2 1\n65535\n\x00\x00\xff\xff", "16-bit scaled to 8"),
    "rgb16.ppm": (b"P6\n1 1\n65535\n" + b"\xff\xff\x80\x00\x00\x00", "16-bit scaled to 8"),
    "int32.tif": (saved(Image.fromarray((RAMP * 1e9).astype(np.int32)), "TIFF"), "32-bit values"),
    "negative-int32.tif": (saved(Image.fromarray((RAMP * 9 - 4).astype(np.int32)), "TIFF"), "32-bit values"),
    "float.tif": (float_tiff(RAMP), "float values 0 to 1"),
    "float-wide.tif": (float_tiff(RAMP * 3e38 - 1e38), "stretched"),
    "float-holes.tif": (float_tiff(np.where(RAMP > 0.5, np.nan, RAMP)), "NaN or infinite"),
    "float-all-nan.tif": (float_tiff(RAMP * np.nan), K.CORRUPT),
    "float.pfm": (b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0.0, 1.0), "float values"),
    "cmyk.jpg": (saved(noise("CMYK"), "JPEG"), "CMYK converted"),
    "cmyk.tif": (saved(noise("CMYK"), "TIFF"), "CMYK converted"),
    "lab.tif": (saved(Image.new("LAB", SIZE, (128, 128, 128)), "TIFF"), "LAB converted"),
    # more than one picture in a file
    "animated.gif": (gif(12), "first of 12 frames"),
    "animated.webp": (saved(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)]), "first of 2 frames"),
    "animated.png": (saved(noise(), "PNG", save_all=True, append_images=[noise(seed=1)]), "first of 2 frames"),
    "pages.tif": (saved(noise(), "TIFF", save_all=True, append_images=[noise(seed=1)]), "first of 2 frames"),
    "large-pages.tif": (
        saved(noise(), "TIFF", save_all=True, append_images=[noise(seed=1)]) + bytes(2 << 20),
        "first of several frames",
    ),
    "large.gif": (gif(2) + bytes(9 << 20), "first frame judged, later ones were not looked for"),
    "two.mpo": (saved(noise(), "MPO", save_all=True, append_images=[noise(seed=1)]), "first of 2 frames"),
    "second-frame-cut.gif": (gif(2)[:-200], "first"),
    "loop.tif": (looping_tiff(), None),
    # metadata
    **{f"orientation-{n}.jpg": (jpeg_with_exif(n), f"EXIF orientation {n} applied") for n in range(2, 9)},
    "orientation-1.jpg": (jpeg_with_exif(1), None),
    "orientation-99.jpg": (jpeg_with_exif(99), None),
    "broken-exif.jpg": (jpeg_with_exif(6, broken=True), ""),
    "broken-icc.jpg": (saved(noise(), "JPEG", icc_profile=b"no profile at all"), "ICC profile of 17 bytes ignored"),
    "broken-icc.png": (png(4, 4, chunk(b"iCCP", b"x\0\0" + b"not zlib")), ""),
    "text.png": (png(4, 4, chunk(b"tEXt", b"Comment\0" + b"x" * 500_000)), None),
    "text-bomb.png": (png(4, 4, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300_000_000), 9))), K.CORRUPT),
    "icc-bomb.png": (png(4, 4, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(300_000_000), 9))), ""),
    "trailing-bytes.jpg": (JPEG + b"PK\3\4 a second file behind the picture", None),
    # sizes
    "one-pixel.png": (png(1, 1), None),
    "strip.png": (png(1, 10_000), K.TOO_ELONGATED),
    "zero-width.png": (png(0, 5), K.CORRUPT),
    "zero-height.bmp": (patched(BMP, 22, struct.pack("<i", 0)), K.CORRUPT),
    "bomb.png": (png(50_000, 50_000, rows=b""), K.TOO_MANY_PIXELS),
    "bomb-just-over.png": (png(10_000, 9_000, rows=b""), K.TOO_MANY_PIXELS),
    "bomb.gif": (patched(GIF, 6, b"\xff\xff\xff\xff"), K.TOO_MANY_PIXELS),
    "bomb.ppm": (b"P6 100000 100000 255\n", K.TOO_MANY_PIXELS),
    "bomb.bmp": (patched(BMP, 18, struct.pack("<ii", 60_000, 60_000)), K.TOO_MANY_PIXELS),
    "wide.ppm": (b"P5 70000 400 255\n", K.TOO_LARGE),
    "negative-height.bmp": (patched(BMP, 22, struct.pack("<i", -24)), None),  # top-down rows, legal
    "scan-bomb.jpg": (scan_bomb(), K.CORRUPT),
    # cut off
    "empty.jpg": (b"", K.EMPTY),
    "one-byte.jpg": (b"\xff", K.NOT_AN_IMAGE),
    "half.jpg": (JPEG[: len(JPEG) // 2], K.TRUNCATED),
    "header-only.jpg": (JPEG[:20], K.CORRUPT),
    "half.png": (PNG[: len(PNG) // 2], K.TRUNCATED),
    "signature-only.png": (PNG[:8], K.CORRUPT),
    "no-pixels.png": (PNG[: IDAT - 4] + chunk(b"IEND", b""), (K.TRUNCATED, K.CORRUPT)),
    "half.gif": (GIF[: len(GIF) // 2], K.TRUNCATED),
    "half.bmp": (BMP[: len(BMP) // 2], K.TRUNCATED),
    "half.tif": (TIFF[: len(TIFF) // 2], (K.TRUNCATED, K.CORRUPT)),
    "half.webp": (WEBP[: len(WEBP) // 2], (K.TRUNCATED, K.CORRUPT)),
    "half.ppm": (saved(noise(), "PPM")[:100], K.TRUNCATED),
    "half-lzw.tif": (saved(noise(), "TIFF", compression="tiff_lzw")[:400], (K.TRUNCATED, K.CORRUPT)),
    # damaged
    "bad-header-crc.png": (patched(PNG, 29, b"\0\0\0\0"), K.CORRUPT),
    "bad-pixel-crc.png": (patched(PNG, len(PNG) - 16, b"\0\0\0\0"), None),  # zlib's own checksum still holds
    "bad-zlib.png": (patched(PNG, IDAT + 4, b"\xff" * 20), (K.CORRUPT, K.TRUNCATED)),
    "huge-chunk.png": (patched(PNG, IDAT - 4, b"\x7f\xff\xff\xff"), ""),
    "bad-depth.png": (png(4, 4, depth=7, rows=b"\0" * 100), K.CORRUPT),
    "bad-tags.tif": (patched(TIFF, struct.unpack_from("<I", TIFF, 4)[0] + 2, b"\xff" * 40), K.CORRUPT),
    "bad-offset.tif": (patched(TIFF, 4, b"\xff\xff\xff\x7f"), K.CORRUPT),
    "bad-compression.bmp": (patched(BMP, 30, struct.pack("<I", 77)), K.CORRUPT),
    "bad-size.ppm": (b"P6 x y 255\n", K.CORRUPT),
    "bad-pixels.pgm": (b"P2\n2 2\n255\n1 2 3 nonsense\n", K.CORRUPT),
    "bad-riff.webp": (patched(WEBP, 12, b"JUNK"), K.CORRUPT),
    "random.jpg": (np.random.default_rng(1).bytes(4096), K.NOT_AN_IMAGE),
    "noise-behind-magic.gif": (b"GIF89a" + np.random.default_rng(2).bytes(400), ""),
    # names that lie, and other formats
    "really-png.jpg": (PNG, "a PNG despite its name"),
    "really-jpeg.txt": (JPEG, "a JPEG despite its name"),
    "no-suffix": (JPEG, None),
    "text.jpg": (b"just some words\n", K.NOT_AN_IMAGE),
    "notes.txt": (b"just some words\n", K.NOT_AN_IMAGE),
    "page.html": (b"<!doctype html><title>x</title>", K.NOT_AN_IMAGE),
    "paper.pdf": (b"%PDF-1.7\n", K.UNSUPPORTED_FORMAT),
    "layers.psd": (b"8BPS\0\1" + bytes(100), K.UNSUPPORTED_FORMAT),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", K.UNSUPPORTED_FORMAT),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", K.UNSUPPORTED_FORMAT),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(100), K.UNSUPPORTED_FORMAT),
    "site.ico": (saved(noise(size=(16, 16)), "ICO"), K.UNSUPPORTED_FORMAT),
    "old.tga": (saved(noise(), "TGA"), K.NOT_AN_IMAGE),
    "naïve 図 \n line.png": (PNG, None),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `malformed` on every case: (file name, bytes, what must come)."""
    if "malformed" in metafunc.fixturenames:
        metafunc.parametrize("malformed", [(name, *case) for name, case in CASES.items()], ids=list(CASES))


@pytest.fixture(scope="session")
def malformed_cases() -> dict[str, tuple[bytes, object]]:
    return dict(CASES)


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Encode a picture: encoded(image, "PNG", **options)."""
    return saved


@pytest.fixture(scope="session")
def random_picture() -> Callable[..., Image.Image]:
    return noise


class RedDetector:
    """Flags pictures that are red in the mean; the part of `Detector` that the command line uses.

    `answers` many verdicts are given before `failure` is raised; calibrated=False judges nothing.
    """

    def __init__(
        self,
        calibrated: bool = True,
        answers: int | None = None,
        failure: Exception | None = None,
        threaded: bool = True,
    ) -> None:
        self.policy = Policy.builtin("demo")
        self.calibration = object() if calibrated else None
        self.answers, self.failure, self.threaded = answers, failure, threaded
        self.seen = 0

    def screen_batches(self, images: Iterable[Image.Image], batch_size: int | None = None) -> Iterator[Verdict]:
        source = prefetch(images) if self.threaded else iter(images)
        while batch := list(islice(source, batch_size)):
            for image in batch:
                if self.seen == self.answers:
                    if self.failure is not None:
                        raise self.failure
                    return
                self.seen += 1
                yield self.judge(image)

    def judge(self, image: Image.Image) -> Verdict:
        names = [category.name for category in self.policy.categories]
        red, green, blue = np.asarray(image, dtype=np.float64).reshape(-1, 3).mean(0)
        flagged = bool(self.calibration and red > 200 and green < 100 and blue < 100)
        score = (0.995 if flagged else 0.25) if self.calibration else None
        box = (0, 0, image.width, image.height)
        return Verdict(
            flagged=flagged,
            action="block" if flagged or not self.calibration else "allow",
            found=(names[0],) if flagged else (),
            scores={name: score if name == names[0] or score is None else 0.125 for name in names},
            p_value=None if score is None else 1 - score,
            distances={name: 0.5 + 0.01 * i for i, name in enumerate(names)},
            statistics={name: 0.4 + 0.01 * i for i, name in enumerate(names)},
            regions=(Region(names[0], score, box, 1.0, (box,), image.size),) if flagged else (),
            patch_scores=np.full((len(names), 1), 0.5, dtype=np.float32),
            patch_levels=np.full(1, 0.5) if self.calibration else None,
            boxes=np.array([box]),
            size=image.size,
            error=None if self.calibration else ScreenError("uncalibrated", "no calibration"),
            fingerprint="f" * 64,
        )


@pytest.fixture
def red_detector() -> type[RedDetector]:
    return RedDetector


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and the current one, with red.png, blue.jpg, sub/red.png (another red) and notes.txt."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 48), (255, 0, 0)).save(folder / "red.png")
    Image.new("RGB", (48, 48), (0, 0, 255)).save(folder / "blue.jpg")
    Image.new("RGB", (32, 32), (250, 10, 10)).save(folder / "sub" / "red.png")
    (folder / "notes.txt").write_text("no picture\n")
    monkeypatch.chdir(tmp_path)
    return folder
