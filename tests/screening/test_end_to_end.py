"""The real thing in a process of its own: the built-in encoder, a calibration, pictures, reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path, random_picture: Callable[..., Image.Image]) -> Path:
    """Nine harmless pictures (noise at several scales and shapes), a broken one and a text."""
    benign = tmp_path / "benign"
    benign.mkdir()
    for i in range(9):
        size = (64 + 40 * (i % 3), 96)
        random_picture(size=(4 + 3 * i, 4 + i), seed=i).resize(size).save(benign / f"{i}.png")
    (benign / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (benign / "notes.txt").write_text("no picture")
    return tmp_path


def guardcore(folder: Path, *arguments: str, codes: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "guardcore", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=550, env=environment, check=False
    )
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_calibrate_then_screen(folder: Path) -> None:
    # Nine pictures hold a rate of 0.1 exactly: 1 / 0.1 - 1.
    told = guardcore(folder, "calibrate", "benign", "--target-fpr", "0.1", "-o", "c.json", codes=(0,)).stderr
    assert "calibrated on 9 pictures for a false-positive rate of 0.1" in told
    assert "benign/broken.jpg: does not count, truncated" in told

    # Which side a picture falls on is the detector's business; that the exit code says so is ours.
    options = ("--calibration", "c.json", "-f", "json", "--heatmaps", "heat")
    done = guardcore(folder, "screen", "benign/0.png", "benign/notes.txt", "benign/0.png", *options, codes=(1, 3))
    first, text, again = (json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == {"flagged": 1, "clean": 3}[first["status"]]
    assert text["error"]["kind"] == "not-an-image"
    assert again["duplicate_of"] == "benign/0.png"
    assert again["scores"] == first["scores"]
    assert first["size"] == [64, 96]
    assert all(0 <= score < 1 for score in first["scores"].values())
    with Image.open(folder / first["heatmap"]) as heat:
        assert np.asarray(heat).std() > 0


def test_another_scoring_rule_refuses_the_calibration(folder: Path) -> None:
    guardcore(folder, "calibrate", "benign", "--target-fpr", "0.1", "-o", "c.json", "-q", codes=(0,))
    options = ("--calibration", "c.json", "--scoring", "max-patch-cosine")
    refused = guardcore(folder, "screen", "benign", *options, codes=(2,))
    assert "this calibration belongs to another detector" in refused.stderr
    assert refused.stdout == ""


def test_the_shipped_calibration_needs_no_option(folder: Path) -> None:
    done = guardcore(folder, "screen", "benign/0.png", "-f", "json", codes=(0, 1))
    assert "no calibration" not in done.stderr
    assert json.loads(done.stdout)["flagged"] in (True, False)
