"""The command line as a user meets it: output, exit codes, one-line errors."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from guardcore import __version__
from guardcore.cli.commands import app
from guardcore.cli.screen import Setup


@pytest.fixture
def run(red_detector: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """run("screen", "x.png", input=b"...", detector=...): the command with a detector that needs no model."""

    def invoke(*arguments: str, input: bytes | None = None, detector: object = None) -> Result:  # noqa: A002
        judge = red_detector() if detector is None else detector
        monkeypatch.setattr("guardcore.cli.screen.build_detector", lambda _setup: judge)
        return CliRunner().invoke(app, list(arguments), input=input)

    return invoke


def rows(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_malformed_input_has_its_line(
    run: Callable[..., Result], malformed_cases: dict[str, tuple[bytes, object]], tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, (data, _) in malformed_cases.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.png").symlink_to("nowhere")
    result = run("screen", str(folder), "--format", "json")
    found = rows(result)
    assert [row["path"] for row in found] == sorted(str(path) for path in folder.iterdir())
    assert len(found) == len(malformed_cases) + 2
    for row in found:
        assert row["status"] in {"clean", "flagged"} or row["error"]["kind"], row
    assert result.exit_code in (1, 3)


def test_json_lines_of_a_folder(run: Callable[..., Result], pictures: Path) -> None:
    result = run("screen", "pictures", "-f", "json")
    assert [(row["path"], row["status"]) for row in rows(result)] == [
        ("pictures/blue.jpg", "clean"),
        ("pictures/notes.txt", "error"),
        ("pictures/red.png", "flagged"),
        ("pictures/sub/red.png", "flagged"),
    ]
    assert rows(result)[1]["error"]["kind"] == "not-an-image"
    assert "4 inputs: 2 flagged, 1 clean, 1 could not be judged" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["pictures/blue.jpg"], 0),
        (["pictures/red.png"], 1),
        (["pictures/blue.jpg", "missing.png"], 3),
        (["pictures"], 1),  # flagged and broken: the finding counts
        ([], 2),
        (["--format", "xml", "pictures"], 2),
        (["--batch-size", "0", "pictures"], 2),
        (["--max-pixels", "10", "pictures/red.png"], 3),
    ],
)
def test_exit_codes(arguments: list[str], code: int, run: Callable[..., Result], pictures: Path) -> None:
    assert run("screen", *arguments).exit_code == code


def test_the_table_is_for_people(run: Callable[..., Result], pictures: Path) -> None:
    out = run("screen", "pictures", "missing.png").stdout
    for word in (
        "BLOCK",
        "clean",
        "weapons",
        "0.995",
        "pictures/sub/red.png",
        "not-an-image",
        "not-found: no such file",
    ):
        assert word in out


def test_quiet_leaves_standard_error_empty(run: Callable[..., Result], pictures: Path) -> None:
    (pictures / ".hidden").write_bytes(b"")
    assert run("screen", "pictures", "-q").stderr == ""
    assert "1 hidden entry left out" in run("screen", "pictures").stderr


def test_csv_to_a_file(run: Callable[..., Result], pictures: Path) -> None:
    result = run("screen", "pictures", "-f", "csv", "-o", "report.csv")
    assert result.stdout == ""
    with open("report.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [row["status"] for row in found] == ["clean", "error", "flagged", "flagged"]


def test_parquet(run: Callable[..., Result], pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run("screen", "pictures", "-f", "parquet", "-o", "r.parquet").exit_code == 1
    assert parquet.read_table("r.parquet").num_rows == 4
    refused = run("screen", "pictures", "-f", "parquet")
    assert refused.exit_code == 2
    assert "expected --output FILE" in refused.stderr
    monkeypatch.setattr("guardcore.screening.report.find_spec", lambda _name: None)
    missing = run("screen", "pictures", "-f", "parquet", "-o", "r.parquet")
    assert missing.exit_code == 2
    assert "pip install 'guardcore-vlm[parquet]'" in missing.stderr


@pytest.mark.parametrize(
    ("data", "options"), [(b"pictures/red.png\nmissing.png\n", []), (b"pictures/red.png\0missing.png", ["-0"])]
)
def test_a_list_on_standard_input(data: bytes, options: list[str], run: Callable[..., Result], pictures: Path) -> None:
    result = run("screen", "-", *options, "-f", "json", input=data)
    assert [row["path"] for row in rows(result)] == ["pictures/red.png", "missing.png"]


@pytest.mark.parametrize("arguments", [["-"], ["empty"]])
def test_nothing_to_screen_is_no_success(arguments: list[str], run: Callable[..., Result], pictures: Path) -> None:
    Path("empty").mkdir()
    result = run("screen", *arguments, input=b"")
    assert result.exit_code == 2
    assert "nothing to screen" in result.stderr


def test_heat_maps_and_redactions(run: Callable[..., Result], pictures: Path) -> None:
    found = rows(run("screen", "pictures", "-f", "json", "--heatmaps", "heat", "--redact", "safe"))
    assert [row["heatmap"] for row in found] == [
        "heat/pictures/blue.jpg.png",
        None,
        "heat/pictures/red.png",
        "heat/pictures/sub/red.png",
    ]
    assert [row["redacted"] for row in found] == [None, None, "safe/pictures/red.png", "safe/pictures/sub/red.png"]
    assert all(Path(path).is_file() for row in found for path in (row["heatmap"], row["redacted"]) if path)


@pytest.mark.parametrize("option", ["--heatmaps", "--redact", "--output"])
def test_outputs_in_a_screened_folder_are_refused(option: str, run: Callable[..., Result], pictures: Path) -> None:
    result = run("screen", "pictures", option, "pictures/out")
    assert result.exit_code == 2
    assert "next run would screen it" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_input_is_never_overwritten_by_the_report(run: Callable[..., Result], pictures: Path) -> None:
    before = (pictures / "red.png").read_bytes()
    assert run("screen", "pictures/red.png", "-f", "json", "-o", "pictures/red.png").exit_code == 2
    assert (pictures / "red.png").read_bytes() == before


def test_without_calibration_nothing_is_called_clean(
    run: Callable[..., Result], pictures: Path, red_detector: Callable[..., object]
) -> None:
    result = run(
        "screen", "pictures/blue.jpg", "pictures/red.png", "-f", "json", detector=red_detector(calibrated=False)
    )
    assert result.exit_code == 3
    assert [row["status"] for row in rows(result)] == ["uncalibrated"] * 2
    assert result.stderr.count("guardcore calibrate BENIGN_DIR --encoder builtin --policy demo") == 1


def test_a_detector_that_fails_leaves_every_line(
    run: Callable[..., Result], pictures: Path, red_detector: Callable[..., object]
) -> None:
    failing = red_detector(answers=1, failure=RuntimeError("CUDA out of memory"))
    result = run("screen", "pictures", "-f", "json", detector=failing)
    assert [row["status"] for row in rows(result)] == ["clean", "error", "error", "error"]
    assert result.exit_code == 3


def test_a_bug_shows_its_traceback_and_not_the_code_of_a_finding(
    run: Callable[..., Result], pictures: Path, red_detector: Callable[..., object]
) -> None:
    result = run("screen", "pictures", "-f", "json", detector=red_detector(answers=1, failure=KeyError("oops")))
    assert result.exit_code == 70
    assert "KeyError: 'oops'" in result.stderr
    assert len(rows(result)) == 1  # what was judged before stands


def test_an_interrupt_leaves_a_valid_report(
    run: Callable[..., Result], pictures: Path, red_detector: Callable[..., object]
) -> None:
    interrupted = red_detector(answers=1, failure=KeyboardInterrupt())
    result = run("screen", "pictures", "-f", "json", "-o", "r.jsonl", detector=interrupted)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert [json.loads(line)["path"] for line in Path("r.jsonl").read_text().splitlines()] == ["pictures/blue.jpg"]


def test_an_interrupted_parquet_file_can_be_read(
    run: Callable[..., Result], pictures: Path, red_detector: Callable[..., object]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    interrupted = red_detector(answers=1, failure=KeyboardInterrupt())
    run("screen", "pictures", "-f", "parquet", "-o", "r.parquet", detector=interrupted)
    assert parquet.read_table("r.parquet").num_rows == 1


def test_an_unwritable_report_is_one_line(run: Callable[..., Result], pictures: Path) -> None:
    result = run("screen", "pictures", "-f", "json", "-o", "no/such/folder/r.jsonl")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--encoder", "magic"], "open_clip:MODEL/PRETRAINED"),
        (["--policy", "missing.yaml"], "missing.yaml"),
        (["--patches", "hexagons"], "tokens"),
        (["--scoring", "best"], "joint"),
        (["--calibration", "missing.json"], "missing.json"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], words: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options[0] != "--encoder":  # anything else wrong must be told before a model is loaded
        monkeypatch.setattr("guardcore.encoders.load_encoder", pytest.fail)
    result = CliRunner().invoke(app, ["screen", "pictures", *options])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("guardcore:")]) == 1


def test_the_policy_follows_the_encoder() -> None:
    assert Setup().policy_name == "demo"
    assert Setup(encoder="open_clip:ViT-B-32/openai").policy_name == "default"
    assert Setup(policy="mine.yaml").policy_name == "mine.yaml"


def test_calibrate_writes_what_it_measured(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]
) -> None:
    seen: list[tuple[int, int]] = []

    def fake(_detector: object, images: object, target_fpr: float | None) -> object:
        seen.extend(image.size for image in images)
        save = lambda path: Path(path).write_text("{}")  # noqa: E731
        return SimpleNamespace(save=save, count=len(seen), target_fpr=target_fpr)

    monkeypatch.setattr("guardcore.detector.conformal.calibrate", fake)
    result = run("calibrate", "pictures", "--target-fpr", "0.25", "-o", "c.json")
    assert result.exit_code == 0, result.output
    assert Path("c.json").read_text() == "{}"
    assert seen == [(48, 48), (64, 48), (32, 32)]
    assert "pictures/notes.txt: does not count, not-an-image" in result.stderr
    assert "c.json: calibrated on 3 pictures for a false-positive rate of 0.25" in result.stderr


def test_calibrate_refuses_to_write_among_its_pictures(run: Callable[..., Result], pictures: Path) -> None:
    assert run("calibrate", "pictures", "-o", "pictures/c.json").exit_code == 2


def test_policy_check_and_show(run: Callable[..., Result], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\ncategories:\n  - name: a\n    nouns: [b]\n    action: shout\n")
    result = run("policy", "check", str(bad))
    assert result.exit_code == 2
    assert "line 5, categories[0].action" in result.stderr
    good = tmp_path / "good.yaml"
    good.write_text("name: x\ncategories:\n  - name: a\n    nouns: [b]\n")
    assert run("policy", "check", str(good)).stdout == f"{good}: fine, 1 categories\n"
    assert "weapons" in run("policy", "show", "demo").stdout
    assert "kitchen knife" in run("policy", "show", "demo", "--prompts").stdout
    assert json.loads(run("policy", "show", "--json").stdout)["name"] == "default"
    assert run("policy", "show", "missing.yaml").exit_code == 2


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_version(arguments: list[str], run: Callable[..., Result]) -> None:
    assert run(*arguments).stdout == f"guardcore {__version__}\n"


COMMANDS = [[], ["screen"], ["calibrate"], ["policy"], ["policy", "check"], ["policy", "show"], ["doctor"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: list[str], run: Callable[..., Result]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    if command == ["screen"]:
        assert "Exit codes" in result.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, guardcore.cli\n"
        "try: guardcore.cli.app(['screen', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'yaml', 'pyarrow') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout
    assert out.splitlines()[-1] == "[]"


# The rest needs a process of its own: pipes, signals, terminals.
CHILD = """
import importlib.util, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
import guardcore.cli.screen
spec = importlib.util.spec_from_file_location("fakes", {conftest!r})
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)

