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
