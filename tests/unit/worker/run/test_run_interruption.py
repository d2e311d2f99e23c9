"""How the code of a task is stopped, whatever it waits for and whatever it catches."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import queue
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask import JobCanceled, JobInterrupted, current_job, task
from girder_dask.errors import CancelInterrupt, JobTimeout, TimeoutInterrupt
from girder_dask.jobs import JobStatus
from girder_dask.worker.cancellation import RunCanceller
from girder_dask.worker.capture import output_capture
from girder_dask.worker.interruption.interruptible_waits import Latch
from girder_dask.worker.interruption.job_threads import MAX_INTERRUPTIONS
from girder_dask.worker.run.control import RunControl
from girder_dask.worker.run.runner import Run
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import Worker, brought, captured

S = JobStatus

#: What tasks have done, and what they wait for.
did: list[Any] = []
started = threading.Event()
go_on = threading.Event()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    did.clear()
    started.clear()
    go_on.clear()
    opened = Worker(tmp_path)
    with captured():
        yield opened
        go_on.set()
        opened.close()


#: What :func:`performs` calls, as it is: nothing of it is pickled.
actions: dict[int, Callable[[], Any]] = {}


@task
def performs(number: int) -> Any:
    return actions[number]()


def run_of(worker: Worker, action: Callable[[], Any], **fields: Any) -> Run:
    number = len(actions)
    actions[number] = action
    return worker.run(None, number, task=performs.name, **fields)


def outcome(worker: Worker, action: Callable[[], Any], **fields: Any) -> Any:
    number = len(actions)
    actions[number] = action
    return worker.outcome(None, number, task=performs.name, **fields)


def begin(
    worker: Worker, action: Callable[[], Any], **fields: Any
) -> tuple[Run, concurrent.futures.Future[Any]]:
    run = run_of(worker, action, **fields)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    time.sleep(0.05)  # so that it waits
    return run, future


def stop(run: Run) -> None:
    run.control.cancel()
    run.control.interrupt()


# -- what a task waits for -----------------------------------------------------------------


def sleeps() -> None:
    time.sleep(60)


def waits_for_event() -> None:
    threading.Event().wait()


def waits_with_limit() -> None:
    threading.Event().wait(60)


def waits_for_queue() -> None:
    queue.Queue[int]().get()


def waits_for_condition() -> None:
    condition = threading.Condition()
    with condition:
        condition.wait()


def joins() -> None:
    """Wait for a thread that cannot be interrupted itself."""
    thread = threading.Thread(target=select.select, args=([], [], [], 1.5))
    thread.start()
    thread.join()


def waits_for_pool() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 60).result()


def waits_for_pool_to_end() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 60)


def reads() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as file:
        file.readline()


def asks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with urllib.request.urlopen(url):
            pass


def waits_for_process() -> None:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], check=False)


def waits_for_output() -> None:
    subprocess.check_output([sys.executable, "-c", "import time; time.sleep(60)"])


def loops() -> None:
    while not go_on.is_set():
        pass


def tries_again() -> None:
    while not go_on.is_set():
        try:
            time.sleep(0.01)
            raise OSError
        except Exception:  # noqa: BLE001, S112 - as people write it
            continue


def runs_loop() -> None:
    asyncio.run(asyncio.sleep(100))


def gathers() -> None:
    async def work() -> None:
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined]
            for _ in range(3):
                group.create_task(asyncio.sleep(100))

    asyncio.run(work())


def awaits_thread() -> None:
    asyncio.run(asyncio.to_thread(time.sleep, 60))


WAITS = [
    sleeps,
    waits_for_event,
    waits_with_limit,
    waits_for_queue,
    waits_for_condition,
    joins,
    waits_for_pool,
    waits_for_pool_to_end,
    reads,
    asks,
    waits_for_process,
    waits_for_output,
    loops,
    tries_again,
    runs_loop,
    gathers,
    awaits_thread,
]


def timed(wait: Callable[[], None]) -> Callable[[], None]:
    """Return a task that notes what has ended its wait, and when."""

    def work() -> None:
        started.set()
        try:
            wait()
        except BaseException as e:
            did.append((type(e), time.monotonic()))
            raise

    return work


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_is_ended_at_once(worker: Worker, wait: Callable[[], None]) -> None:
    run, future = begin(worker, timed(wait))
    asked = time.monotonic()
    stop(run)
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert worker.log() == "The job was canceled.\n"
    ((kind, when),) = did
    assert when - asked < 1
    assert not issubclass(kind, Exception)


@pytest.mark.parametrize("wait", [sleeps, tries_again, runs_loop, waits_for_process])
def test_a_time_limit_ends_it_too(worker: Worker, wait: Callable[[], None]) -> None:
    begun = time.monotonic()
    error = outcome(worker, timed(wait), timeout=0.5)
    assert isinstance(error, JobTimeout)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.log() == "The task exceeded its time limit of 0.5 s.\n"
    ((kind, when),) = did
    assert 0.5 <= when - begun < 2
    assert kind is TimeoutInterrupt or wait is runs_loop


def converts() -> None:
    try:
        time.sleep(60)
    except BaseException as e:
        raise ValueError("no answer") from e


def leaves() -> None:
    try:
        time.sleep(60)
    finally:
        sys.exit(0)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("habit", "shown"), [(converts, "ValueError: no answer\n"), (leaves, "called sys.exit(0)")]
)
def test_an_answer_to_a_time_limit_does_not_hide_it(
    worker: Worker, habit: Callable[[], None], shown: str, isolation: str
) -> None:
    error = worker.outcome(habit, timeout=0.5, isolation=isolation)
    assert isinstance(error, JobTimeout)
    assert worker.end.error == "The task exceeded its time limit of 0.5 s."
    assert shown in worker.log()
    assert worker.log().endswith("\nThe task exceeded its time limit of 0.5 s.\n")
    assert "girder_dask/" not in worker.log()


def test_a_sleep_is_as_long_as_it_says(worker: Worker) -> None:
    def work() -> list[float]:
        taken = []
        for seconds in (0, 0.001, 0.06, 0.2):
            begun = time.monotonic()
            time.sleep(seconds)
            taken.append(time.monotonic() - begun - seconds)
        with pytest.raises(ValueError, match="non-negative"):
            time.sleep(-1)
        with pytest.raises(TypeError):
            time.sleep("1")  # type: ignore[arg-type]
        return taken

    assert all(0 <= late < 0.15 for late in outcome(worker, work))


def test_a_thread_is_joined_as_ever(worker: Worker) -> None:
    def work() -> None:
        threads = [threading.Thread(target=time.sleep, args=(s,)) for s in (0.0, 0.1, 1.0)]
        with pytest.raises(RuntimeError, match="before it is started"):
            threads[0].join()
        with pytest.raises(RuntimeError, match="current thread"):
            threading.current_thread().join()
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        for thread in threads[:2]:
            thread.join()
            assert not thread.is_alive()
        threads[2].join(0.05)
        did.append(time.monotonic() - begun)
        assert threads[2].is_alive()
        threads[2].join(5)
        assert not threads[2].is_alive()

    assert outcome(worker, work) is None
    assert did[0] < 0.6


def test_a_latch_lets_go_of_those_who_wait_and_those_who_come_late() -> None:
    latch = Latch()
    assert not latch.wait(0)
    assert not latch.wait(0.01)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        waits = [pool.submit(latch.wait, seconds) for seconds in (None, 60, 0.02)]
        assert waits[2].result(SECONDS) is False
        latch.open()
        assert waits[0].result(SECONDS)
        assert waits[1].result(SECONDS)
    assert latch.wait()


# -- event loops ---------------------------------------------------------------------------


def test_the_coroutines_of_a_task_clean_up(worker: Worker) -> None:
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


def test_a_coroutine_that_swallows_it_is_interrupted_again(worker: Worker) -> None:
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


def test_a_coroutine_that_never_awaits_is_interrupted(worker: Worker) -> None:
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


def test_a_record_is_written_as_a_whole(worker: Worker) -> None:
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


def test_tasks_that_print_all_the_time_are_stopped_and_their_logs_are_whole(
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


def test_what_hooks_do_about_an_interruption_is_not_interrupted(worker: Worker) -> None:
    run, future = begin(worker, timed(sleeps), hooks=[Hook()])
    stop(run)
    until(lambda: "begun" in did)
    for _ in range(5):
        run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert did[1:] == ["begun", "told"]
    assert outcome(worker, lambda: 1, job_id="b") == 1


def test_one_that_comes_late_harms_nobody(worker: Worker) -> None:
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


def test_a_task_that_catches_whatever_is_raised_ends_after_many(worker: Worker) -> None:
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
    select.select([], [], [], 2.6)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_what_is_said_of_one_that_cannot_be_stopped_does_not_depend_on_why(
    worker: Worker, how: str
) -> None:
    run = run_of(worker, waits_in_c, timeout=0.2 if how == "timeout" else None)
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
    last = {"cancel": "The job was canceled.", "timeout": "exceeded its time limit of 0.2 s."}
    assert worker.log().endswith(f"{last[how]}\n")
    assert worker.log().count("\n") == 2


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_one_that_cannot_be_stopped_is_given_up_whyever_it_is_to_end(
    worker: Worker, how: str
) -> None:
    given_up: list[RunControl] = []

    async def make() -> RunCanceller:
        return RunCanceller(worker.context.runs, {}, 0.1, 0.5, given_up.append)

    canceller = asyncio.run_coroutine_threadsafe(make(), worker._loop).result(SECONDS)
    worker._canceller = canceller
    run = run_of(worker, waits_in_c, timeout=0.2 if how == "timeout" else None)
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
        assert worker.end.error == "The task exceeded its time limit of 0.2 s."
    future.exception(SECONDS)
    until(lambda: run.control.id not in worker.context.runs)
    assert worker.statuses().count(S.ERROR) == (how == "timeout")


def test_a_time_limit_that_was_kept_is_forgotten(worker: Worker) -> None:
    for n in range(5):
        assert outcome(worker, lambda: 1, job_id=str(n), timeout=0.3) == 1
    run = run_of(worker, lambda: time.sleep(0.02), timeout=0.02 + 1e-3, job_id="close")
    worker.begin(run).exception(SECONDS)
    until(lambda: not worker._canceller._time_limits)
    assert outcome(worker, lambda: time.sleep(0.4), job_id="b") is None


def test_an_interruption_of_another_job_is_no_cancellation(worker: Worker) -> None:
    """As when the future of a pool that two jobs use brings it."""

    def work() -> None:
        raise CancelInterrupt

    outcome(worker, work)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert "CancelInterrupt" in worker.log()


def test_a_loop_over_progress_is_not_tried_again(worker: Worker) -> None:
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
