"""Every way a picture can be odd or broken: it is judged with a note, or refused by a named error, and never hangs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guardcore.images.opening import ImageError, ImageErrorKind, ImageLimits, open_image
from guardcore.images.pillow_warnings import collected_warnings, silence_decoders
from guardcore.images.pixels import Alpha, to_rgb

K = ImageErrorKind


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Fail a test that hangs instead of hanging the suite."""

    def stop(*_: object) -> None:
        raise AssertionError("this picture hung")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)


def expected(outcome: object, answer: object) -> bool:
    if outcome == "":  # either way is fine, as long as it is one of the two
        return True
    if isinstance(outcome, tuple):
        return answer in outcome
    if isinstance(outcome, str) and isinstance(answer, tuple):
        return any(outcome in note for note in answer)
    return answer == (() if outcome is None else outcome)


def opened(source: Path | bytes, **options: object) -> tuple[str, ...] | ImageErrorKind:
    """The notes of a picture that was judged, or the kind of error of one that was not."""
    try:
        loaded = open_image(source, **options)
    except ImageError as error:
        lines = error.message.splitlines()
        return error.kind if len(lines) == 1 else pytest.fail(f"not one line: {error.message!r}")
    assert loaded.image.mode == "RGB"
    return loaded.notes


def test_the_suite_is_large_enough(malformed_cases: dict[str, object]) -> None:
    assert len(malformed_cases) >= 60


def test_judged_with_notes_or_refused_by_name(
    malformed: tuple[str, bytes, object], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    name, data, outcome = malformed
    path = tmp_path / name
    path.write_bytes(data)
    answer = opened(path)
    assert expected(outcome, answer), f"{answer}, expected {outcome!r}"
    assert not recwarn.list  # nothing stray on anybody's terminal


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_gives_upright_pixels(orientation: int, encoded: Callable[..., bytes]) -> None:
    # A corner marker in each quadrant; what a viewer shows for tag o is PIL's own exif_transpose.
    from PIL import ImageOps

    stored = Image.new("RGB", (6, 4), "white")
    stored.putpixel((0, 0), (255, 0, 0))
    stored.putpixel((5, 3), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    stored.getexif()[0x0112] = orientation
    shown = ImageOps.exif_transpose(stored)
    assert open_image(data).image.tobytes() == shown.tobytes()


def test_a_tiff_is_turned_once(encoded: Callable[..., bytes], random_picture: Callable[..., Image.Image]) -> None:
    # Pillow's TIFF loader turns pictures by itself since version 10.
    picture = random_picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = open_image(encoded(picture, "TIFF", exif=exif))
    assert loaded.image.tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert loaded.notes == ("EXIF orientation 6 applied",)


@pytest.mark.parametrize(
    ("alpha", "color"), [(Alpha.WHITE, (255, 127, 127)), (Alpha.BLACK, (128, 0, 0)), (Alpha.DROP, (255, 0, 0))]
)
def test_half_transparent_red(alpha: Alpha, color: tuple[int, int, int], encoded: Callable[..., bytes]) -> None:
    loaded = open_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"), alpha=alpha)
    assert loaded.image.getpixel((0, 0)) == color
    assert "100 % of the pixels" in loaded.notes[0]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_8_bit_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    picture, _ = to_rgb(image)
    assert (picture.mode, picture.size) == ("RGB", (3, 2))


def test_deep_gray_keeps_its_ends() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    picture, notes = to_rgb(Image.fromarray(values))
    assert [picture.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
    assert notes == ("16-bit scaled to 8",)


def test_extreme_floats_are_stretched_not_overflown() -> None:
    picture, _ = to_rgb(Image.fromarray(np.array([[-3e38, 0, 3e38]], dtype=np.float32)))
    assert [picture.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_a_palette_entry_is_transparent_by_index(encoded: Callable[..., bytes]) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    loaded = open_image(encoded(image, "PNG", transparency=1))
    assert [loaded.image.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    assert "50 % of the pixels" in loaded.notes[0]


def test_adobe_cmyk_is_not_inverted(encoded: Callable[..., bytes]) -> None:
    # Pillow writes the Adobe marker, under which stored values are inverted: no ink must come back as white.
    loaded = open_image(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert min(loaded.image.getpixel((4, 4))) > 250


def test_srgb_profile_is_no_news(encoded: Callable[..., bytes], random_picture: Callable[..., Image.Image]) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encoded(random_picture(), "PNG", icc_profile=profile)).notes == ()


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        (ImageLimits(max_bytes=100), K.TOO_MANY_BYTES),
        (ImageLimits(max_pixels=40 * 24 - 1), K.TOO_MANY_PIXELS),
        (ImageLimits(max_side=39), K.TOO_LARGE),
        (ImageLimits(max_aspect=1.5), K.TOO_ELONGATED),
    ],
    ids=lambda value: value.value if isinstance(value, ImageErrorKind) else "",
)
def test_limits(
    limits: ImageLimits,
    kind: ImageErrorKind,
    tmp_path: Path,
    encoded: Callable[..., bytes],
    random_picture: Callable[..., Image.Image],
) -> None:
    data = encoded(random_picture(), "PNG")
    (tmp_path / "x.png").write_bytes(data)
    assert opened(data, limits=limits) == opened(tmp_path / "x.png", limits=limits) == kind
    exact = ImageLimits(max_bytes=len(data), max_pixels=40 * 24, max_side=40, max_aspect=40 / 24)
    assert opened(data, limits=exact) == ()


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_side", "max_aspect"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_senseless_limits_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ImageLimits(**{name: value})


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.relpath(tmp_path / "socket.png"))  # relative: a socket's name is short
    found = {path.name: opened(path) for path in tmp_path.iterdir()}
    listener.close()
    assert found == {
        "pipe.png": K.NOT_A_FILE,  # and it did not wait for a writer
        "folder.png": K.NOT_A_FILE,
        "socket.png": K.NOT_A_FILE,
        "link.png": K.NOT_FOUND,
        "self.png": K.UNREADABLE,  # a loop of links
    }
    assert opened(Path("/dev/zero")) == K.NOT_A_FILE


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nothing.png", K.NOT_FOUND),
        ("", K.NOT_FOUND),
        ("a\0b.png", K.UNREADABLE),
        ("x" * 300 + ".png", K.UNREADABLE),
        ("http://example.org/x.png", K.REMOTE),
        ("HTTPS://example.org/x.png", K.REMOTE),
        ("s3://bucket/x.png", K.REMOTE),
        ("file:///etc/passwd", K.REMOTE),
        ("data:image/png;base64,AAAA", K.REMOTE),
    ],
)
def test_names_that_lead_nowhere(name: str, kind: ImageErrorKind) -> None:
    assert opened(name) == kind  # type: ignore[arg-type]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"x")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("guardcore.images.opening.os.open", refuse)  # chmod would not stop root
    assert opened(path) == K.PERMISSION_DENIED


