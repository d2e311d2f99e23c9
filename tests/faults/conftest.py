"""Stacks that tests may break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_site import FaultStack
from tests.support.storage import Storage

# Short enough that a test need not wait long for what takes its time on purpose.
_QUICK = {
    "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s",
    "DASK_GIRDER__SCHEDULER__RETRY_DELAY_MAX": "1s",
    "DASK_GIRDER__WORKER__CANCEL_GRACE": "1s",
}


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """Start the MongoDB and the Redis of all stacks whose tests break neither."""
    with Storage(tmp_path_factory.mktemp("storage")) as started:
        yield started


@pytest.fixture
def fault_stack(
    tmp_path: Path, request: pytest.FixtureRequest, storage: Storage
) -> Iterator[Callable[..., FaultStack]]:
    """Start a stack of its own for a test, with the options of Stack.

    It has ``own_storage``, or shares its MongoDB and its Redis with the stacks of other tests.
    """
    with ExitStack() as stacks:
        made: list[FaultStack] = []

        def start(*, own_storage: bool = False, **options: Any) -> FaultStack:
            shared = {} if own_storage else storage.env()
            env = {**_QUICK, **shared, **options.pop("env", {})}
            stack = FaultStack(tmp_path / f"stack{len(made)}", env=env, **options)
            made.append(stacks.enter_context(stack))
            return stack

        yield start
        if getattr(request.node, "failed", False):
            for stack in made:
                print(stack.recent_logs(40))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.failed = True
    return report
