"""Imports go down the layers only, and stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Top to bottom; a module may import its own layer and those below. A folder's name stands for all that is in it.
LAYERS = (
    "__main__ cli doctor screening serve",
    "evaluation",
    "adapters",
    "defenses",
    "calibration detector",
    "encoders images patches policy prototypes redaction",
    "ops",
    "reference triton_kernels _C",
)
LEVEL = {name: -depth for depth, names in enumerate(LAYERS) for name in names.split()}
HEAVY = "triton transformers open_clip torchvision matplotlib pyarrow typer"


def imported_modules(path: Path, package: str) -> Iterator[str]:
    """Modules of ours that a file imports anywhere, also inside functions: a lazy import is an import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                continue  # within the package
            names = [node.module] if node.module != package else [f"{package}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name and name.split(".")[0] == package)


def test_imports_only_go_down():
    wrong = []
    for path in sorted((ROOT / "guardcore").rglob("*.py")):
        own = path.relative_to(ROOT / "guardcore").with_suffix("").parts[0]
        if own == "__init__":
            continue  # the front door hands out names of every layer
        assert own in LEVEL, f"{path}: give the module {own!r} a layer in tests/test_imports.py"
        relative = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, f"{path}: relative imports would escape this test"
        for name in imported_modules(path, "guardcore"):
            target = name.split(".")[1]
            if not target.startswith("__") and LEVEL.get(target, 1) > LEVEL[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_kernels_import_neither_the_definition_nor_anything_above():
    """An optimized kernel that leaned on its oracle would be tested against itself."""
    for path in sorted((ROOT / "triton_kernels").glob("*.py")):
        for name in imported_modules(path, "guardcore"):
            assert name.startswith("guardcore.triton_kernels"), f"{path} imports {name}"


@pytest.mark.parametrize(
    "statement",
    [
        "import guardcore",
        "import guardcore.ops",
        "import guardcore; [getattr(guardcore, name) for name in guardcore.__all__]",
    ],
)
def test_imports_stay_light(statement):
    """Counted against what torch itself loads."""
    script = (
        f"import sys, torch; before = set(sys.modules); {statement}\n"
        f"print(*sorted(set({HEAVY!r}.split()) & (set(sys.modules) - before)))"
    )
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert outcome.stdout.split() == []


def test_importing_the_package_does_not_import_torch():
    """The command line's help answers at once."""
    script = "import sys, guardcore; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_triton_kernels_is_no_top_level_package(tmp_path):
    """vLLM would take it for its own (docs: a wheel that ships one breaks vLLM's mixture-of-experts models)."""
    script = "import importlib.util as u; spec = u.find_spec('triton_kernels'); print(spec and spec.origin)"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert str(ROOT) not in outcome.stdout
