"""Tasks that wait or go on, and their interruption."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from girder_dask import task
from girder_dask.worker.run.runner import Run
from tests.support.deadline import SECONDS
from tests.support.run_worker import Worker, captured

__all__ = [
    "begin",
    "captured_worker",
    "did",
    "go_on",
    "loops",
    "outcome",
    "performs",
    "run_of",
    "sleeps",
    "started",
    "stop",
    "timed",
]

#: What tasks have done, and what they wait for.
did: list[Any] = []
started = threading.Event()
go_on = threading.Event()


@contextlib.contextmanager
def captured_worker(directory: Path) -> Iterator[Worker]:
    """Open a worker whose output is captured."""
    did.clear()
    started.clear()
    go_on.clear()
    opened = Worker(directory)
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


def sleeps() -> None:
    time.sleep(60)


def loops() -> None:
    while not go_on.is_set():
        pass


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