def test_a_file_swapped_for_a_pipe_after_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regular, pipe = tmp_path / "x.png", tmp_path / "pipe"
    regular.write_bytes(b"x")
    os.mkfifo(pipe)
    really_open = os.open
    monkeypatch.setattr("guardcore.images.opening.os.open", lambda _path, flags: really_open(pipe, flags))
    assert opened(regular) == K.NOT_A_FILE


def test_out_of_memory_is_named(monkeypatch: pytest.MonkeyPatch, encoded: Callable[..., bytes]) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    data = encoded(Image.new("RGB", (2, 2)), "PNG")
    monkeypatch.setattr("guardcore.images.opening.to_rgb", exhausted)
    assert opened(data) == K.OUT_OF_MEMORY


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_random_damage_is_judged_or_named(
    kind: str,
    encoded: Callable[..., bytes],
    random_picture: Callable[..., Image.Image],
    recwarn: pytest.WarningsRecorder,
) -> None:
    # A small fuzz: flipped bytes and cuts. Only ImageError may come out, and no warning.
    sound = encoded(random_picture(), kind)
    random = np.random.default_rng(7)
    for _ in range(60):
        data = bytearray(sound[: random.integers(1, len(sound) + 1)])
        for at in random.integers(0, len(data), 5):
            data[at] = random.integers(0, 256)
        opened(bytes(data))
    assert not recwarn.list


def test_threads_do_not_mix_their_warnings(tmp_path: Path, malformed_cases: dict[str, tuple[bytes, object]]) -> None:
    noisy, quiet = malformed_cases["broken-exif.jpg"][0], malformed_cases["plain.png"][0]
    before = (warnings.showwarning, list(warnings.filters))
    with ThreadPoolExecutor(8) as pool:
        notes = list(pool.map(lambda data: open_image(data).notes, [noisy, quiet] * 100))
    assert set(notes[1::2]) == {()}
    assert len(set(notes[0::2])) == 1
    assert notes[0] != ()
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_warnings_of_other_threads_go_their_usual_way() -> None:
    with warnings.catch_warnings(record=True) as usual, collected_warnings() as caught:
        warnings.simplefilter("always")
        other = threading.Thread(target=lambda: warnings.warn("elsewhere", stacklevel=1))
        other.start()
        other.join()
        warnings.warn("here", stacklevel=1)
    assert caught == ["here"]
    assert [str(each.message) for each in usual] == ["elsewhere"]


def test_a_host_that_turns_warnings_into_errors_changes_nothing(
    malformed_cases: dict[str, tuple[bytes, object]],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(malformed_cases["broken-exif.jpg"][0]) != K.CORRUPT


def test_decoders_can_be_silenced(encoded: Callable[..., bytes], capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(Image.new("1", (64, 64)), "TIFF", compression="group4"))
    data[8:12] = b"\xff" * 4  # the first bytes of the strip
    silence_decoders()
    opened(bytes(data))
    assert capfd.readouterr().err == ""


def test_opening_needs_no_torch() -> None:
    import subprocess

    code = "import sys, guardcore.images.opening; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
