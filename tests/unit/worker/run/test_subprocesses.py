"""Subprocesses of a run, and what goes on when its function has returned."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from girder_dask.errors import (
    JobCanceled,
    JobTimeout,
)
from girder_dask.jobs import JobStatus
from girder_dask.worker.cancellation import RunCanceller
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import Worker, brought, captured

S = JobStatus


SHELL = "echo $$ > {path}; trap '' TERM; sleep {seconds}; sleep {seconds}"


def surviving(seconds: str) -> list[str]:
    """Return those that still run when a killed process has had the time to end."""
    with contextlib.suppress(AssertionError):
        until(lambda: not running(seconds))
    return running(seconds)


def running(seconds: str) -> list[str]:
    """Return the programs that were started to sleep so long."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if seconds.encode() in words:
            found.append(path.parent.name)
    return found


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_subprocesses_that_a_task_waits_for_are_ended(
    worker: Worker, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "pid"

    def work(command: str) -> None:
        import subprocess

        subprocess.run(command, shell=True, check=False)  # noqa: S602

    timeout = 3.0 if how == "timeout" else None
    seconds = f"1000.{os.getpid()}"
    run = worker.run(work, SHELL.format(path=path, seconds=seconds), timeout=timeout)
    with captured():
        future = worker.begin(run)
        until(lambda: running(seconds))
        if how == "cancel":
            run.control.cancel()
            run.control.interrupt()
            run.control.interrupt()
        error = future.exception(SECONDS)
        expected = JobCanceled if how == "cancel" else JobTimeout
        assert isinstance(error and brought(error), expected)
    until(lambda: not running(seconds))
    assert not Path(f"/proc/{int(path.read_text())}").exists()


# It starts one, goes on itself and leaves it without a parent, in the worker's group.
BACKGROUND = "sleep {seconds} >/dev/null 2>&1 &"


@pytest.mark.parametrize("env", [None, {"PATH": os.environ["PATH"]}], ids=["worker's", "own"])
def test_a_subprocess_in_the_background_is_ended(
    worker: Worker, env: dict[str, str] | None
) -> None:
    def work(command: str) -> None:
        import subprocess

        subprocess.run(["sh", "-c", command], check=True, env=env)
        print("begun")
        while True:
            time.sleep(0.01)

    seconds, others = (f"{n}.{os.getpid()}" for n in (1001, 1002))
    run, other = (
        worker.run(work, BACKGROUND.format(seconds=s), job_id=s) for s in (seconds, others)
    )
    with captured():
        futures = [worker.begin(each) for each in (run, other)]
        until(lambda: all("begun" in worker.log(each) for each in (seconds, others)))
        run.control.cancel()
        run.control.interrupt()
        assert isinstance(futures[0].exception(SECONDS), JobCanceled)
        left = surviving(seconds), running(others)
        other.control.cancel()
        other.control.interrupt()
        futures[1].exception(SECONDS)
        for pid in [*running(seconds), *running(others)]:  # where this fails
            os.kill(int(pid), signal.SIGKILL)
    assert left[0] == []
    assert len(left[1]) == 1, "another run's goes on"


def test_a_subprocess_that_ignores_sigterm_does_not_outlive_its_worker(
    worker: Worker, tmp_path: Path
) -> None:
    path, seconds = tmp_path / "pid", f"1003.{os.getpid()}"

    def work(command: str) -> None:
        import subprocess

        subprocess.run(["sh", "-c", command], check=False)

    run = worker.run(work, SHELL.format(path=path, seconds=seconds))

    async def close() -> None:
        await RunCanceller(worker.context.runs, worker.context.refused, grace_s=60.0).close(1.0)

    with captured():
        future = worker.begin(run)
        until(lambda: running(seconds))
        # Less than the grace of a run that is canceled.
        asyncio.run_coroutine_threadsafe(close(), worker._loop).result(SECONDS)
        left = surviving(seconds)
        for pid in [path.read_text().strip(), *running(seconds)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        future.exception(SECONDS)
    assert left == []


# -- the threads of a task -----------------------------------------------------------------


may_end = threading.Event()
at_work = threading.Event()


def leaves_a_thread() -> None:
    threading.Thread(target=may_end.wait, args=(SECONDS,), name="reader").start()


def leaves_a_daemon() -> None:
    threading.Thread(target=may_end.wait, args=(SECONDS,), daemon=True).start()


def leaves_work_in_a_pool() -> None:
    pools.append(concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pool"))
    at_work.clear()
    pools[-1].submit(lambda: at_work.set() or may_end.wait(SECONDS))
    assert at_work.wait(SECONDS)


def leaves_an_idle_pool() -> None:
    pools.append(concurrent.futures.ThreadPoolExecutor(1))
    assert pools[-1].submit(len, "ab").result(SECONDS) == 2


def leaves_a_process() -> None:
    left.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))


def waits_for_a_process() -> None:
    subprocess.run(["true"], check=True)


def test_a_thread_of_a_daemon_is_told_and_holds_up_no_worker(worker: Worker) -> None:
    may_end.clear()
    run = worker.run(leaves_a_thread)
    with captured():
        # As the threads of Dask's workers are.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(SECONDS)
        reader = next(each for each in threading.enumerate() if each.name == "reader")
        assert reader.daemon
        may_end.set()
        reader.join()
    until(lambda: worker.ended)
    assert "was still running: reader." in worker.log()


pools: list[concurrent.futures.ThreadPoolExecutor] = []
left: list[subprocess.Popen[bytes]] = []


@pytest.mark.parametrize(
    ("habit", "named"),
    [
        (leaves_a_thread, "reader"),
        (leaves_work_in_a_pool, "pool_0"),
        (leaves_a_process, "process "),
        (leaves_a_daemon, None),
        (leaves_an_idle_pool, None),
        (waits_for_a_process, None),
    ],
)
def test_what_goes_on_when_the_function_has_returned_is_told(
    worker: Worker, habit: Callable[[], None], named: str | None
) -> None:
    may_end.clear()
    try:
        with captured():
            worker.outcome(habit)
    finally:
        may_end.set()
        while pools:
            pools.pop().shutdown()
        while left:
            left.pop().communicate()
    said = "The task returned while what it had started was still running: "
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert worker.log().startswith(f"{said}{named}") if named else worker.log() == ""
