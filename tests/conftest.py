"""What holds for all tests."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from typing import TypeVar

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of tests/faults/test_chaos.py. Only a conftest that is found first may."""
    parser.addoption("--chaos-seed", type=int, help="deal the blows of an earlier run again")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed here, for all processes of pytest-xdist."""
    if config.option.chaos_seed is None:
        config.option.chaos_seed = random.SystemRandom().randrange(10**6)


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed, which a process of pytest-xdist cannot."""
    return f"chaos: --chaos-seed={config.option.chaos_seed}"


R = TypeVar("R", pytest.TestReport, pytest.CollectReport)


def _refuse_skip(report: R) -> R:
    """Make a skip an error in CI: there, everything that a test needs is installed."""
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"A skipped test is an error in CI. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))
