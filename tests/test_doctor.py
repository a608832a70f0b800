"""`guardcore.doctor.report`: no gap without a reason."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from guardcore import ops
from guardcore.doctor import report


def test_every_op_has_a_cell_per_device_and_every_gap_a_reason():
    cells = report().cells
    assert [cell.op for cell in cells] == [op for op in ops.OPS for _ in range(2)]
    assert all(cell.note for cell in cells if cell.implementation in {"definition", "nothing"})
    assert all(state.note for state in report().encoders if not state.available)


@pytest.mark.skipif(
    find_spec("guardcore._C") is None and "CI" not in os.environ, reason="the C++ kernels are not built"
)
def test_built_kernels_cover_every_op():
    """CI always has a compiler: there, a missing kernel is a failure."""
    assert {cell.implementation for cell in report().cells if cell.device == "cpu"} == {"C++"}
    assert report().isa


def test_ci_says_that_it_is_ci():
    """Without it, a kernel that was lost would be a skipped test."""
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    assert script.index("export CI=1") < script.index("make test")


def test_the_report_prints_and_serializes():
    seen = report()
    assert json.loads(seen.to_json()) == json.loads(json.dumps(seen.to_dict()))
    text = str(seen)
    assert all(word in text for word in ("sinkhorn_packed", "threads", "python", "builtin", "torch"))
    assert "\n\n\n" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())
