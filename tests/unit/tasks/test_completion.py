"""A job whose call has not come to its end is not done."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import multiprocessing.pool
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.bag
import pytest

from girder_dask import JobCanceled, JobFailed, current_job, task
from girder_dask.client.backend import set_backend
from girder_dask.client.result import JobResult
from girder_dask.errors import JobTimeout
from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import open_value
from girder_dask.tasks.completion import completed, unfinished
from girder_dask.tasks.running_job import RunningJob
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import Worker, captured

S = JobStatus
ISOLATIONS = ["thread", "process"]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    opened = Worker(tmp_path)
    yield opened
    for run in list(opened.context.runs.values()):  # of a test that has failed
        run.cancel()
        run.interrupt()
    opened.close()


# -- async tasks ---------------------------------------------------------------------------


@task(bind=True)
async def speaks(self: RunningJob, n: int) -> str:
    print("before")
    await asyncio.sleep(0.01)
    await asyncio.gather(*(_says(i) for i in range(n)))
    await asyncio.to_thread(print, "from a thread")
    job = current_job()
    return f"{self.id} {job.id}"


async def _says(i: int) -> None:
    await asyncio.sleep(0.02 * i)
    print("coroutine", i)


@task
async def waits(path: str) -> None:
    try:
        print("begun", flush=True)
        await asyncio.sleep(100)
    finally:
        await asyncio.sleep(0.01)
        print("cleaned up")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_async_task_is_run(worker: Worker, isolation: str) -> None:
    with captured():
        assert worker.outcome(None, 2, task=speaks.name, isolation=isolation) == "a a"
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert worker.log() == "before\ncoroutine 0\ncoroutine 1\nfrom a thread\n"
    assert open_value(worker.end.result or b"", unpickle=False) == "a a"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_async_task_is_canceled(worker: Worker, isolation: str) -> None:
    run = worker.run(None, "x", task=waits.name, isolation=isolation)
    with captured():
        future = worker.begin(run)
        until(lambda: "begun" in worker.log())
        run.control.cancel()
        run.control.interrupt()
        assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert worker.log() == "begun\ncleaned up\nThe job was canceled.\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_async_task_has_a_time_limit(worker: Worker, isolation: str) -> None:
    with captured():
        error = worker.outcome(None, "x", task=waits.name, isolation=isolation, timeout=2.0)
    assert isinstance(error, JobTimeout)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    end = "The task exceeded its time limit of 2 s.\n"
    assert worker.log() == f"begun\ncleaned up\n{end}"


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_what_an_async_task_does_not_await_is_told(worker: Worker, isolation: str) -> None:
    async def late() -> None:
        await asyncio.sleep(SECONDS)
        print("never")

    async def work() -> int:
        kept = [asyncio.create_task(late()) for _ in range(2)]
        await asyncio.sleep(0)
        return len(kept)

    with captured():
        assert worker.outcome(work, isolation=isolation) == 2
    assert worker.log() == (
        "The task returned before its asyncio tasks were done, so they are canceled "
        f"(2): {late.__qualname__}. Await them before returning, for example with "
        "asyncio.gather().\n"
    )


def test_an_async_function_from_a_notebook_is_run(worker: Worker) -> None:
    async def work(n: int) -> int:
        await asyncio.sleep(0.01)
        return 2 * n

    assert worker.outcome(work, 4) == 8
    assert worker.outcome(task(work), 5, job_id="b") == 10


def test_an_async_task_without_a_job_is_run() -> None:
    set_backend(None)
    result = speaks.delay(0, girder_job_disable=True)
    assert result.get() == "None None"


def test_a_partial_of_an_async_function_is_run() -> None:
    assert completed(functools.partial(add, 1, 2)) == 3


def test_the_task_itself_is_still_the_plain_function() -> None:
    assert asyncio.run(speaks(0)) == "None None"


# -- unfinished work -----------------------------------------------------------------------


async def add(a: int, b: int) -> int:
    return a + b


def count() -> Iterator[int]:
    yield 1


async def tick() -> AsyncIterator[int]:
    yield 1


class Awaitable:
    def __await__(self) -> Iterator[None]:
        yield None


def futures() -> list[concurrent.futures.Future[int]]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return [pool.submit(len, "ab")]


def of_pool() -> Any:
    with multiprocessing.pool.ThreadPool(1) as pool:
        result = pool.apply_async(len, "ab")
        result.wait(SECONDS)
        return result


UNFINISHED = {
    "a coroutine": lambda: add(1, 2),
    "a lambda's": lambda: functools.partial(add, 1)(2),
    "an awaitable": Awaitable,
    "a generator": count,
    "an asynchronous generator": tick,
    "a map": lambda: map(str, [1]),
    "a filter": lambda: filter(None, [1]),
    "a zip": lambda: zip([1], map(str, [1]), strict=True),
    "an enumerate": lambda: enumerate(count()),
    "a chain": lambda: itertools.chain([1], count()),
    "futures": futures,
    "a result of a pool": of_pool,
    "a delayed call": lambda: dask.delayed(len)("ab"),
    "a bag": lambda: dask.bag.from_sequence([1, 2]),
    "a list": lambda: [1, "a", add(1, 2)],
    "a dict": lambda: {"a": {"b": (1, count())}},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", UNFINISHED)
def test_a_value_that_would_still_have_to_run_is_an_error(name: str) -> None:
    with pytest.raises(JobFailed, match="whose work is not finished") as e:
        completed(UNFINISHED[name])
    assert str(e.value).endswith(".")


def test_what_still_runs_is_no_result() -> None:
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, args=(SECONDS,))
    thread.start()
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        with pytest.raises(JobFailed, match=r"a threading.Thread, .*Call its join\(\), and return"):
            completed(lambda: [thread])
        with pytest.raises(JobFailed, match=r"a subprocess.Popen, .*Call its wait\(\), and return"):
            completed(lambda: process)
    finally:
        process.communicate()
        go_on.set()
        thread.join()
    assert completed(lambda: [thread, process]) == [thread, process]  # they have ended


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_job_ends_in_error_and_says_so(worker: Worker, isolation: str) -> None:
    def work() -> Any:
        return (n for n in range(3))

    error = worker.outcome(work, isolation=isolation)
    assert isinstance(error, JobFailed)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.log().startswith("girder_dask.errors.JobFailed: The task returned a generator (")
    assert worker.log().endswith("whose work is not finished. Return a list of its elements.\n")


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "text",
        [1, [2, {"a": (3.0, None)}]],
        range(3),
        dict.fromkeys(range(1000)),
        Awaitable,
        len,
        functools.partial(add, 1),
        JobResult("5f0000000000000000000000"),
    ],
)
def test_what_is_finished_is_returned(value: Any) -> None:
    assert completed(lambda: value) is value


def test_many_plain_elements_cost_little() -> None:
    import time

    value = list(range(1_000_000))
    begun = time.thread_time()
    assert unfinished(value) is None
    assert time.thread_time() - begun < 0.5
