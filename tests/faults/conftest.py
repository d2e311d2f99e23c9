"""Stacks that tests may break."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from girder_dask.testing.stack import TestStack
from tests.support.fault_pool import FaultPool, SharedFaultStack
from tests.support.fault_site import FaultStack
from tests.support.storage import Storage

# Short enough that a test need not wait long for what takes its time on purpose.
_QUICK = {
    "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s",
    "DASK_GIRDER__SCHEDULER__RETRY_DELAY_MAX": "1s",
    "DASK_GIRDER__WORKER__CANCEL_GRACE": "1s",
}

# The last lines of each log of a stack that the report of a failed test shows.
_LOG_LINES = 40


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """Start the MongoDB and the Redis of all stacks whose tests break neither."""
    with Storage(tmp_path_factory.mktemp("storage")) as started:
        yield started


@pytest.fixture(scope="package")
def fault_pool(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Iterator[FaultPool]:
    """Keep the stack that most tests here share."""

    def start(directory: Path) -> SharedFaultStack:
        stack = SharedFaultStack(directory, workers=0, env={**_QUICK, **storage.env()})
        stack.start()
        return stack

    pool = FaultPool(start, tmp_path_factory.mktemp("shared"))
    yield pool
    pool.close()


@pytest.fixture
def fault_stack(
    tmp_path: Path, request: pytest.FixtureRequest, fault_pool: FaultPool, storage: Storage
) -> Iterator[Callable[..., FaultStack]]:
    """Give a test a stack with these workers, threads and variables of the environment.

    It is the stack of other tests, which has no jobs left. With ``own``, its processes are new
    but for MongoDB and Redis, and with ``own_storage`` these are new, too.
    """
    with ExitStack() as stacks:
        made: list[FaultStack] = []

        def start(
            *,
            workers: int = 2,
            threads: int = 2,
            env: Mapping[str, str] | None = None,
            own: bool = False,
            own_storage: bool = False,
        ) -> FaultStack:
            if own or own_storage:
                every = {**_QUICK, **({} if own_storage else storage.env()), **(env or {})}
                stack = FaultStack(tmp_path / f"stack{len(made)}", workers, threads, env=every)
                stacks.enter_context(stack)
            else:
                stack = fault_pool.take(workers, threads, env or {})
            made.append(stack)
            return stack

        yield start
        if getattr(request.node, "failed", False):
            for stack in made:
                print(stack.recent_logs(_LOG_LINES))
            fault_pool.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Mark a test that has failed, and report the logs of the stacks that are its fixtures."""
    report = yield
    if report.failed:
        item.failed = True
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, TestStack):
                report.sections.append((f"logs of {name}", value.recent_logs(_LOG_LINES)))
    return report
