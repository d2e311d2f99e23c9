"""Whatever a task waits for, an interruption ends the wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from girder_dask import JobCanceled
from girder_dask.errors import JobTimeout, TimeoutInterrupt
from girder_dask.jobs import JobStatus
from girder_dask.worker.interruption.interruptible_waits import Latch
from tests.support.deadline import SECONDS, until
from tests.support.interrupted_tasks import (
    begin,
    captured_worker,
    did,
    go_on,
    loops,
    outcome,
    sleeps,
    stop,
    timed,
)
from tests.support.run_worker import Worker

S = JobStatus


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with captured_worker(tmp_path) as opened:
        yield opened


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
    thread = threading.Thread(target=select.select, args=([], [], [], 4.0))
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


@pytest.mark.parametrize("wait", WAITS)
def test_wait_ends_at_once(worker: Worker, wait: Callable[[], None]) -> None:
    run, future = begin(worker, timed(wait))
    asked = time.monotonic()
    stop(run)
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert worker.log() == "The job was canceled.\n"
    ((kind, when),) = did
    assert when - asked < (3 if wait is joins else 20)
    assert not issubclass(kind, Exception)


@pytest.mark.parametrize("wait", [sleeps, tries_again, runs_loop, waits_for_process])
def test_wait_ends_at_a_time_limit(worker: Worker, wait: Callable[[], None]) -> None:
    begun = time.monotonic()
    error = outcome(worker, timed(wait), timeout=1.5)
    assert isinstance(error, JobTimeout)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.log() == "The task exceeded its time limit of 1.5 s.\n"
    ((kind, when),) = did
    assert 1.5 <= when - begun < 20
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
def test_wait_ended_by_a_time_limit_reports_it_whatever_the_task_answers(
    worker: Worker, habit: Callable[[], None], shown: str, isolation: str
) -> None:
    error = worker.outcome(habit, timeout=2.0, isolation=isolation)
    assert isinstance(error, JobTimeout)
    assert worker.end.error == "The task exceeded its time limit of 2 s."
    assert shown in worker.log()
    assert worker.log().endswith("\nThe task exceeded its time limit of 2 s.\n")
    assert "girder_dask/" not in worker.log()


def test_sleep_is_as_long_as_it_says(worker: Worker) -> None:
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

    # The shortest of three, as other processes may hold up each.
    rounds = [outcome(worker, work, job_id=str(n)) for n in range(3)]
    assert all(late >= 0 for taken in rounds for late in taken)
    assert all(min(taken) < 0.15 for taken in zip(*rounds, strict=True))


def test_join_works_as_without_capture(worker: Worker) -> None:
    def work() -> None:
        threads = [threading.Thread(target=time.sleep, args=(s,)) for s in (0.0, 0.1, 3.0)]
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
        threads[2].join(SECONDS)
        assert not threads[2].is_alive()

    assert outcome(worker, work) is None
    assert did[0] < 2.5


def test_latch_releases_those_who_wait_and_those_who_come_late() -> None:
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
