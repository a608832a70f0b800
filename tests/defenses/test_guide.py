"""Every snippet of docs/guide.md runs, in order, as a reader would run it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardcore.cli.commands import app

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page takes for granted: a checkpoint and three pictures."""
    pytest.importorskip("transformers")
    pytest.importorskip("torchvision")  # image processors of transformers are built on it
    from bench.tiny_models import build

    place = tmp_path_factory.mktemp("guide")
    build("llava").save(place / "llava-1.5-7b-hf")
    for name, scene in (("photo", "benign_2"), ("suspicious", "weapons")):
        shutil.copy(ROOT / "examples" / "pictures" / f"scene_{scene}.jpg", place / f"{name}.jpg")
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    before = Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


@pytest.mark.slow
def test_every_snippet_runs(folder, capsys):
    names: dict[str, object] = {}
    for number, snippet in enumerate(snippets("python"), 1):
        exec(compile(snippet, f"docs/guide.md, python snippet {number}", "exec"), names)
    told = capsys.readouterr().out
    assert "image 0: weapons" in told
    assert "prefix mass at the last prompt token" in told
    assert re.search(r"target_mass:0\.3; layer 1: 0\.\d+ -> 0\.[3-9]", told)
    assert re.search(r"^\(\(\d+, \d+\)", told, re.MULTILINE), "unsafe tokens"
    assert names["fitted"] == names["guard"].calibration
    assert sum(map(len, names["fitted"].heads.values())) == 5
    assert "align          done" in told

    commands = [line for block in snippets("sh") for line in block.splitlines()]
    codes = [CliRunner().invoke(app, shlex.split(line)[1:]).exit_code for line in commands]
    assert codes == [0, 1, 0]


def test_the_page_shows_what_it_says():
    assert len(snippets("python")[0].strip().splitlines()) <= 12  # ten lines and what separates them
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", GUIDE)
    assert all((ROOT / "docs" / link).is_file() for link in links)
    assert all(len(line) <= 160 for line in GUIDE.splitlines() if not line.startswith(("|", "`guardcore.Detector")))
