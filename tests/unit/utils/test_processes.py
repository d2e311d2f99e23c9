"""The processes of this host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from girder_dask.utils.processes import descendants, has_variable, running_processes

_WAITS = "import sys; sys.stdin.read()"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "GIRDER_DASK_TEST": "coins"}
    command = [sys.executable, "-c", _WAITS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        yield process
        process.kill()


def test_descendants_are_the_running_processes_below(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in descendants(os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie, until it is waited for
    assert child.pid not in descendants(os.getpid())
    assert child.pid not in {process.pid for process in running_processes()}


def test_descendants_of_a_process_that_has_ended_are_none(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    assert descendants(child.pid) == []


def test_running_processes_know_parent_and_group(child: subprocess.Popen[bytes]) -> None:
    found = {process.pid: process for process in running_processes()}
    assert (found[child.pid].parent, found[child.pid].group) == (os.getpid(), os.getpgrp())
    assert found[os.getpid()].born <= found[child.pid].born
    assert found[child.pid] in set(running_processes())  # a look does not change it


def test_has_variable_compares_the_value(child: subprocess.Popen[bytes]) -> None:
    assert has_variable(child.pid, "GIRDER_DASK_TEST", "coins")
    assert not has_variable(child.pid, "GIRDER_DASK_TEST", "coin")
    assert not has_variable(child.pid, "GIRDER_DASK_OTHER", "coins")
    child.kill()
    child.wait()
    assert not has_variable(child.pid, "GIRDER_DASK_TEST", "coins")


def test_a_process_with_the_id_of_an_earlier_one_is_found_each_time() -> None:
    list(running_processes())
    kept = psutil._pmap[os.getpid()]  # type: ignore[attr-defined]
    kept._ident, kept._create_time = (os.getpid(), 1.0), 1.0  # as of an earlier process
    for _ in range(3):
        assert [each.pid for each in running_processes()].count(os.getpid()) == 1
