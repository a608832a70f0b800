"""Two ways to test a GPU kernel without a GPU: run it under Triton's interpreter, and compile it for a device."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is the extra `gpu`")

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., tuple[Any, ...]]]:
    """Call a launcher under the interpreter: interpreted("sinkhorn", *arguments), with CPU tensors.

    TRITON_INTERPRET has to be set before triton is imported and would hurt torch.compile in this process, so the
    launcher runs in a child process that lives as long as the session. Its exceptions come back with their traceback.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "interpreter_worker.py")]
    worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def call(launcher: str, *arguments: object, **constants: object) -> tuple[Any, ...]:
        pickle.dump((launcher, arguments, constants), worker.stdin)
        worker.stdin.flush()
        result, error = pickle.load(worker.stdout)
        assert error is None, error
        return result

    yield call
    worker.stdin.close()
    assert worker.wait(timeout=60) == 0


@pytest.fixture
def draw_attention() -> Callable[..., dict[str, Any]]:
    """Draw the tensors of calibrated attention by their names: (B, Hq, Hkv, Q, K, D), 3 classes, a rule by its name."""

    def draw(shape: tuple[int, ...], rule: str = "mixed", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        (B, Hq, Hkv, Q, K, D), g = shape, torch.Generator().manual_seed(sum(shape))
        rows, keys = (B, Hq, Q, D), (B, Hkv, K, D)
        query, key, value = (torch.randn(size, generator=g).to(dtype) for size in (rows, keys, keys))
        place = (torch.arange(K) + 3 * torch.arange(B)[:, None]) * 8 // max(K, 1)
        kinds = torch.where(place % 4 == 1, 1 + place % 8 // 4, 0).to(torch.uint8)  # spans, some tiles without any
        table = RULES[rule](torch.rand(B, Hq, 3, 3, generator=g), D)
        return {"query": query, "key": key, "value": value, "key_class": kinds, "rule": table}

    return draw


def rule_of(linear: Any, quadratic: Any, additive: Any, like: torch.Tensor) -> torch.Tensor:
    """rule[B, Hq, G, 3] from numbers or tensors [B, Hq, G]."""
    return torch.stack([torch.as_tensor(part).expand(like.shape[:-1]) for part in (linear, quadratic, additive)], -1)


# From uniform u[B, Hq, G, 3] in 0 ... 1 and the width
RULES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "zero": lambda u, _: torch.zeros_like(u),
    "additive": lambda u, _: rule_of(0.0, 0.0, 10 * u[..., 2] - 4, u),
    "gated": lambda u, _: rule_of(u[..., 0], 0.0, 0.0, u),
    "literal": lambda u, width: rule_of(0.0, 0.1 * u[..., 1] * width**0.5, 0.0, u),
    "mixed": lambda u, _: rule_of(u[..., 0] - 0.3, 0.5 * u[..., 1], 4 * u[..., 2] - 2, u),
    "suppressed": lambda u, _: rule_of(0.0, 0.0, -40 * u[..., 2] - 20, u),
    "removed": lambda u, _: rule_of(u[..., 0], 0.0, torch.where(u[..., 2] < 0.5, -torch.inf, 0.3), u),
    "strong": lambda u, _: rule_of(4 * u[..., 0], 2 * u[..., 1], 12 * u[..., 2], u),
}
