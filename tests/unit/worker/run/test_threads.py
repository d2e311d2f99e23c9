"""Threads and pools of a run that is stopped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing.pool
import queue
import select
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask import task
from girder_dask.errors import (
    JobCanceled,
    JobInterrupted,
    JobTimeout,
)
from girder_dask.jobs import JobStatus
from girder_dask.worker.cancellation import RunCanceller
from tests.support.deadline import SECONDS, until
from tests.support.held_tasks import deaf, go_on, patient, started
from tests.support.noting_transforms import did
from tests.support.run_worker import Worker, captured

S = JobStatus


loops: dict[str, int] = {}
held_since: list[float] = []


def loop(name: str) -> None:
    """Count, until it is interrupted."""
    loops.setdefault(name, 0)
    while not go_on.is_set():
        loops[name] += 1


def careless(name: str) -> None:
    """Count on after the first interruption."""
    with contextlib.suppress(JobInterrupted):
        loop(name)
    loop(name)


def held() -> None:
    """Wait in C code."""
    held_since.append(time.monotonic())
    started.set()
    select.select([], [], [], 4)
    did.append("woke up")


@pytest.fixture
def inherited() -> Iterator[None]:
    loops.clear()
    with captured():
        yield


@task
def starts(targets: list[str], daemon: bool = False) -> None:
    for n, target in enumerate(targets):
        args = () if target == "held" else (f"{target}-{n}",)
        threading.Thread(target=globals()[target], args=args, daemon=daemon).start()
    until(lambda: len(loops) + targets.count("held") == len(targets))
    started.set()


@task
def waits_for_threads() -> None:
    thread = threading.Thread(target=loop, args=("a",))
    thread.start()
    until(lambda: loops)
    started.set()
    thread.join()


@task
def fills_pool() -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(loop, str(n)) for n in range(100)]
        until(lambda: len(loops) == 2)
        started.set()
        for future in futures:
            future.result()


@task
def fills_other_pool() -> None:
    with multiprocessing.pool.ThreadPool(2) as pool:
        result = pool.map_async(loop, [str(n) for n in range(100)], chunksize=1)
        until(lambda: len(loops) == 2)
        started.set()
        result.get()


@task
def has_consumer() -> None:
    """Feed a thread that waits for more, and that nobody tells of the end."""
    jobs: queue.Queue[str] = queue.Queue()

    def consume() -> None:
        while True:
            did.append(jobs.get())

    threading.Thread(target=consume).start()
    jobs.put("one")
    until(lambda: did == ["one"])
    started.set()
    deaf()


@task
def has_producer() -> None:
    """Wait for a thread that says nothing."""
    threading.Thread(target=loop, args=("a",)).start()
    until(lambda: loops)
    started.set()
    queue.Queue[str]().get()


kept: list[Any] = []


@task
def keeps_pools() -> None:
    """Leave pools that have nothing to do."""
    pool = concurrent.futures.ThreadPoolExecutor(2)
    other = multiprocessing.pool.ThreadPool(2)
    kept.extend([pool, other])
    list(pool.map(did.append, "ab"))
    other.map(did.append, "cd")
    started.set()
    deaf()


@task
def uses_pools() -> list[str]:
    pool, other = kept
    return [*pool.map(str.upper, "ab"), *other.map(str.upper, "cd")]


def stopped(worker: Worker, name: str, *args: Any, times: int = 1) -> None:
    """Run a task, cancel it, and return when it has ended."""
    run = worker.run(None, *args, task=f"{__name__}:{name}")
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    for _ in range(times):
        run.control.interrupt()
        concurrent.futures.wait([future], 1)
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])


def none_counts() -> bool:
    before = dict(loops)
    time.sleep(0.05)
    return loops == before


def one_counts() -> None:
    """Wait until a thread counts on."""
    before = dict(loops)
    until(lambda: loops != before)


@pytest.mark.usefixtures("inherited")
@pytest.mark.parametrize(
    "name", ["waits_for_threads", "fills_pool", "fills_other_pool", "has_producer"]
)
def test_threads_that_a_task_waits_for_end_with_it(worker: Worker, name: str) -> None:
    # A thread of the other pool takes what comes next, as the interruption is an Exception.
    stopped(worker, name, times=3 if name == "fills_other_pool" else 1)
    assert loops
    assert none_counts()
    assert worker.log() == "The job was canceled.\n"


@pytest.mark.usefixtures("inherited")
@pytest.mark.parametrize("daemon", [False, True])
def test_threads_that_a_task_has_left_are_interrupted_when_their_time_has_come(
    worker: Worker, daemon: bool
) -> None:
    run = worker.run(None, ["loop", "loop"], daemon, task=leaves.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    assert not concurrent.futures.wait([future], 0.2).done, "they have their grace too"
    one_counts()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert none_counts()


@pytest.mark.usefixtures("inherited")
def test_a_thread_that_catches_the_interruption_is_interrupted_again(worker: Worker) -> None:
    run = worker.run(None, ["careless"], task=leaves.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    assert not concurrent.futures.wait([future], 0.2).done
    one_counts()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert none_counts()


@task
def leaves(targets: list[str], daemon: bool = False) -> None:
    starts(targets, daemon)
    patient()


@pytest.mark.usefixtures("inherited")
def test_a_thread_that_waits_for_more_is_woken(worker: Worker) -> None:
    stopped(worker, "has_consumer")
    until(lambda: not any("consume" in thread.name for thread in threading.enumerate()))
    assert did == ["one"]
    assert worker.log() == "The job was canceled.\n"


@pytest.mark.usefixtures("inherited")
def test_pools_that_have_nothing_to_do_are_left_to_the_next_job(worker: Worker) -> None:
    """They may be the property of a library, and serve other jobs."""
    try:
        stopped(worker, "keeps_pools")
        assert worker.outcome(None, task=uses_pools.name, job_id="b") == list("ABCD")
    finally:
        kept.pop().terminate()
        kept.pop().shutdown()


@task
def has_event_loop() -> None:
    """Start a loop that stays, as fsspec and zarr do."""
    kept.append(asyncio.new_event_loop())
    threading.Thread(target=kept[0].run_forever, daemon=True).start()
    started.set()
    deaf()


@pytest.mark.usefixtures("inherited")
def test_an_event_loop_in_a_thread_is_left_to_the_next_job(worker: Worker) -> None:
    stopped(worker, "has_event_loop")
    loop = kept.pop()
    waiting = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01, "slept"), loop)
    assert waiting.result(SECONDS) == "slept"
    loop.call_soon_threadsafe(loop.stop)


@pytest.mark.usefixtures("inherited")
def test_a_job_ends_when_its_thread_in_c_code_has(worker: Worker) -> None:
    run = worker.run(None, ["held"], task=leaves.name)

    async def stop() -> None:
        canceller = RunCanceller(worker.context.runs, worker.context.refused, grace_s=0.2)
        canceller.cancel([run.control.key])

    future = worker.begin(run)
    assert started.wait(SECONDS)
    asyncio.run_coroutine_threadsafe(stop(), worker._loop).result(SECONDS)
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert time.monotonic() - held_since[-1] > 3.9
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert "The job should end, but its thread Thread-" in worker.log()
    assert "(held) cannot be interrupted: it waits in C code" in worker.log()
    assert did == [], "it was interrupted when it came back"
    assert "Traceback" not in worker.log()


@pytest.mark.usefixtures("inherited")
def test_the_threads_of_a_task_that_takes_too_long_end_with_it(worker: Worker) -> None:
    error = worker.outcome(None, ["careless", "loop"], task=leaves.name, timeout=2.0)
    assert isinstance(error, JobTimeout)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert len(loops) == 2
    assert none_counts()


@pytest.mark.usefixtures("inherited")
def test_threads_go_on_after_the_end_of_a_task(worker: Worker) -> None:
    run = worker.run(None, ["loop"], task=starts.name)
    assert worker.begin(run).result(SECONDS) is None
    until(lambda: worker.statuses() == [S.RUNNING, S.SUCCESS])
    run.control.cancel()
    run.control.interrupt()
    one_counts()
    go_on.set()


@pytest.mark.usefixtures("inherited")
def test_a_pool_of_two_jobs_works_on_for_the_other(worker: Worker) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        shared.append(pool)
        try:
            runs = [worker.run(None, n, task=shares.name, job_id=n) for n in "ab"]
            futures = [worker.begin(run) for run in runs]
            until(lambda: len(loops) == 2)
            runs[0].control.cancel()
            runs[0].control.interrupt()
            assert isinstance(futures[0].exception(SECONDS), JobCanceled)
            a, b = loops["a"], loops["b"]
            until(lambda: loops["b"] > b)
            assert loops["a"] == a
            go_on.set()
            assert futures[1].result(SECONDS) == "done"
        finally:
            go_on.set()
            shared.clear()


shared: list[concurrent.futures.ThreadPoolExecutor] = []


@task
def shares(name: str) -> str:
    shared[0].submit(loop, name).result()
    return "done"


@pytest.mark.usefixtures("inherited")
def test_nothing_is_left_of_the_threads_of_a_job(worker: Worker) -> None:
    from girder_dask.worker.interruption import job_threads

    gc.collect()
    before = len(job_threads._threads)
    for n in range(5):
        worker.outcome(None, task=counts_to_two.name, job_id=str(n))

    def is_empty() -> bool:
        gc.collect()
        return len(job_threads._threads) <= before + 1

    until(is_empty)


@task
def counts_to_two() -> None:
    thread = threading.Thread(target=did.append, args=(1,))
    thread.start()
    thread.join()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(did.append, 2).result()
