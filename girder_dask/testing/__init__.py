"""A pytest plugin that gives tests a real Girder with a scheduler and workers.

It is active once ``girder_dask[standalone]`` and pytest are installed. Nothing starts before a test
requests one of the fixtures::

    def test_count(girder_stack, girder_user):
        file = girder_stack.upload("coins.png", client=girder_user.client)
        job = girder_stack.call(start_count, file["_id"], user=girder_user)
        assert girder_stack.wait(job["_id"])["status"] == JobStatus.SUCCESS

Fixtures: ``girder_stack`` (one for the whole run, a :class:`~girder_dask.testing.stack.TestStack`),
``girder_admin`` (a ``GirderClient`` of the administrator) and ``girder_user`` (a new user for
each test, a :class:`~girder_dask.testing.stack.User`).

Options in pytest's configuration: ``girder_dask_workers`` and ``girder_dask_threads``, both
2 by default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from girder_dask.testing.stack import TestStack, User

__all__ = ["girder_admin", "girder_stack", "girder_user"]

_stack_key: pytest.StashKey[TestStack] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the stack."""
    parser.addini("girder_dask_workers", "Dask workers of the fixture girder_stack", default="2")
    parser.addini("girder_dask_threads", "Threads of each of these workers", default="2")


@pytest.fixture(scope="session")
def girder_stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestStack]:
    """A Girder with a scheduler and workers, for all tests of this run."""
    from girder_dask.testing.stack import TestStack

    config = request.config
    stack = TestStack(
        tmp_path_factory.mktemp("girder_stack"),
        workers=int(config.getini("girder_dask_workers")),
        threads=int(config.getini("girder_dask_threads")),
    )
    with stack:
        config.stash[_stack_key] = stack
        try:
            yield stack
        finally:
            del config.stash[_stack_key]


@pytest.fixture(scope="session")
def girder_admin(girder_stack: TestStack) -> Any:
    """A ``GirderClient`` of the administrator."""
    return girder_stack.admin


@pytest.fixture
def girder_user(girder_stack: TestStack) -> User:
    """A new ordinary user with a private folder."""
    return girder_stack.create_user()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report the last log lines of the stack after a failed test, and cancel the jobs it left."""
    report = yield
    stack = item.config.stash.get(_stack_key, None)
    if report.failed and stack is not None and "girder_stack" in getattr(item, "fixturenames", ()):
        error = call.excinfo.value if call.excinfo is not None else None
        report.sections.append(("girder_stack", stack.report_logs(error)))
        if call.when == "call":
            with contextlib.suppress(Exception):  # the failure itself is the one to report
                stack.cancel_open_jobs()
    return report
