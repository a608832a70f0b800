"""Reports are valid whatever is in them, and hold every outcome."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from guardcore.images.opening import ImageError, ImageErrorKind
from guardcore.screening.inputs import Inputs, discover
from guardcore.screening.outcome import Outcome
from guardcore.screening.output_pictures import OutputClash, OutputPictures, mirrored
from guardcore.screening.report import CsvWriter, JsonWriter, MissingExtra, ParquetWriter, TableWriter, Tally, record

KEYS = [
    "schema",
    "path",
    "status",
    "action",
    "flagged",
    "found",
    "category",
    "score",
    "p_value",
    "scores",
    "distances",
    "statistics",
    "certificates",
    "regions",
    "format",
    "size",
    "notes",
    "error",
    "duplicate_of",
    "seconds",
    "heatmap",
    "redacted",
    "fingerprint",
]


@pytest.fixture
def outcomes(red_detector: Callable[..., object]) -> list[Outcome]:
    judge, blank = red_detector(), red_detector(calibrated=False)
    red, blue = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    return [
        Outcome(
            "a/red.png", judge.judge(red), format="PNG", notes=("first of 2 frames judged", "CMYK converted to RGB")
        ),
        Outcome('a/b, "c"\n[red]d\x1b[0m.png', judge.judge(blue), format="PNG", seconds=0.12345),
        Outcome("broken.jpg", error=ImageError(ImageErrorKind.TRUNCATED, "cut"), on_error="review"),
        Outcome("blank.png", blank.judge(red), format="PNG"),
        Outcome("twin.png", judge.judge(red), format="PNG", duplicate_of="a/red.png", heatmap="heat/x.png"),
    ]


def written(writer: object, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        writer.write(outcome)
    writer.close()


def test_every_record_has_every_key(outcomes: list[Outcome]) -> None:
    assert [list(record(outcome)) for outcome in outcomes] == [KEYS] * 5


def test_record_of_a_flagged_picture(outcomes: list[Outcome]) -> None:
    row = record(outcomes[0])
    assert (row["status"], row["action"], row["flagged"]) == ("flagged", "block", True)
    assert (row["category"], row["score"], row["p_value"]) == ("weapons", 0.995, pytest.approx(0.005))
    assert row["regions"] == [{"category": "weapons", "score": 0.995, "box": [0, 0, 8, 6], "area": 1.0}]
    assert (row["size"], row["error"]) == ([8, 6], None)


def test_what_could_not_be_judged_is_neither_flagged_nor_clean(outcomes: list[Outcome]) -> None:
    broken, blank = record(outcomes[2]), record(outcomes[3])
    assert (broken["status"], broken["flagged"], broken["action"]) == ("error", None, "review")
    assert broken["error"] == {"kind": "truncated", "message": "cut"}
    assert (blank["status"], blank["flagged"], blank["score"]) == ("uncalibrated", None, None)
    assert blank["error"]["kind"] == "uncalibrated"
    assert blank["distances"]["weapons"] == 0.5  # these are known all the same


def test_json_lines_are_strict(outcomes: list[Outcome]) -> None:
    verdict = outcomes[0].verdict
    outcomes[0] = replace(outcomes[0], verdict=replace(verdict, distances=dict.fromkeys(verdict.distances, math.nan)))
    stream = io.StringIO()
    written(JsonWriter(stream), outcomes)
    lines = stream.getvalue().split("\n")
    assert lines[-1] == ""
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines[:-1]]
    assert [row["path"] for row in rows] == [outcome.path for outcome in outcomes]
    assert set(rows[0]["distances"].values()) == {None}


def test_csv_reads_back(outcomes: list[Outcome]) -> None:
    stream = io.StringIO()
    written(CsvWriter(stream, ("weapons", "drugs")), outcomes)
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert [row["path"] for row in rows] == [outcome.path for outcome in outcomes]
    assert rows[0]["score:weapons"] == "0.995"
    assert rows[0]["regions"] == "weapons 0.995 at 0,0,8,6"
    assert rows[0]["notes"] == "first of 2 frames judged; CMYK converted to RGB"
    assert (rows[2]["error_kind"], rows[2]["score:weapons"], rows[2]["width"]) == ("truncated", "", "")


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_no_csv_cell_begins_like_a_formula(outcomes: list[Outcome], start: str) -> None:
    stream, path = io.StringIO(newline=""), f"{start}HYPERLINK(1).png"
    written(
        CsvWriter(stream, ("weapons", "drugs")),
        [replace(outcomes[2], path=path, duplicate_of=path, error=ImageError(ImageErrorKind.TRUNCATED, f"{start}1"))],
    )
    row = next(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert row["path"] == row["duplicate_of"] == f"./{path}"  # still the same file
    assert row["error_message"] == f"'{start}1"


def test_parquet_reads_back(outcomes: list[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("guardcore.screening.report._ROW_GROUP", 2)
    written(ParquetWriter(tmp_path / "r.parquet"), outcomes)
    rows = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [list(row) for row in rows] == [KEYS] * 5
    assert dict(rows[0]["scores"])["weapons"] == 0.995
    assert rows[0]["regions"][0]["box"] == [0, 0, 8, 6]
    assert rows[2]["error"] == {"kind": "truncated", "message": "cut"}


def test_parquet_without_rows_is_a_file(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    written(ParquetWriter(tmp_path / "r.parquet"), [])
    assert parquet.read_table(tmp_path / "r.parquet").num_rows == 0


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guardcore.screening.report.find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'guardcore-vlm\[parquet\]'"):
        ParquetWriter(tmp_path / "r.parquet")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_fits_and_hides_nothing(width: int, outcomes: list[Outcome]) -> None:
    console = Console(file=io.StringIO(), width=width)
    written(TableWriter(console), outcomes)
    text = console.file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "\x1b" not in text  # a file name must not drive the terminal
    if width == 200:
        assert r"[red]d\x1b[0m.png" in text  # nor be read as markup
        for word in ("BLOCK", "uncalibrated", "truncated: cut", "same file as a/red.png", "first of 2 frames"):
            assert word in text


def test_an_empty_table_says_nothing() -> None:
    console = Console(file=io.StringIO())
    written(TableWriter(console), [])
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(
    ("which", "code"), [([], 0), ([1], 0), ([0], 1), ([2], 3), ([3], 3), ([1, 2], 3), ([0, 2, 3], 1)]
)
def test_a_finding_comes_before_an_incomplete_run(which: list[int], code: int, outcomes: list[Outcome]) -> None:
    tally = Tally()
    for index in which:
        tally.add(outcomes[index])
    assert tally.exit_code == code


def test_a_picture_that_was_not_written_makes_the_run_incomplete(outcomes: list[Outcome]) -> None:
    tally = Tally()
    tally.add(replace(outcomes[1], unwritten=True))
    assert tally.exit_code == 3
    assert tally.summary(1.25) == "1 input: 0 flagged, 1 clean, 1 could not be written (1.2 s)"


def test_names_of_written_pictures_never_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outside = "/elsewhere/x.png"
    paths = ["a/x.png", "b/x.png", "a/x.jpg", "a/x.jpg.png", "A/X.PNG", outside, "elsewhere/x.png", "../up.png"]
    places = mirrored(paths)
    assert list(places) == paths
    assert [str(place) for place in places.values()][:7] == [
        "a/x.png",
        "b/x.png",
        "a/x.jpg.png",
        "a/x.jpg-2.png",
        "A/X-2.png",  # file systems that ignore case would lose one of them
        "elsewhere/x.png",
        "elsewhere/x-2.png",
    ]
    assert not any(place.is_absolute() or ".." in place.parts for place in places.values())


def test_pictures_are_written_where_they_are_said_to_be(pictures: Path, red_detector: Callable[..., object]) -> None:
    inputs = discover(["pictures"])
    sink = OutputPictures(inputs, Path("heat"), Path("safe"))
    judge = red_detector()
    for name in ("red.png", "blue.jpg"):
        with Image.open(pictures / name) as file:
            image = file.convert("RGB")
        found = sink.write(f"pictures/{name}", image, judge.judge(image))
        assert Path(found["heatmap"]).is_file()
        assert ("redacted" in found) == (name == "red.png")  # a clean picture needs no redaction
    with Image.open("safe/pictures/red.png") as safe:
        assert safe.size == (64, 48)
        assert safe.getextrema() == ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize("target", ["pictures", "pictures/heat", "pictures/sub/../heat"])
def test_outputs_stay_out_of_screened_folders(target: str, pictures: Path) -> None:
    with pytest.raises(OutputClash, match="next run would screen it"):
        OutputPictures(discover(["pictures"]), Path(target), None)


def test_outputs_never_hit_an_input(pictures: Path) -> None:
    Path("heat/pictures").mkdir(parents=True)
    Path("heat/pictures/red.png").write_bytes(b"precious")
    inputs = discover(["pictures", "heat/pictures/red.png"])
    with pytest.raises(OutputClash, match="would be overwritten"):
        OutputPictures(inputs, Path("heat"), None)


def test_heat_maps_and_redactions_need_two_folders() -> None:
    with pytest.raises(OutputClash, match="two folders"):
        OutputPictures(Inputs(), Path("out"), Path("./out"))
