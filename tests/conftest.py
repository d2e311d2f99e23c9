"""What holds for all tests."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Generator
from typing import TypeVar

import hypothesis
import pytest
from sybil.integration.pytest import SybilItem

# Tests start hundreds of processes of Python. Where compiled modules may not be kept, each would
# compile our package again, and each process of pytest all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell ignores SIGINT in what it starts in the background, and every process of a test would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# An example may take long because of what else the machine does.
hypothesis.settings.register_profile(
    "girder_dask",
    hypothesis.settings.default,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("girder_dask")


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


# What starts a stack, and so takes longer than anything else.
_STACKS = {"girder_stack", "fault_stack", "journaled_stack", "stack"}
# Files that take minutes begin first, so that none of them is left alone at the end.
_LONGEST_FIRST = ("tests/faults/", "tests/browser/", "tests/integration/", "tests/security/")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a stack, and begin with the files that take longest.

    The snippets of a page build on each other, so they keep their order.
    """
    for item in items:
        if _STACKS & set(getattr(item, "fixturenames", ())) or "/unit/" not in str(item.path):
            item.add_marker("stack")
    items.sort(key=_turn)
    pages = [item for item in items if isinstance(item, SybilItem)]
    in_order = iter(sorted(pages, key=lambda item: (str(item.path), item.example.line)))
    items[:] = [next(in_order) if isinstance(item, SybilItem) else item for item in items]


def _turn(item: pytest.Item) -> int:
    for turn, directory in enumerate(_LONGEST_FIRST):
        if item.nodeid.startswith(directory):
            return turn
    return len(_LONGEST_FIRST)


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
