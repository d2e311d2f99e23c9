"""How the code of a task is stopped, whatever it catches."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import select
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask import JobCanceled, JobInterrupted, current_job
from girder_dask.errors import CancelInterrupt, JobTimeout
from girder_dask.jobs import JobStatus
from girder_dask.worker.cancellation import RunCanceller
from girder_dask.worker.capture import output_capture
from girder_dask.worker.interruption.job_threads import MAX_INTERRUPTIONS
from girder_dask.worker.run.control import RunControl
from tests.support.deadline import SECONDS, until
from tests.support.interrupted_tasks import (
    begin,
    captured_worker,
    did,
    go_on,
    loops,
    outcome,
    run_of,
    sleeps,
    started,
    stop,
    timed,
)
from tests.support.run_worker import Worker, brought

S = JobStatus


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with captured_worker(tmp_path) as opened:
        yield opened


# -- event loops ---------------------------------------------------------------------------


def test_interruption_lets_coroutines_clean_up(worker: Worker) -> None:
    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.02)
            did.append("cleaned up")

    run, future = begin(worker, lambda: asyncio.run(work()))
    stop(run)
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert did == ["cleaned up"]


def test_interruption_repeats_for_a_coroutine_that_swallows_it(worker: Worker) -> None:
    tasks: list[weakref.ref[Any]] = []

    async def work() -> None:
        tasks.append(weakref.ref(asyncio.current_task()))
        while not go_on.is_set():
            try:
                started.set()
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                did.append("swallowed")

    run, future = begin(worker, lambda: asyncio.run(work()))
    stop(run)
    until(lambda: did)
    for _ in range(2):  # out of the loop, and out of what asyncio does to end it
        time.sleep(0.1)
        run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    # asyncio logs that the task is pending when it is collected, which must not be in another test.
    del run, future
    until(lambda: gc.collect() >= 0 and tasks[0]() is None)


def test_interruption_reaches_a_coroutine_that_never_awaits(worker: Worker) -> None:
    async def work() -> None:
        started.set()
        while not go_on.is_set():
            pass

    run, future = begin(worker, lambda: asyncio.run(work()))
    stop(run)
    assert isinstance(future.exception(SECONDS), JobCanceled)


# -- where an interruption does not come ---------------------------------------------------


class Slow(logging.Handler):
    """Takes its time over a record."""

    def emit(self, record: logging.LogRecord) -> None:
        started.set()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        did.append(record.getMessage())


def test_interruption_leaves_a_log_record_whole(worker: Worker) -> None:
    """One who is interrupted there may leave a handler locked, for all jobs."""
    logger = logging.getLogger("tests.slow")
    handler = Slow()
    logger.addHandler(handler)

    def work() -> None:
        logger.warning("a record")
        loops()

    try:
        run, future = begin(worker, work)
        stop(run)
        assert isinstance(future.exception(SECONDS), JobCanceled)
    finally:
        logger.removeHandler(handler)
    assert did == ["a record"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(handler.lock.acquire, True, 1).result(SECONDS)


def test_interruption_stops_tasks_that_print_all_the_time_and_leaves_their_logs_whole(
    worker: Worker,
) -> None:
    def work() -> None:
        started.set()
        n = 0
        while True:
            print("line", n, flush=True)
            n += 1

    output_capture.uninstall()  # pytest has put other streams in the place of those of the fixture
    output_capture.install("INFO")
    for n in range(10):
        started.clear()
        run, future = begin(worker, work, job_id=str(n))
        until(lambda n=n: worker.log(str(n)).count("\n") > 20)
        stop(run)
        assert isinstance(future.exception(SECONDS), JobCanceled)
        until(lambda n=n: worker.statuses(str(n))[-1:] == [S.CANCELED])
        *lines, end = worker.log(str(n)).splitlines()
        assert end.endswith("The job was canceled.")
        # What the collector of garbage of this process has to tell may come in between.
        lines = [line for line in lines if line.startswith("line ")]
        # The last one may have been cut off between the writes of print.
        assert len(lines) > 10
        assert lines[:-1] == [f"line {i}" for i in range(len(lines) - 1)]


class Hook:
    """Takes its time over an error."""

    def transform(self, data: Any) -> Any:
        return data

    def exception(self) -> None:
        did.append("begun")
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        did.append("told")

    def cleanup(self) -> None:
        pass


def test_interruption_spares_what_hooks_do_about_it(worker: Worker) -> None:
    run, future = begin(worker, timed(sleeps), hooks=[Hook()])
    stop(run)
    until(lambda: "begun" in did)
    for _ in range(5):
        run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert did[1:] == ["begun", "told"]
    assert outcome(worker, lambda: 1, job_id="b") == 1


def test_interruption_that_comes_late_has_no_effect(worker: Worker) -> None:
    """The thread may do something for the next job, or for Dask, by then."""
    for n in range(50):
        run = run_of(worker, lambda: sum(range(20_000)), job_id=f"a{n}")
        future = worker.begin(run)
        run.control.cancel()
        until(lambda future=future, run=run: future.done() or run.control.interrupt() is not None)
        error = future.exception(SECONDS)
        assert error is None or isinstance(error, JobCanceled)
    assert outcome(worker, lambda: 1, job_id="b") == 1


# -- one that goes on ----------------------------------------------------------------------


def catches_all() -> None:
    started.set()
    while not go_on.is_set():
        try:
            time.sleep(60)
        except BaseException as e:  # noqa: BLE001 - as a bare except
            did.append(e)


def test_interruption_ends_a_task_that_catches_everything_after_many(worker: Worker) -> None:
    run, future = begin(worker, catches_all)
    run.control.cancel()
    for n in range(MAX_INTERRUPTIONS):
        run.control.interrupt()
        until(lambda n=n: len(did) == n + 1)
        assert not future.done()
    assert {type(e) for e in did} == {CancelInterrupt}
    assert isinstance(did[0], JobInterrupted)
    assert did[0].reason == "canceled"
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    go_on.set()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(sys.gettrace).result() is None
    traces = [worker.begin(run_of(worker, sys.gettrace, job_id=str(n))) for n in range(4)]
    assert [future.result(SECONDS) for future in traces] == [None] * 4


def waits_in_c() -> None:
    started.set()
    select.select([], [], [], 5.0)  # that it goes on is told after two seconds


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_interruption_reports_a_stuck_run_whatever_the_reason(worker: Worker, how: str) -> None:
    run = run_of(worker, waits_in_c, timeout=1.0 if how == "timeout" else None)
    future = worker.begin(run)
    if how == "cancel":
        assert started.wait(SECONDS)
        worker._loop.call_soon_threadsafe(worker._canceller.cancel, [run.control.key])
    until(worker.log)
    assert not future.done(), "it is said meanwhile"
    said = worker.log()
    assert said.startswith(
        "The job should end, but its thread cannot be interrupted: it waits in C"
    )
    assert f"{__file__}, line " in said
    assert ", in waits_in_c)" in said
    assert "girder.worker.restart-stuck" in said
    assert "isolation='process'" in said
    expected = JobCanceled if how == "cancel" else JobTimeout
    error = future.exception(SECONDS)
    assert isinstance(error and brought(error), expected)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED if how == "cancel" else S.ERROR])
    last = {"cancel": "The job was canceled.", "timeout": "exceeded its time limit of 1 s."}
    assert worker.log().endswith(f"{last[how]}\n")
    assert worker.log().count("\n") == 2


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_interruption_gives_up_a_stuck_run_whatever_the_reason(worker: Worker, how: str) -> None:
    given_up: list[RunControl] = []

    async def make() -> RunCanceller:
        return RunCanceller(worker.context.runs, {}, 0.1, 0.5, given_up.append)

    canceller = asyncio.run_coroutine_threadsafe(make(), worker._loop).result(SECONDS)
    worker._canceller = canceller
    run = run_of(worker, waits_in_c, timeout=1.0 if how == "timeout" else None)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    if how == "cancel":
        worker._loop.call_soon_threadsafe(canceller.cancel, [run.control.key])
    until(lambda: given_up == [run.control])
    assert not future.done()
    until(lambda: "(girder.worker.restart-stuck)" in worker.log())
    run.control.give_up()
    if how == "timeout":  # the scheduler would run it again, and that would end in the same way
        until(lambda: worker.statuses() == [S.RUNNING, S.ERROR])
        assert worker.end.error == "The task exceeded its time limit of 1 s."
    future.exception(SECONDS)
    until(lambda: run.control.id not in worker.context.runs)
    assert worker.statuses().count(S.ERROR) == (how == "timeout")


def test_interruption_forgets_a_time_limit_that_was_kept(worker: Worker) -> None:
    for n in range(5):
        assert outcome(worker, lambda: 1, job_id=str(n), timeout=1.0) == 1
    run = run_of(worker, lambda: time.sleep(0.02), timeout=0.02 + 1e-3, job_id="close")
    worker.begin(run).exception(SECONDS)
    until(lambda: not worker._canceller._time_limits)
    assert outcome(worker, lambda: time.sleep(1.1), job_id="b") is None


def test_interruption_of_another_job_is_no_cancellation(worker: Worker) -> None:
    """As when the future of a pool that two jobs use brings it."""

    def work() -> None:
        raise CancelInterrupt

    outcome(worker, work)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert "CancelInterrupt" in worker.log()


def test_interruption_of_a_loop_over_progress_is_not_retried(worker: Worker) -> None:
    from girder_dask import progress

    def work() -> None:
        with contextlib.suppress(Exception):
            for _ in progress(range(10**9)):
                started.set()
                did.append(current_job().canceled)

    run, future = begin(worker, work)
    run.control.cancel()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert not any(did[:-1])