class Slow(fakes.RedDetector):
    def judge(self, image):
        time.sleep({pause})
        return super().judge(image)

guardcore.cli.screen.build_detector = lambda setup: Slow()
from guardcore.cli.commands import app
app(sys.argv[1:])
"""


@pytest.fixture
def child() -> Callable[..., list[str]]:
    """The command of a process whose detector takes `pause` seconds a picture."""

    def command(*arguments: str, pause: float = 0.0) -> list[str]:
        conftest = str(Path(__file__).with_name("conftest.py"))
        return [sys.executable, "-c", CHILD.format(conftest=conftest, pause=pause), *arguments]

    return command


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_reader_that_leaves_early_is_no_drama(child: Callable[..., list[str]], pictures: Path) -> None:
    # More lines than a pipe holds, and a reader that takes one, as `| head -1` does.
    many = [f"missing-{i}.png" for i in range(2000)]
    process = subprocess.Popen(
        child("screen", *many, "-f", "json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert json.loads(process.stdout.readline())["path"] == "missing-0.png"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(300) == 141


def test_ctrl_c_stops_at_once_and_leaves_whole_lines(child: Callable[..., list[str]], pictures: Path) -> None:
    for i in range(40):
        Image.new("RGB", (8, 8), "red").save(pictures / f"{i}.png")
    process = subprocess.Popen(
        child("screen", "pictures", "-f", "json", "--batch-size", "1", pause=0.5),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.decode() == "guardcore: interrupted; what is reported so far stands\n"
    lines = (first + rest).decode().splitlines()
    assert 1 <= len(lines) < 40
    assert all(json.loads(line)["schema"] == 1 for line in lines)


def test_progress_on_a_terminal_only(child: Callable[..., list[str]], pictures: Path) -> None:
    command = child("screen", "pictures", "-f", "json", pause=0.2)
    piped = subprocess.run(command, capture_output=True, timeout=300, env=environment(), check=False)
    assert piped.stderr.decode().splitlines() == [piped.stderr.decode().strip()]  # the summary and nothing else
    master, terminal = pty.openpty()
    drawn: list[bytes] = []
    reader = Thread(target=_read_all, args=(master, drawn))
    reader.start()  # a terminal that nobody reads would block the command
    variables = {**environment(), "TERM": "xterm"}
    shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, timeout=300, env=variables, check=False)
    os.close(terminal)
    reader.join(60)
    assert b"0/4" in b"".join(drawn)
    assert len([json.loads(line) for line in shown.stdout.splitlines()]) == 4  # none of the bar is in here


def _read_all(master: int, into: list[bytes]) -> None:
    try:
        while data := os.read(master, 4096):
            into.append(data)
    except OSError:  # Linux says EIO when the last writer has gone
        pass
    os.close(master)
