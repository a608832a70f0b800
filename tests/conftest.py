"""Fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill every uninitialized tensor with NaN (floats) or the largest value (integers): forgotten outputs show up."""
    fill, deterministic = (
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, where everything is installed, a test that was skipped for want of a library is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "CI" not in os.environ or reporter is None or session.exitstatus:
        return
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    if any("could not import" in reason or "are not built" in reason for reason in reasons):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
