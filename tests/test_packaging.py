"""What the wheels hold, and what building says where something is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_COMPILER = shutil.which(os.environ.get("CXX", "c++")) is None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a build reads, so that it leaves nothing in the checkout and no other build meets it."""
    copy = tmp_path / "source"
    for folder in ("guardcore", "triton_kernels", "csrc"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


def build_wheel(source: Path, mode: str) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "--wheel-dir", "dist"]
    environment = {**os.environ, "GUARDCORE_BUILD": mode}
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True, text=True)
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


def run_setup(mode: str, environment: dict[str, str], prelude: str = "pass") -> subprocess.CompletedProcess[str]:
    """Ask setup.py for the package's name, the cheapest command: the build decision is made for every one."""
    script = f"import runpy, sys; sys.argv = ['setup.py', '--name']; {prelude}; runpy.run_path('setup.py')"
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "GUARDCORE_BUILD": mode, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
def test_native_wheel_has_one_abi3_library_and_no_top_level_triton_kernels(source, tmp_path):
    wheel = build_wheel(source, "1")
    assert re.fullmatch(r"guardcore_vlm-[\d.]+-cp310-abi3-\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        library = archive.extract("guardcore/_C.abi3.so", tmp_path)
    assert "guardcore/triton_kernels/sinkhorn.py" in names
    assert "guardcore/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"guardcore"}
    assert not [name for name in names if name.endswith((".cpp", ".h"))]
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    # the stable ABI is C functions only: a mangled torch name would tie the wheel to one torch release
    assert not re.findall(r"_ZN\w*(?:3c10|2at|5torch)\w*", symbols)
    assert "gomp" not in symbols.lower(), "a second OpenMP runtime"


@pytest.mark.slow
def test_pure_wheel_is_tagged_so_and_runs_the_definitions(source, tmp_path):
    wheel = build_wheel(source, "0")
    assert re.fullmatch(r"guardcore_vlm-[\d.]+-py3-none-any\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(tmp_path / "installed")
    script = (
        # an editable install of this checkout would lend the wheel its library
        "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if '_EditableFinder' not in str(finder)]\n"
        "import guardcore, torch; from guardcore import ops\n"
        "from guardcore.doctor import report\n"
        "import guardcore.triton_kernels\n"
        f"assert guardcore.__file__.startswith({str(tmp_path)!r}), guardcore.__file__\n"
        "distance = ops.sinkhorn(torch.eye(3)[None], torch.eye(3)[None], epsilon=0.01).distance\n"
        "assert abs(float(distance)) < 1e-6, distance\n"
        "assert {cell.implementation for cell in report().cells if cell.device == 'cpu'} == {'definition'}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "C++ kernels are not built" in outcome.stderr


HIDE_TORCH = (
    "import importlib.util as u; find = u.find_spec; "
    "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)"
)


@pytest.mark.parametrize(
    ("environment", "prelude", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "pass", "no C++ compiler: no-such-compiler is not on PATH"),
        ({"CXX": "false"}, "pass", "false cannot compile C++17 against Python's headers"),
        ({}, HIDE_TORCH, "torch is not in the build environment"),
    ],
    ids=["no-compiler", "compiler-without-headers", "no-torch"],
)
def test_a_missing_part_is_named_and_fatal_only_on_request(environment, prelude, reason):
    automatic = run_setup("auto", environment, prelude)
    assert automatic.returncode == 0, automatic.stderr
    assert f"building without C++ kernels ({reason}" in automatic.stderr
    insisted = run_setup("1", environment, prelude)
    assert insisted.returncode != 0
    assert f"GUARDCORE_BUILD=1, but {reason}" in insisted.stderr


def test_an_unknown_build_mode_is_refused():
    outcome = run_setup("yes", {})
    assert outcome.returncode != 0
    assert "GUARDCORE_BUILD must be auto, 0 or 1, got 'yes'" in outcome.stderr
