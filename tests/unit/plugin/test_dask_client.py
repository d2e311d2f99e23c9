"""The Dask client of Girder's process, in this process and in forks of it."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from distributed import LocalCluster

from girder_dask.plugin.dask_client import LazyDaskClient
from tests.support.deadline import until


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=":0", set_as_default=False
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def lazy(address: str) -> Iterator[LazyDaskClient]:
    client = LazyDaskClient(lambda: address)
    yield client
    client.close()


def exit_code_of_fork(function: Callable[[], object]) -> int:
    """Call a function in a fork of this process; return 0 if it returned something true."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        code = 1
        try:
            code = 0 if function() else 2
        finally:
            os._exit(code)
    ended: list[int] = []

    def has_ended() -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        ended.append(status)
        return done == pid

    try:
        until(has_ended)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return os.waitstatus_to_exitcode(ended[-1])


def answers(lazy: LazyDaskClient) -> bool:
    return lazy.client().run_on_scheduler(lambda: 5) == 5


def test_fork_gets_a_client_of_its_own_and_leaves_that_of_its_parent_alone(
    lazy: LazyDaskClient,
) -> None:
    ours = lazy.client().id  # a reference to the client would keep it alive in the fork

    def use() -> bool:
        theirs = lazy.client()
        gc.collect()
        return theirs.id != ours and answers(lazy)

    assert exit_code_of_fork(use) == 0
    assert lazy.client().id == ours
    assert answers(lazy)


def test_fork_closes_its_client_without_that_of_its_parent(lazy: LazyDaskClient) -> None:
    ours = lazy.client().id  # a reference to the client would keep it alive in the fork

    def close() -> bool:
        lazy.close()
        gc.collect()
        return True

    assert exit_code_of_fork(close) == 0
    assert lazy.client().id == ours
    assert answers(lazy)


def test_fork_does_not_wait_for_the_lock_of_a_thread_of_its_parent(lazy: LazyDaskClient) -> None:
    with lazy._lock:
        code = exit_code_of_fork(lambda: answers(lazy))
    assert code == 0
